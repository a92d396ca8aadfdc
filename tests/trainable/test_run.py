"""A run in progress: it learns, it is the same bits however often it is stopped, and it says why it cannot go on."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy import VIT, exec_spec, run_spec

from datasets.store import Dataset, open_dataset
from trainable import provenance
from trainable.checkpoint import CheckpointError, RunFolder, save_checkpoint
from trainable.loop import NonFiniteLoss, mixed_cross_entropy
from trainable.run import SpecError, open_run
from trainable.storage import Storage
from trainable.surgery import WeightsError
from trainable.tables import AttemptInfo
from trainable.training import TrainingRun

MIXUP = {"augment.mix": "mixup", "augment.mix_alpha": 1.0}


@pytest.fixture(autouse=True)
def _collects_no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second each time in a test's large process; `test_costs.py` measures memory."""
    monkeypatch.setattr("trainable.opening.reset_peak_memory", lambda device: None)


@pytest.fixture
def known(toy: Dataset) -> dict[str, Any]:
    return {"data.content_sha256": toy.manifest.content_sha256}


def opened(
    storage: Storage, data_path: Path, toy: Dataset, fields: dict[str, Any], parent: str | None = None, **how: Any
) -> TrainingRun:
    spec = run_spec({"data.content_sha256": toy.manifest.content_sha256, **fields})
    parent_folder = RunFolder(storage, parent) if parent else None
    return open_run(spec, exec_spec(data_path, **how), RunFolder(storage, spec.run_id), toy, parent_folder)


def finished(run: TrainingRun, seconds: float = math.inf) -> TrainingRun:
    while not run.done:
        run.advance(seconds)
    return run


def outcome(run: TrainingRun) -> tuple[Any, ...]:
    """Everything that must be the same bits."""
    volatile = {"train_s", "data_wait_s", "evaluate_s", "images_per_s", "ended_at"}
    rows = [{key: value for key, value in row.items() if key not in volatile} for row in run.position.rows]
    weights = {name: value.numpy().tobytes() for name, value in run.folder.load("last").tensors.items()}
    logits = {name: value.tobytes() for name, value in run._logits.items()}
    return rows, run.position.best, weights, logits


