"""What single fields of a spec do to a training: averages, clipping, smoothing, frozen layers, records, short cuts."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toy import VIT, exec_spec, run_spec

from datasets.store import DataError, Dataset
from trainable import records
from trainable.attempt import Attempt
from trainable.checkpoint import RunFolder, model_state
from trainable.loop import mixed_cross_entropy
from trainable.opening import SpecError, open_run
from trainable.spec import RunSpec
from trainable.storage import Storage
from trainable.tables import AttemptInfo
from trainable.training import TrainingRun


@pytest.fixture
def spec_of(toy: Dataset) -> Any:
    def make(fields: dict[str, Any] | None = None) -> RunSpec:
        return run_spec({"data.content_sha256": toy.manifest.content_sha256, **(fields or {})})

    return make


def opened(storage: Storage, data_path: Path, toy: Dataset, spec: RunSpec) -> TrainingRun:
    parent = RunFolder(storage, str(spec.init.source)) if spec.init.kind == "parent" else None
    return open_run(spec, exec_spec(data_path), RunFolder(storage, spec.run_id), toy, parent)


def finished(run: TrainingRun) -> TrainingRun:
    while not run.done:
        run.advance()
    run.close()
    return run


def tables_of(run: TrainingRun) -> dict[str, Any]:
    return run.finish(AttemptInfo(attempt_id="a", number=1, history=(), started_at=datetime.now(UTC)))


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_average_follows_its_recursion_and_is_what_is_evaluated(
    storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    run = opened(storage, data_path, toy, spec_of({"optim.ema_decay": 0.7, "model.name": "small_resnet"}))
    expected: dict[str, torch.Tensor] = {}
    while run.position.step < 4:
        run.advance(0.0)
        for name, value in run.loop.model.named_parameters():
            before = expected.get(name)
            own = value.detach().clone()
            expected[name] = own if before is None else 0.7 * before + 0.3 * own
    found = dict(run.loop.evaluated_model.named_parameters())
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())
    assert not torch.equal(found["fc.weight"], run.loop.model.get_parameter("fc.weight"))
    average, raw = run.loop.evaluated_model.state_dict(), run.loop.model.state_dict()
    assert torch.equal(average["bn1.running_mean"], raw["bn1.running_mean"]), "BatchNorm's averages are the last ones"
    finished(run)
    kept = model_state(run.folder.load("last"))
    plain = finished(opened(storage, data_path, toy, spec_of({"model.name": "small_resnet"})))
    assert not torch.equal(kept["fc.weight"], model_state(plain.folder.load("last"))["fc.weight"])


def test_children_start_from_the_average(storage: Storage, data_path: Path, toy: Dataset, spec_of: Any) -> None:
    parent = finished(opened(storage, data_path, toy, spec_of({"optim.ema_decay": 0.9})))
    child = opened(storage, data_path, toy, spec_of(child_of(parent.spec)))
    expected = model_state(parent.folder.load("last"))
    assert all(torch.equal(value, expected[name]) for name, value in child.loop.model.state_dict().items())


def child_of(parent: RunSpec, surgery: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "init.kind": "parent",
        "init.source": parent.run_id,
        "init.checkpoint": "last",
        "init.surgery": list(surgery),
        "seed": 9,
    }


def test_a_child_with_a_small_stem_keeps_everything_else_of_its_parent(
    storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    plain = {"model.name": "torchvision/resnet18", "budget.epochs": 1}
    parent = finished(opened(storage, data_path, toy, spec_of(plain)))
    child = opened(
        storage,
        data_path,
        toy,
        spec_of({**plain, "model.stem": "small", **child_of(parent.spec, ("small_stem",))}),
    )
    theirs, ours = model_state(parent.folder.load("last")), weights(child.loop.model)
    assert ours.pop("conv1.weight").shape == (64, 3, 3, 3) and ours.pop("conv1.bias").shape == (64,)
    assert theirs.pop("conv1.weight").shape == (64, 3, 7, 7)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert child.report["new"] == ("conv1.bias", "conv1.weight")


def test_an_evaluation_alone_scores_its_parents_weights(
    storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    parent = spec_of({"model.name": "small_resnet"})
    for spec in (parent, spec_of({"model.name": "small_resnet", **child_of(parent), "budget.epochs": 0})):
        attempt = Attempt(spec, exec_spec(data_path), storage)
        while not attempt.done:
            attempt.advance()
    commits = records.read_commits(storage)
    assert set(commits) == {parent.run_id, spec.run_id}
    trials = {row["run_id"]: row for row in records.read_table(storage, "trials", commits.values()).to_pylist()}
    assert trials[spec.run_id]["final_top1"] == trials[parent.run_id]["final_top1"]
    assert trials[spec.run_id]["final_nll_nats"] == trials[parent.run_id]["final_nll_nats"]
    assert (trials[spec.run_id]["steps"], trials[spec.run_id]["epochs"]) == (0, 0.0)
    rows = records.read_table(storage, "epochs", [commits[spec.run_id]]).to_pylist()
    assert [(row["split"], row["step"]) for row in rows] == [("test", 0)]
    assert len(storage.names("costs")) == 1, "an evaluation says nothing of what a step costs"
    kept, theirs = (model_state(RunFolder(storage, run).load("last")) for run in (spec.run_id, parent.run_id))
    assert all(torch.equal(kept[name], theirs[name]) for name in theirs)


def test_gradients_are_clipped_to_their_norm_and_the_norm_before_is_on_record(
    storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    fields = {
        "optim.name": "sgd",
        "optim.betas": None,
        "optim.eps": None,
        "optim.momentum": 0.0,
        "optim.lr": 1.0,
        "optim.schedule": "constant",
        "evaluate.record_steps": True,
    }
    run = opened(storage, data_path, toy, spec_of({**fields, "optim.clip_norm": 0.01}))
    before = weights(run.loop.model)
    run.advance(0.0)
    moved = math.sqrt(
        sum(float((value.detach() - before[name]).square().sum()) for name, value in run.loop.model.named_parameters())
    )
    assert moved == pytest.approx(0.01, rel=1e-3), "at rate 1 the step is the clipped gradient"
    assert run.loop.steps is not None and float(run.loop.steps[0, 2]) > 0.1
    run.close()


def test_every_step_is_on_record(storage: Storage, data_path: Path, toy: Dataset, spec_of: Any) -> None:
    spec = spec_of({"evaluate.record_steps": True, "optim.schedule_per": "step"})
    run = finished(opened(storage, data_path, toy, spec))
    tables = tables_of(run)
    steps = tables["steps"].to_pylist()
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert steps[3]["epoch"] == 1.0 and steps[-1]["epoch"] == 3.0
    assert [row["lr"] for row in steps] == [run.loop.rate(step) for step in range(12)]
    assert len({row["lr"] for row in steps}) == 12
    sizes = [16, 16, 16, 12]
    for epoch, row in enumerate(row for row in run.position.rows if row["split"] == "train"):
        own = steps[4 * epoch : 4 * epoch + 4]
        for column, name in (("loss_nats", "loss_nats"), ("top1", "top1")):
            mean = sum(size * one[column] for size, one in zip(sizes, own, strict=True)) / 60
            assert row[name] == pytest.approx(mean, rel=1e-5)
    assert all(row["grad_norm"] > 0 and row["loss_total_nats"] == row["loss_nats"] for row in steps)
    assert "steps" not in tables_of(finished(opened(storage, data_path, toy, spec_of())))


def test_auxiliary_heads_add_their_losses_and_are_not_evaluated(
    storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    vit = {**VIT, "depth": 3, "aux_depths": [1, 2]}
    run = opened(
        storage, data_path, toy, spec_of({"model.name": "vit", "model.vit": vit, "evaluate.record_steps": True})
    )
    batch = next(iter(run.loop.train))
    outputs = run.loop.model.train()(batch.images)
    assert isinstance(outputs, tuple) and len(outputs) == 3
    losses = [float(F.cross_entropy(one.detach(), batch.label_a)) for one in outputs]
    assert float(run.loop.train_step(batch)) == pytest.approx(sum(losses), rel=1e-5)
    assert run.loop.steps is not None
    assert run.loop.steps[0, :2].tolist() == pytest.approx([losses[0], sum(losses)], rel=1e-5)
    run.close()


def test_surplus_outputs_are_trained_and_never_evaluated(
    storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    run = opened(storage, data_path, toy, spec_of({"model.num_outputs": 10}))
    batch = next(iter(run.loop.train))
    assert run.loop.model(batch.images).shape == (16, 10)
    loss = float(run.loop.train_step(batch))
    assert loss > 1.5, "over ten outputs; three would begin at 1.1"
    finished(run)
    assert run._logits["final"].shape == (30, 3)
    assert tables_of(run)["trials"]["num_classes"].to_pylist() == [3]


def test_smoothing_is_torchs_and_mixes(toy: Dataset) -> None:
    torch.manual_seed(0)
    logits, a, b = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0]), torch.tensor([1, 1, 0, 2, 3])
    lam = torch.tensor([1.0, 0.3, 0.5, 0.0, 0.9])
    log_p = logits.log_softmax(1)
    expected = 0.0
    for i in range(5):
        for label, weight in ((int(a[i]), float(lam[i])), (int(b[i]), 1 - float(lam[i]))):
            target = [0.2 / 4 + (0.8 if k == label else 0.0) for k in range(4)]
            expected -= weight * sum(t * float(log_p[i, k]) for k, t in enumerate(target)) / 5
    assert float(mixed_cross_entropy(logits, a, b, lam, 0.2)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("batchnorm", ["update", "fixed"])
def test_a_frozen_backbone_keeps_its_weights_and_its_averages_as_told(
    batchnorm: str, storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    fields = {"model.name": "small_resnet", "optim.frozen": ["backbone"], "optim.frozen_batchnorm": batchnorm}
    run = opened(storage, data_path, toy, spec_of(fields))
    before = weights(run.loop.model)
    finished(run)
    after = model_state(run.folder.load("last"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    averages = {name for name in before if "running_" in name or "num_batches" in name}
    assert changed == {"fc.weight", "fc.bias"} | (averages if batchnorm == "update" else set())


def test_the_first_training_images_are_a_split(storage: Storage, data_path: Path, toy: Dataset, spec_of: Any) -> None:
    seen = {}
    for augmented in (False, True):
        fields = {
            "evaluate.train_first": 20,
            "evaluate.train_augmented": augmented,
            "augment.pad_crop": 3,
            "model.name": "small_resnet",
        }
        run = finished(opened(storage, data_path, toy, spec_of(fields)))
        rows = [row for row in run.position.rows if row["split"] == "train_20"]
        assert len(rows) == 3 and rows[-1]["num_images"] == 20 and rows[-1]["top5"] == 1.0
        assert run.loop.labels["train_20"].tolist() == run.rows.train.labels[:20].tolist()
        seen[augmented] = [row["loss_nats"] for row in rows]
        others = [row["loss_nats"] for row in run.position.rows if row["split"] == "test"]
        seen[str(augmented)] = others
    assert seen[True] != seen[False] and seen["True"] == seen["False"], "the training itself is the same"
    with pytest.raises(DataError, match=r"evaluate\.train_first: 100 is more than the 60 training images"):
        opened(storage, data_path, toy, spec_of({"evaluate.train_first": 100}))


def test_the_short_last_batch_can_be_left_out(storage: Storage, data_path: Path, toy: Dataset, spec_of: Any) -> None:
    run = finished(opened(storage, data_path, toy, spec_of({"budget.drop_last": True})))
    assert run.loop.total == 9
    assert [row["num_images"] for row in run.position.rows if row["split"] == "train"] == [48] * 3
    with pytest.raises(SpecError, match=r"budget\.drop_last: 60 images are less than one batch of 64"):
        opened(storage, data_path, toy, spec_of({"budget.drop_last": True, "budget.batch_size": 64}))


def test_a_compressed_budget_passes_over_the_whole_schedule(
    storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    """3 epochs of 4 steps in 3 steps: the rates of steps 0, 4 and 8."""
    whole = opened(storage, data_path, toy, spec_of())
    short = finished(opened(storage, data_path, toy, spec_of({"budget.compress_to": 3})))
    assert short.loop.total == 3 and short.position.step == 3
    assert [short.loop.rate(step) for step in range(3)] == [whole.loop.rate(step) for step in (0, 4, 8)]
    assert [row["step"] for row in short.position.rows if row["split"] == "test"] == [3], "evaluations keep their steps"


def test_training_images_normalised_otherwise_than_test_images(
    storage: Storage, data_path: Path, toy: Dataset, spec_of: Any
) -> None:
    """The first study's suspected fault."""
    fault = opened(storage, data_path, toy, spec_of({"augment.train_normalize": "none"}))
    plain = opened(storage, data_path, toy, spec_of())
    train, test = (next(iter(loader)).images.clone() for loader in (fault.loop.train, fault.loop.evaluated["test"]))
    assert train.min() >= 0 and train.max() <= 1
    assert torch.equal(test, next(iter(plain.loop.evaluated["test"])).images)
    assert test.min() < -0.5
    for run in (fault, plain):
        run.close()


def test_numbers_of_the_model_itself_are_kept(storage: Storage, data_path: Path, toy: Dataset, spec_of: Any) -> None:
    fields = {"model.name": "vit", "model.vit": {**VIT, "temperature": "log"}, "model.input_norm": "scalar"}
    run = finished(opened(storage, data_path, toy, spec_of(fields)))
    found = json.loads(tables_of(run)["trials"]["final_scalars_json"].to_pylist()[0])
    temperatures = [value for name, value in found.items() if "temperature" in name]
    assert len(temperatures) == 2 and all(0.5 < value < 2 and value != 1 for value in temperatures)
    mean = [value for name, value in found.items() if name.endswith("mean")]
    assert len(mean) == 1 and abs(mean[0]) < 1
