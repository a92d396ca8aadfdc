"""Stopped anywhere, killed, harmed or resumed by another version: it ends with the same bits, or says what differs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from running import MIXUP, finished, opened, outcome, rewritten, set_meta
from toy import VIT

from datasets.store import Dataset
from trainable import provenance
from trainable.checkpoint import CheckpointError
from trainable.storage import Storage
from trainable.training import TrainingRun

pytestmark = pytest.mark.usefixtures("no_garbage")


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


def _cut(name: str) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, meta: tensors.__setitem__(name, tensors[name][:1].clone())


FOREIGN: dict[str, tuple[str, Callable[[dict[str, Any], dict[str, Any]], None], str]] = {
    "another format": ("last", set_meta("format", 2), "format 2, this version reads format 1"),
    "no position": ("last", lambda tensors, meta: meta.pop("position"), "does not say which weights were the best"),
    "strange best": ("last", set_meta("position", {"best": {"best_on_test": 3}}), "does not say which weights"),
    "strange position": ("last", set_meta("position", {"best": {}, "steps": 4}), "not as this version writes it"),
    "no loader": (
        "last",
        lambda tensors, meta: meta.pop("loader"),
        "not as this version writes it .KeyError: 'loader'",
    ),
    "loader of another version": (
        "last",
        set_meta("loader", {"version": 9, "epoch": 1, "batch": 0}),
        "version 9 cannot be",
    ),
    "loader elsewhere": (
        "last",
        set_meta("loader", {"version": 1, "epoch": 0, "batch": 3}),
        "3 batches were read in 4 steps",
    ),
    "other steps": ("last", set_meta("total_steps", 99), "total_steps 99, not 12"),
    "other classes": ("last", set_meta("num_classes", 5), "num_classes 5, not 3"),
    "no numerics": ("last", lambda tensors, meta: meta.pop("numerics"), "KeyError: 'numerics'"),
    "numerics of another shape": ("last", set_meta("numerics", []), "not as this version writes it"),
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
    "best of another step": ("best_on_test", set_meta("step", 8), "holds the weights of step 8"),
    "best of another run": ("best_on_test", set_meta("run_id", "b" * 16), "belongs to run b{16}, not to"),
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
    rewritten(opened(storage, data_path, toy, {}), "last", set_meta("code_sha256", "0" * 64))
    again = opened(storage, data_path, toy, {})
    assert again.position.step == 4 and not again.numerics_changed
    here = provenance.tree_sha256()[:12]
    assert again.notes == [f"resumed with other code (000000000000 to {here}); it is marked"]
    again.save()
    third = opened(storage, data_path, toy, {})
    assert third.notes == [], "said once, kept for good"
    assert third.resumed_under == [{"step": 4, "changed": {"code": ["000000000000", here]}}]
    assert outcome(finished(third)) == begun[1]


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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card_it_stops_and_resumes_to_the_same_bits(tmp_path: Path, data_path: Path, toy: Dataset) -> None:
    whole = finished(opened(Storage(str(tmp_path / "whole")), data_path, toy, MIXUP, device="cuda"))
    run, _ = in_pieces(Storage(str(tmp_path / "pieces")), data_path, toy, MIXUP, device="cuda")
    assert outcome(run) == outcome(whole)


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
        rewritten(run, "last", set_meta("run_id", "c" * 16))
        harmed[harm] = storage.read(run.folder.path("checkpoint/last/state.safetensors"))
    storage.put(path, harmed[harm])
    child = {"init.kind": "parent", "init.source": parent, "init.checkpoint": "last", "seed": 5}
    with pytest.raises(
        CheckpointError, match=rf"parent run {parent}: .*{message}.* remove .*/commits/{parent}--\*\.json to have"
    ):
        opened(storage, data_path, toy, child, parent=parent)
    assert storage.read(path) == harmed[harm], "a parent's checkpoint is never set aside by its child"