def test_it_learns(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = finished(
        opened(storage, data_path, toy, {"model.name": "small_resnet", "budget.epochs": 8, "optim.lr": 3e-3})
    )
    losses = [row["loss_nats"] for row in run.position.rows if row["split"] == "train"]
    tests = [row["top1"] for row in run.position.rows if row["split"] == "test"]
    assert losses[-1] < 0.5 * losses[0] and tests[-1] > 0.8
    run.close()


def test_advance_returns_the_rows_of_one_evaluation(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {})
    rows = run.advance()
    assert [(row["split"], row["eval_index"], row["step"], row["epoch"]) for row in rows] == [
        ("train", 0, 4, 1.0),
        ("test", 0, 4, 1.0),
    ]
    assert rows[0]["num_images"] == 60 and rows[1]["num_images"] == 30
    assert [row["eval_index"] for row in run.advance()] == [1, 1]
    assert not run.done and run.progress == 2 / 3
    run.close()


def test_advance_keeps_to_its_time(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {})
    assert run.advance(0.0) == [] and run.position.step == 1
    assert run.advance(0.0) == [] and run.position.step == 2
    run.close()


def in_pieces(
    storage: Storage, data_path: Path, toy: Dataset, fields: dict[str, Any], **how: Any
) -> tuple[TrainingRun, int]:
    """Saved, closed and opened anew after every batch of training and every evaluation."""
    for pieces in range(1, 200):
        run = opened(storage, data_path, toy, fields, **how)
        before = (run.position.step, run.position.evaluated)
        while not run.done and (run.position.step, run.position.evaluated) == before:
            run.advance(0.0)
        if run.done:
            return run, pieces
        run.save()
        run.close()
    raise AssertionError("the run does not come to an end")


MODELS = {
    "vit": {},
    "resnet": {"model.name": "small_resnet"},
    "mixed and augmented": {**MIXUP, "augment.pad_crop": 1, "augment.hflip_prob": 0.5},
    "by steps": {
        "budget.epochs": None,
        "budget.steps": 11,
        "evaluate.every_epochs": None,
        "evaluate.every_steps": 3,
        "optim.schedule_per": "step",
    },
    "held out": {"data.val_fraction": 0.2, "evaluate.select": ["best_on_val", "best_on_test"]},
    "bfloat16": {"optim.precision": "bfloat16"},
    "averaged, clipped, every step on record": {
        "optim.ema_decay": 0.8,
        "optim.clip_norm": 0.5,
        "optim.label_smoothing": 0.1,
        "evaluate.record_steps": True,
        "evaluate.train_first": 7,
        "budget.drop_last": True,
    },
    "drawing between layers, normalised inside": {
        "model.name": "small_resnet",
        "model.mixstyle_depth": 2,
        "model.input_norm": "channel",
        "model.bn_groups": 2,
        "optim.name": "sgd",
        "optim.betas": None,
        "optim.eps": None,
        "optim.momentum": 0.9,
    },
    "auxiliary heads and dropout": {
        "model.name": "vit",
        "model.vit": {**VIT, "dropout": 0.1, "projection_dropout": 0.1, "attention_dropout": 0.1, "aux_depths": [1]},
    },
    "jittered, turned, erased, enlarged": {
        "data.image_size": 12,
        "data.resize": "bicubic",
        "augment.jitter": [0.2, 0.2, 0.2, 0.1],
        "augment.rotate_deg": 10.0,
        "augment.erase_prob": 0.5,
        "evaluate.train_first": 20,
        "evaluate.train_augmented": True,
    },
    "partly frozen, compressed": {
        "model.name": "small_resnet",
        "optim.frozen": ["conv1", "bn1", "layer1"],
        "optim.frozen_batchnorm": "fixed",
        "optim.schedule": "warmup_decay",
        "optim.schedule_per": "step",
        "optim.warmup_steps": 4,
        "budget.compress_to": 9,
    },
}


@pytest.mark.parametrize("kind", MODELS)
def test_stopped_at_every_batch_it_ends_with_the_same_bits(
    kind: str, tmp_path: Path, data_path: Path, toy: Dataset
) -> None:
    """In the middle of an epoch, on its last batch, between evaluation and next step."""
    whole = finished(opened(Storage(str(tmp_path / "whole")), data_path, toy, MODELS[kind]))
    run, pieces = in_pieces(Storage(str(tmp_path / "pieces")), data_path, toy, MODELS[kind])
    assert pieces > 10
    assert outcome(run) == outcome(whole)
    whole.close()
    run.close()


def test_a_model_that_draws_random_numbers_resumes_exactly(
    tmp_path: Path, data_path: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainable import models

    plain = models.MODELS["small_resnet"]
    monkeypatch.setitem(
        models.MODELS,
        "small_resnet",
        lambda classes, size: torch.nn.Sequential(torch.nn.Dropout(0.3), plain(classes, size)),
    )
    fields = {"model.name": "small_resnet"}
    whole = finished(opened(Storage(str(tmp_path / "whole")), data_path, toy, fields))
    run, _ = in_pieces(Storage(str(tmp_path / "pieces")), data_path, toy, fields)
    assert outcome(run) == outcome(whole)


def test_what_was_not_saved_is_done_again(tmp_path: Path, data_path: Path, toy: Dataset) -> None:
    whole = finished(opened(Storage(str(tmp_path / "whole")), data_path, toy, MIXUP))
    storage = Storage(str(tmp_path / "killed"))
    run = opened(storage, data_path, toy, MIXUP)
    run.advance()
    run.save()
    run.advance()  # lost
    run.close()
    again = finished(opened(storage, data_path, toy, MIXUP))
    assert outcome(again) == outcome(whole)


def test_saving_by_the_clock_changes_nothing(tmp_path: Path, data_path: Path, toy: Dataset) -> None:
    seldom = finished(opened(Storage(str(tmp_path / "a")), data_path, toy, MIXUP))
    often = finished(opened(Storage(str(tmp_path / "b")), data_path, toy, MIXUP, save_every_s=1e-9), seconds=0.0)
    assert outcome(often) == outcome(seldom)


def test_killed_before_the_commit_it_only_predicts_again(storage: Storage, data_path: Path, toy: Dataset) -> None:
    first = finished(opened(storage, data_path, toy, {}))
    before = outcome(first)
    again = opened(storage, data_path, toy, {})
    assert again.progress == 1.0
    finished(again)
    assert outcome(again)[:2] == before[:2] and outcome(again)[3] == before[3]


def test_a_damaged_checkpoint_is_set_aside_and_the_run_begins_anew(
    tmp_path: Path, data_path: Path, toy: Dataset
) -> None:
    whole = finished(opened(Storage(str(tmp_path / "whole")), data_path, toy, {}))
    storage = Storage(str(tmp_path / "harmed"))
    run = opened(storage, data_path, toy, {})
    run.advance()
    run.save()
    run.close()
    path = run.folder.path("checkpoint/last/state.safetensors")
    content = bytearray(storage.read(path))
    content[-3] ^= 1
    storage.put(path, bytes(content))
    again = opened(storage, data_path, toy, {})
    assert again.position.step == 0
    assert "its content was altered" in again.notes[0] and "set aside as" in again.notes[0]
    assert len(storage.names(run.folder.path("damaged"))) == 1
    assert outcome(finished(again)) == outcome(whole)


def rewritten(run: TrainingRun, name: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Changes tensors or meta of a checkpoint as another version of this project would have written them: whole, with a
    digest that fits."""
    checkpoint = run.folder.load(name)
    step = checkpoint.meta["step"]
    path = "last/state" if name == "last" else f"{name}/{step}"
    tensors, meta = dict(checkpoint.tensors), dict(checkpoint.meta)
    change(tensors, meta)
    save_checkpoint(run.folder.storage, run.folder.path(f"checkpoint/{path}.safetensors"), tensors, meta)


def _set(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, meta: meta.__setitem__(key, value)


def _cut(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, meta: tensors.__setitem__(name, tensors[name][:1].clone())


FOREIGN: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], None], str]] = {
    "another format": ("last", _set("format", 2), "format 2, this version reads format 1"),
    "no position": ("last", lambda tensors, meta: meta.pop("position"), "does not say which weights were the best"),
    "strange best": ("last", _set("position", {"best": {"best_on_test": 3}}), "does not say which weights"),
    "strange position": ("last", _set("position", {"best": {}, "steps": 4}), "not as this version writes it"),
    "no loader": (
        "last",
        lambda tensors, meta: meta.pop("loader"),
        "not as this version writes it .KeyError: 'loader'",
    ),
    "loader of another version": (
        "last",
        _set("loader", {"version": 9, "epoch": 1, "batch": 0}),
        "version 9 cannot be",
    ),
    "loader elsewhere": (
        "last",
        _set("loader", {"version": 1, "epoch": 0, "batch": 3}),
        "3 batches were read in 4 steps",
    ),
    "other steps": ("last", _set("total_steps", 99), "total_steps 99, not 12"),
    "other classes": ("last", _set("num_classes", 5), "num_classes 5, not 3"),
    "no numerics": ("last", lambda tensors, meta: meta.pop("numerics"), "KeyError: 'numerics'"),
    "numerics of another shape": ("last", _set("numerics", []), "not as this version writes it"),
    "no optimiser": ("last", lambda tensors, meta: meta.pop("optimizer"), "KeyError: 'optimizer'"),
    "optimiser renamed": (
        "last",
        lambda tensors, meta: tensors.__setitem__("optimizer.0.average", tensors.pop("optimizer.0.exp_avg")),
        "optimiser state 0 has average, exp_avg_sq, step",
    ),
    "optimiser of another shape": ("last", _cut("optimizer.2.exp_avg"), "exp_avg is not of the parameter's shape"),
    "optimiser of another model": ("last", lambda t, meta: t.__setitem__("optimizer.999.step", t["rng.cpu"]), "999"),
    "a tensor of another shape": ("last", _cut("model.head.weight"), "checkpoint/last: its tensors are not those"),
    "a tensor of another dtype": (
        "last",
        lambda t, meta: t.__setitem__("model.head.weight", t["model.head.weight"].half()),
        "checkpoint/last: its tensors are not those",
    ),
    "a tensor less": ("last", lambda tensors, meta: tensors.pop("model.head.weight"), "its tensors are not those"),
    "no generator": ("last", lambda tensors, meta: tensors.pop("rng.cpu"), "KeyError: 'rng.cpu'"),
    "a strange generator": ("last", _cut("rng.cpu"), "not as this version writes it"),
    "best of another shape": ("best_on_test", _cut("model.head.weight"), "best_on_test: its tensors are not those"),
    "best of another step": ("best_on_test", _set("step", 8), "holds the weights of step 8"),
    "best of another run": ("best_on_test", _set("run_id", "b" * 16), "belongs to run b{16}, not to"),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, data_path: Path, toy: Dataset) -> tuple[Path, tuple[Any, ...]]:
    """A results root with a run that is saved after its first evaluation, and how the run ends."""
    root = tmp_path_factory.mktemp("begun")
    run = opened(Storage(str(root)), data_path, toy, {})
    run.advance()
    run.save()
    run.close()
    whole = finished(opened(Storage(str(tmp_path_factory.mktemp("whole"))), data_path, toy, {}))
    return root, outcome(whole)


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_another_version_wrote_is_set_aside_and_the_run_begins_anew(
    kind: str, begun: tuple[Path, tuple[Any, ...]], tmp_path: Path, data_path: Path, toy: Dataset
) -> None:
    shutil.copytree(begun[0], tmp_path / "results")
    storage = Storage(str(tmp_path / "results"))
    name, change, message = FOREIGN[kind]
    rewritten(opened(storage, data_path, toy, {}), name, change)
    again = opened(storage, data_path, toy, {})
    assert again.position.step == 0 and again.numerics_changed is False
    (note,) = again.notes
    assert re.search(message, note) and "set aside as runs/" in note and note.endswith("the run begins anew")
    if kind in ("no generator", "best of another step"):  # the last and the first that is noticed
        assert outcome(finished(again)) == begun[1]


def test_an_empty_card_does_not_cost_the_checkpoint(
    begun: tuple[Path, tuple[Any, ...]], tmp_path: Path, data_path: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory to resume is no fault of the checkpoint."""
    shutil.copytree(begun[0], tmp_path / "results")
    storage = Storage(str(tmp_path / "results"))

    def fail(*arguments: object) -> None:
        torch.empty(10**15)

    with monkeypatch.context() as patch:
        patch.setattr("trainable.training.unpack_optimizer", fail)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            opened(storage, data_path, toy, {})
    assert opened(storage, data_path, toy, {}).position.step == 4


def test_other_code_is_allowed_and_marked(
    begun: tuple[Path, tuple[Any, ...]], tmp_path: Path, data_path: Path, toy: Dataset
) -> None:
    shutil.copytree(begun[0], tmp_path / "results")
    storage = Storage(str(tmp_path / "results"))
    rewritten(opened(storage, data_path, toy, {}), "last", _set("code_sha256", "0" * 64))
    again = opened(storage, data_path, toy, {})
    assert again.position.step == 4 and not again.numerics_changed
    here = provenance.tree_sha256()[:12]
    assert again.notes == [f"resumed with other code (000000000000 to {here}); it is marked"]
    again.save()
    third = opened(storage, data_path, toy, {})
    assert third.notes == [], "said once, kept for good"
    assert third.resumed_under == [{"step": 4, "changed": {"code": ["000000000000", here]}}]
    assert outcome(finished(third)) == begun[1]


def test_a_model_that_ends_in_no_numbers_fails(
    storage: Storage, data_path: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very last step writes weights that no loss has seen."""
    run = opened(storage, data_path, toy, {})
    step = run.loop.optimizer.step

    def last_step() -> None:
        step()
        if run.position.step == run.loop.total - 1:
            with torch.no_grad():
                next(run.loop.model.parameters()).fill_(math.nan)

    monkeypatch.setattr(run.loop.optimizer, "step", last_step)
    with pytest.raises(NonFiniteLoss, match=r"the logits of 30 of 30 images of the test split .* at step 12; lower"):
        finished(run)


def test_averages_that_overflow_fail_where_the_loss_does_not_show_it(
    storage: Storage, data_path: Path, toy: Dataset
) -> None:
    """BatchNorm trains by the batch and is evaluated by its averages."""
    run = opened(storage, data_path, toy, {"model.name": "small_resnet", **MIXUP})
    norm = next(module for module in run.loop.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var.fill_(math.inf)
    norm.running_mean.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteLoss, match=r"the logits of 30 of 30 images of the test split .* at step 4"):
        finished(run)


@pytest.mark.parametrize("fields", [{}, MIXUP, {"model.name": "small_resnet", "optim.precision": "bfloat16"}])
def test_a_loss_that_is_no_number_in_the_last_batch_is_seen(
    fields: dict[str, Any], storage: Storage, data_path: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(storage, data_path, toy, fields)
    forward = run.loop.model.forward

    def poisoned(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = forward(images)
        return logits * math.nan if run.loop.model.training and run.position.step == 11 else logits

    monkeypatch.setattr(run.loop.model, "forward", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"the loss was not a finite number at step 11 \(epoch 2\.75"):
        finished(run)


def test_an_interrupt_in_the_middle_of_a_step_saves_nothing(
    tmp_path: Path, data_path: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the weights are a step ahead then."""
    whole = finished(opened(Storage(str(tmp_path / "whole")), data_path, toy, MIXUP))
    storage = Storage(str(tmp_path / "interrupted"))
    run = opened(storage, data_path, toy, MIXUP)
    run.advance()
    run.save()
    step = run.loop.optimizer.step

    def interrupted() -> None:
        step()
        raise KeyboardInterrupt

    monkeypatch.setattr(run.loop.optimizer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.advance()
    run.save()
    run.close()
    again = opened(storage, data_path, toy, MIXUP)
    assert again.position.step == 4
    assert outcome(finished(again)) == outcome(whole)


@pytest.mark.parametrize("harm", ["damaged", "gone", "other weights"])
def test_a_best_checkpoint_harmed_while_the_run_goes_on_is_mended_by_a_rerun(
    harm: str, tmp_path: Path, data_path: Path, toy: Dataset
) -> None:
    whole = finished(opened(Storage(str(tmp_path / "whole")), data_path, toy, {}))
    best = whole.position.best["best_on_test"]["step"]
    assert best < whole.position.step
    storage = Storage(str(tmp_path / "harmed"))
    run = opened(storage, data_path, toy, {})
    while run.progress < 1:
        run.advance()
    run.save()
    path = run.folder.path(f"checkpoint/best_on_test/{best}.safetensors")
    if harm == "other weights":
        rewritten(run, "best_on_test", lambda t, meta: t.update({name: torch.zeros_like(t[name]) for name in t}))
    elif harm == "gone":
        storage.delete(path)
    else:
        storage.put(path, storage.read(path)[:-1])
    with pytest.raises(CheckpointError, match="the same command begins"):
        finished(run)
    run.close()
    again = opened(storage, data_path, toy, {})
    assert again.position.step == 0
    assert outcome(finished(again)) == outcome(whole)


def test_logits_beyond_half_precision_stay_finite(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = finished(opened(storage, data_path, toy, {"budget.epochs": 1}))
    run._logits["final"] = run._logits["final"] * np.float32(1e6)
    info = AttemptInfo(attempt_id="1", number=1, history=(), started_at=datetime.now(UTC))
    logits = np.stack(run.finish(info)["logits"].to_pandas()["logits"])
    assert np.isfinite(logits).all() and np.abs(logits).max() == np.finfo(np.float16).max
    run.close()


def test_lost_best_weights_are_noticed(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {})
    run.advance()
    run.save()
    run.close()
    for name in storage.names(run.folder.path("checkpoint/best_on_test")):
        storage.delete(run.folder.path(f"checkpoint/best_on_test/{name}"))
    assert "the run begins anew" in opened(storage, data_path, toy, {}).notes[0]


def test_other_threads_are_allowed_and_marked(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {})
    run.advance()
    run.save()
    run.close()
    again = opened(storage, data_path, toy, {}, cpu_threads=2)
    torch.set_num_threads(1)
    assert again.numerics_changed and "other numerics (threads 1 to 2)" in again.notes[0]
    finished(again)


def test_best_on_test_keeps_the_first_of_equal_epochs(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = finished(opened(storage, data_path, toy, {"budget.epochs": 6}))
    tests = [row["top1"] for row in run.position.rows if row["split"] == "test"]
    assert run.position.best["best_on_test"]["eval_index"] == int(np.argmax(tests))
    assert run.position.best["best_on_test"]["top1"] == max(tests)
    best = (run._logits["best_on_test"].argmax(axis=1) == toy.test.labels).mean()
    assert best == max(tests)


def test_training_accuracy_under_mixing_stands_in_its_own_column(
    storage: Storage, data_path: Path, toy: Dataset
) -> None:
    plain = opened(storage, data_path, toy, {}).advance()[0]
    mixed = opened(storage, data_path, toy, MIXUP).advance()[0]
    assert plain["top1"] is not None and plain["top1_mixed"] is None and plain["mix_lam_mean"] is None
    assert mixed["top1"] is None and 0 <= mixed["top1_mixed"] <= 1 and 0 < mixed["mix_lam_mean"] < 1


def test_loss_is_the_two_weighted_losses() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    a, b, lam = torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([0.7, 0.7])
    log_p = torch.log_softmax(logits, dim=1)
    expected = -(0.7 * (log_p[0, 0] + log_p[1, 1]) + 0.3 * (log_p[0, 2] + log_p[1, 0])) / 2
    assert mixed_cross_entropy(logits, a, b, lam).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_loss_that_is_no_number_stops_with_its_step(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {"optim.lr": 1e30, "model.name": "small_resnet"})
    with pytest.raises(
        NonFiniteLoss, match=r"not a finite number at step \d+ \(epoch .*, lr 1e\+30\); lower optim\.lr"
    ):
        finished(run)
    run.close()


def test_a_child_starts_from_its_parents_weights(storage: Storage, data_path: Path, toy: Dataset) -> None:
    parent = finished(opened(storage, data_path, toy, {}))
    child = {
        "init.kind": "parent",
        "init.source": parent.spec.run_id,
        "init.checkpoint": "best_on_test",
        "init.surgery": ["new_head"],
        "seed": 5,
    }
    run = opened(storage, data_path, toy, child, parent=parent.spec.run_id)
    best = parent.folder.load("best_on_test").tensors
    state = run.loop.model.state_dict()
    assert all(torch.equal(state[name], best[f"model.{name}"]) for name in state if not name.startswith("head."))
    assert not torch.equal(state["head.weight"], best["model.head.weight"])
    assert run.report["new"] == run.report["dropped"] == ("head.bias", "head.weight")
    assert run.spec.run_id != parent.spec.run_id


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("cut", "not a whole checkpoint"),
        ("another run's", r"belongs to run c{16}, not to a{16}"),
        ("altered", "its content was altered"),
    ],
)
def test_a_harmed_parent_is_an_error_that_names_the_mend(
    harm: str, message: str, begun: tuple[Path, tuple[Any, ...]], tmp_path: Path, data_path: Path, toy: Dataset
) -> None:
    shutil.copytree(begun[0], tmp_path / "results")
    storage = Storage(str(tmp_path / "results"))
    run = opened(storage, data_path, toy, {})
    parent = "a" * 16 if harm == "another run's" else run.spec.run_id
    path = f"runs/{parent}/checkpoint/last/state.safetensors"
    content = storage.read(run.folder.path("checkpoint/last/state.safetensors"))
    harmed = {"cut": content[:-5], "altered": content[:-1] + b"?"}
    if harm == "another run's":
        rewritten(run, "last", _set("run_id", "c" * 16))
        harmed[harm] = storage.read(run.folder.path("checkpoint/last/state.safetensors"))
    storage.put(path, harmed[harm])
    child = {"init.kind": "parent", "init.source": parent, "init.checkpoint": "last", "seed": 5}
    with pytest.raises(
        CheckpointError, match=rf"parent run {parent}: .*{message}.* remove .*/commits/{parent}--\*\.json to have"
    ):
        opened(storage, data_path, toy, child, parent=parent)
    assert storage.read(path) == harmed[harm], "a parent's checkpoint is never set aside by its child"


def test_a_parent_of_other_classes_is_said(storage: Storage, data_path: Path, toy: Dataset) -> None:
    parent = finished(opened(storage, data_path, toy, {"data.classes": [0, 1]}))
    child = {"init.kind": "parent", "init.source": parent.spec.run_id, "init.checkpoint": "last", "seed": 5}
    with pytest.raises(WeightsError, match=r"head\.weight is \[2, \d+\], the model needs \[3, \d+\].*new_head leaves"):
        opened(storage, data_path, toy, child, parent=parent.spec.run_id)


def test_a_parent_without_weights_is_said(storage: Storage, data_path: Path, toy: Dataset) -> None:
    child = {"init.kind": "parent", "init.source": "a" * 16, "init.checkpoint": "last"}
    with pytest.raises(WeightsError, match=r"parent run a{16} has no checkpoint last .* run the parent"):
        opened(storage, data_path, toy, child, parent="a" * 16)


def test_seeds_give_other_runs(storage: Storage, data_path: Path, toy: Dataset) -> None:
    logits = [finished(opened(storage, data_path, toy, {"seed": seed}))._logits["final"] for seed in (1, 2)]
    assert (logits[0] != logits[1]).any()


def test_smaller_training_crops_are_possible_for_a_cnn(storage: Storage, data_path: Path, toy: Dataset) -> None:
    fields = {"model.name": "small_resnet", "augment.train_crop": 4}
    looked_at = opened(storage, data_path, toy, fields)
    assert next(iter(looked_at.loop.train)).images.shape == (16, 3, 4, 4)
    assert next(iter(looked_at.loop.evaluated["test"])).images.shape == (16, 3, 8, 8)
    assert finished(opened(storage, data_path, toy, fields)).done


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.content_sha256": None}, r"data\.content_sha256: toy is not prepared; a spec must be resolved"),
        ({"data.content_sha256": "0" * 64}, r"planned for 0{16}, the prepared toy is \w{16}; plan anew"),
        ({"data.image_size": 16}, r"data\.image_size: 16 pixels, but toy is prepared at 8"),
        (
            {"model.name": "small_resnet", "data.limit_train": 17},
            r"budget\.batch_size: 17 images in batches of 16 leave a last batch of one image.*BatchNorm",
        ),
        (
            {"model.name": "small_resnet", "model.bn_groups": 2, "data.limit_train": 19},
            r"19 images in batches of 16 leave a last part \(model\.bn_groups 2\) of a batch of one image",
        ),
    ],
)
def test_specs_that_cannot_run_say_why(
    fields: dict[str, Any], message: str, storage: Storage, data_path: Path, toy: Dataset
) -> None:
    with pytest.raises(SpecError, match=message):
        opened(storage, data_path, toy, fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a card where there is none")
def test_a_missing_card_is_said(storage: Storage, data_path: Path, toy: Dataset) -> None:
    with pytest.raises(SpecError, match="device: cuda was asked for, but torch sees no CUDA device here"):
        opened(storage, data_path, toy, {}, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_it_stops_and_resumes_to_the_same_bits(tmp_path: Path, data_path: Path, toy: Dataset) -> None:
    whole = finished(opened(Storage(str(tmp_path / "whole")), data_path, toy, MIXUP, device="cuda"))
    run, _ = in_pieces(Storage(str(tmp_path / "pieces")), data_path, toy, MIXUP, device="cuda")
    assert outcome(run) == outcome(whole)


def test_predictions_that_contradict_the_curve_are_refused(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {"budget.epochs": 4})
    while run.progress < 1:
        run.advance()
    best = run.position.best["best_on_test"]
    best["step"] = 4
    run.position.rows[1]["top1"] = -1.0
    run.loop.best_weights["best_on_test"] = run.loop.model.state_dict()
    with pytest.raises(
        CheckpointError, match=r"the weights kept as best_on_test give top-1 .* -1\.0000 was seen at step 4"
    ):
        finished(run)


@pytest.mark.slow
def test_resnets_little_brother_learns_cifar100(cifar100_path: Path, tmp_path: Path) -> None:
    """ResNet-18 on 1,000 real CIFAR-100 images: the loss falls and the test beats chance."""
    data = open_dataset(cifar100_path, "cifar100", verify=False)
    fields = {
        "data.dataset": "cifar100",
        "data.content_sha256": data.manifest.content_sha256,
        "data.image_size": 32,
        "data.limit_train": 1000,
        "data.limit_eval": 1000,
        "model.name": "resnet18",
        "budget.epochs": 3,
        "budget.batch_size": 40,
        "evaluate.batch_size": 256,
    }
    spec = run_spec(fields)
    storage = Storage(str(tmp_path / "results"))
    run = finished(open_run(spec, exec_spec(cifar100_path), RunFolder(storage, spec.run_id), data))
    losses = [row["loss_nats"] for row in run.position.rows if row["split"] == "train"]
    tests = [row["top1"] for row in run.position.rows if row["split"] == "test"]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.3
    assert tests[-1] > 0.03, "chance is 0.01"
    run.close()
