"""Where a run's images are made, and as what: on the device, in bfloat16, with channels last."""

from __future__ import annotations

import copy
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import VIT, exec_spec, run_spec

from datasets.cpu import apply_plan
from datasets.device_loader import DeviceLoader
from datasets.loader import Loader
from datasets.store import Dataset
from datasets.subset import select_rows
from trainable.checkpoint import RunFolder
from trainable.loading import ImagesOn, evaluation_loader, images_on, takes_bfloat16, training_loader
from trainable.models import build_model
from trainable.opening import open_run
from trainable.optim import build_optimizer
from trainable.spec import ModelSpec
from trainable.storage import Storage
from trainable.training import TrainingRun

CPU = torch.device("cpu")
HALF = {"optim.precision": "bfloat16", "model.name": "small_resnet"}


@pytest.mark.parametrize("name", ["small_resnet", "small_vit", "vit"])
def test_looking_whether_a_model_rounds_its_images_leaves_no_trace(name: str) -> None:
    vit = {"vit": VIT} if name == "vit" else {}
    model = build_model(ModelSpec.model_validate_json(json.dumps({"name": name, **vit})), 3, 8).train()
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert takes_bfloat16(model, CPU, 8)
    assert model.training and torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Shifted(torch.nn.Module):
    """Does sums with its images before anything rounds them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(192, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head((images + 0.123).flatten(1))
        return found


def test_only_a_model_that_rounds_its_images_itself_is_given_rounded_ones(toy: Dataset) -> None:
    assert not takes_bfloat16(Shifted(), CPU, 8)
    for fields, dtype in (
        ({}, torch.float32),
        (HALF, torch.bfloat16),
        ({**HALF, "model.input_norm": "channel"}, torch.float32),
    ):
        spec = run_spec(fields)
        assert images_on(spec, toy, CPU, build_model(spec.model, 3, 8), 0, 1).dtype == dtype


@pytest.mark.parametrize(
    ("memory_bytes", "fields", "kind"),
    [
        (0, {}, Loader),
        (2 * 90 * 192 - 1, {}, Loader),
        (2 * 90 * 192, {}, DeviceLoader),
        (10**9, {"data.image_size": 16, "data.resize": "bicubic"}, Loader),
    ],
)
def test_both_splits_lie_on_the_device_where_half_of_its_share_holds_them(
    memory_bytes: int, fields: dict[str, Any], kind: type, toy: Dataset
) -> None:
    """90 images of 8 by 8 pixels; images that are resized for every batch stay with the CPU."""
    spec = run_spec(fields)
    on = images_on(spec, toy, CPU, build_model(spec.model, 3, spec.data.image_size), memory_bytes, 1)
    rows = select_rows(spec.data, toy)
    loaders = [training_loader(spec, toy.train, rows.train, on), evaluation_loader(spec, toy.test, rows.test, on)]
    assert [type(loader) for loader in loaders] == [kind, kind]


def test_what_is_evaluated_apart_has_its_own_images(toy: Dataset) -> None:
    """The first training images come from the training split, wherever that lies."""
    spec = run_spec()
    on = images_on(spec, toy, CPU, build_model(spec.model, 3, 8), 10**9, 1)
    rows = select_rows(spec.data, toy)
    for store, chosen in ((toy.train, rows.train), (toy.test, rows.test)):
        found = torch.cat([one.images for one in evaluation_loader(spec, store, chosen, on)])
        plain = evaluation_loader(spec, store, chosen, ImagesOn(device=CPU))
        assert torch.equal(found, torch.cat([one.images.clone() for one in plain]))


def test_a_runs_threads_make_images_where_it_trains_on_another_device(
    toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = run_spec({"data.image_size": 16, "data.resize": "bicubic"})
    model, rows = build_model(spec.model, 3, 16), select_rows(spec.data, toy)
    assert images_on(spec, toy, CPU, model, 0, 4).threads == 1, "on a CPU they train"
    assert images_on(spec, toy, torch.device("cuda"), model, 0, 4).threads == 4
    made_by: list[str] = []

    def noted(*arguments: Any) -> None:
        made_by.append(threading.current_thread().name)
        apply_plan(*arguments)

    plain = [batch.images.clone() for batch in training_loader(spec, toy.train, rows.train, ImagesOn(device=CPU))]
    monkeypatch.setattr("datasets.loader.apply_plan", noted)
    for batch, images in zip(
        training_loader(spec, toy.train, rows.train, ImagesOn(device=CPU, threads=3)), plain, strict=True
    ):
        assert torch.equal(batch.images, images)
    assert set(made_by) == {"loader-epoch-0-0", "loader-epoch-0-1", "loader-epoch-0-2"}


def opened(storage: Storage, data_path: Path, toy: Dataset, fields: dict[str, Any]) -> TrainingRun:
    spec = run_spec({"data.content_sha256": toy.manifest.content_sha256, **fields})
    return open_run(spec, exec_spec(data_path), RunFolder(storage, spec.run_id), toy)


def trained(run: TrainingRun, to: int | None = None) -> dict[str, torch.Tensor]:
    while not run.done and (to is None or run.position.step < to):
        run.advance(0)
    return {name: value.clone() for name, value in run.loop.model.state_dict().items()}


def test_bfloat16_lies_with_channels_last_through_saves_and_resumes(
    storage: Storage, data_path: Path, toy: Dataset, tmp_path: Path
) -> None:
    whole = opened(Storage(str(tmp_path / "whole")), data_path, toy, HALF)
    expected = trained(whole)
    run = opened(storage, data_path, toy, HALF)
    trained(run, to=6)
    run.save()
    run.close()
    again = opened(storage, data_path, toy, HALF)
    weight = next(value for value in again.loop.model.parameters() if value.ndim == 4 and value.shape[1] > 3)
    state = again.loop.optimizer.state[weight]
    for value in (weight, state["exp_avg"], state["exp_avg_sq"]):
        assert value.is_contiguous(memory_format=torch.channels_last) and not value.is_contiguous()
    tests = again.loop.evaluated["test"]
    start = tests.state_dict()
    batch = next(iter(tests))
    tests.load_state_dict(start)
    assert batch.images.dtype == torch.bfloat16 and batch.images.is_contiguous(memory_format=torch.channels_last)
    found = trained(again)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    whole.close()
    again.close()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optim.name": "adamw", "optim.weight_decay": 0.1},
        {"optim.name": "sgd", "optim.betas": None, "optim.eps": None, "optim.momentum": 0.9, "optim.weight_decay": 0.1},
    ],
    ids=["adam", "adamw", "sgd"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_the_fused_optimiser_is_the_plain_one_but_for_rounding(
    fields: dict[str, Any], layout: torch.memory_format
) -> None:
    """Torch's own loop over the parameters, one operation after another, is the reference."""
    spec = run_spec({**fields, "model.name": "small_resnet", "optim.lr": 0.01})
    torch.manual_seed(0)
    fused = build_model(spec.model, 3, 8).to(memory_format=layout)  # type: ignore[call-overload]
    plain = copy.deepcopy(fused)
    ours, reference = build_optimizer(spec.optim, fused), build_optimizer(spec.optim, plain)
    for group in reference.param_groups:
        group.update(fused=False, foreach=False)
    images = torch.rand(8, 3, 8, 8).to(memory_format=layout)
    for _ in range(5):
        for model, optimizer in ((fused, ours), (plain, reference)):
            optimizer.zero_grad()
            model(images).square().mean().backward()
        for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
            assert one.grad is not None and one.grad.stride() == one.stride(), "the fused loop walks both as one line"
            other.grad = one.grad.clone()
        ours.step()
        reference.step()
    for one, other in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
