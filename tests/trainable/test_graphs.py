"""Recorded steps. On a CPU a stand-in records: it makes the warm-up steps and replays by making the step again, on the
very tensors that a graph would read; what remains for a card is CUDA's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import VIT, exec_spec, run_spec

from datasets.store import Dataset
from trainable import loop as loops
from trainable.checkpoint import RunFolder
from trainable.graphs import Record, RecordedStep, _Snapshot
from trainable.opening import open_run
from trainable.storage import Storage
from trainable.training import TrainingRun

needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
CASES: dict[str, dict[str, Any]] = {
    "adam, mixed, every step on record": {
        "augment.mix": "mixup",
        "augment.mix_alpha": 1.0,
        "evaluate.record_steps": True,
        "optim.clip_norm": 0.5,
    },
    "sgd, batchnorm": {
        "model.name": "small_resnet",
        "optim.name": "sgd",
        "optim.momentum": 0.9,
        "optim.betas": None,
        "optim.eps": None,
    },
    "dropout": {
        "model.name": "vit",
        "model.vit": {**VIT, "dropout": 0.3},
        "optim.name": "adamw",
        "optim.weight_decay": 0.1,
    },
}


def replaying(calls: list[str]) -> Record:
    """As `record_on_card`, without a card."""

    def record(step: Callable[[], None]) -> Callable[[], None]:
        for _ in range(3):
            step()

        def replay() -> None:
            calls.append("replay")
            step()

        return replay

    return record


def opened(
    storage: Storage, data_path: Path, toy: Dataset, fields: dict[str, Any], record: Record | None, device: str = "cpu"
) -> TrainingRun:
    whole = {"data.content_sha256": toy.manifest.content_sha256, "budget.epochs": 3, **fields}
    spec = run_spec(whole)
    run = open_run(spec, exec_spec(data_path, device=device), RunFolder(storage, spec.run_id), toy)
    if device == "cpu":
        run.loop._record = record
    return run


Outcome = tuple[list[dict[str, Any]], dict[str, torch.Tensor], torch.Tensor | None]


def outcome(run: TrainingRun) -> Outcome:
    """Trains to the end, before another run takes torch's generator: rows without clocks, weights, what was recorded of every step."""
    while not run.done:
        run.advance()
    run.close()
    clocks = {"ended_at", "train_s", "data_wait_s", "images_per_s", "evaluate_s"}
    rows = [{key: value for key, value in row.items() if key not in clocks} for row in run.position.rows]
    return rows, {name: value.cpu() for name, value in run.loop.model.state_dict().items()}, run.loop.steps


def assert_same(one: Outcome, other: Outcome) -> None:
    (rows, weights, steps), (own_rows, own_weights, own_steps) = one, other
    assert own_rows == rows and all(torch.equal(weights[name], own_weights[name]) for name in weights)
    assert (steps is None) == (own_steps is None) and (steps is None or torch.equal(steps, own_steps))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _short_runs_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "RECORD_FROM", 2)


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
def test_recording_and_replaying_leave_no_trace(
    fields: dict[str, Any], storage: Storage, data_path: Path, toy: Dataset, tmp_path: Path
) -> None:
    """All but the short last batch of every epoch are replays, and nothing of the run is another bit."""
    calls: list[str] = []
    run = opened(storage, data_path, toy, fields, replaying(calls))
    assert_same(outcome(run), outcome(opened(Storage(str(tmp_path / "plain")), data_path, toy, fields, None)))
    assert run.loop.not_recorded is None
    assert len(calls) == 1 + 3 * (60 // run.spec.budget.batch_size), "one was for the comparison"


def test_a_resumed_run_records_anew_and_ends_the_same(
    storage: Storage, data_path: Path, toy: Dataset, tmp_path: Path
) -> None:
    fields = CASES["dropout"]
    run = opened(storage, data_path, toy, fields, replaying([]))
    while run.position.step < 5:
        run.advance(0)
    run.save()
    run.close()
    again = opened(storage, data_path, toy, fields, replaying(calls := []))
    assert again.position.step == 5
    assert_same(outcome(again), outcome(opened(Storage(str(tmp_path / "plain")), data_path, toy, fields, None)))
    assert len(calls) > 3


@pytest.mark.parametrize("fault", ["other bits", "refused"])
def test_what_cannot_be_replayed_to_the_bit_is_not(
    fault: str, storage: Storage, data_path: Path, toy: Dataset, tmp_path: Path
) -> None:
    fields = CASES["sgd, batchnorm"]

    def record(step: Callable[[], None]) -> Callable[[], None]:
        replay = replaying([])(step)
        if fault == "refused":
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

        def wrong() -> None:
            replay()
            next(run.loop.model.parameters()).data.view(-1)[0] += 1e-6

        return wrong

    run = opened(storage, data_path, toy, fields, record)
    assert_same(outcome(run), outcome(opened(Storage(str(tmp_path / "plain")), data_path, toy, fields, None)))
    why = {"other bits": "other bits than a plain one", "refused": "not permitted when stream is capturing"}[fault]
    assert run.loop.not_recorded is not None and why in run.loop.not_recorded and "more" not in run.loop.not_recorded


@pytest.mark.parametrize(
    "fields",
    [{"optim.ema_decay": 0.9}, {"model.input_norm": "channel"}, {"model.name": "resnet18", "model.mixstyle_depth": 1}],
)
def test_steps_that_look_at_the_host_are_not_recorded(
    fields: dict[str, Any], storage: Storage, data_path: Path, toy: Dataset
) -> None:
    run = opened(storage, data_path, toy, {**CASES["sgd, batchnorm"], **fields}, None)
    run.close()
    assert not run.loop._may_record()


def test_no_number_is_equal_to_nothing_but_no_number() -> None:
    one = _Snapshot([torch.tensor([1.0, torch.nan, torch.inf]), torch.tensor([3])])
    assert one.equals([torch.tensor([1.0, torch.nan, torch.inf]), torch.tensor([3])])
    for floats, number in (([1.0, 0.0, torch.inf], 3), ([1.0, torch.nan, 3.4e38], 3), ([1.0, torch.nan, torch.inf], 4)):
        assert not one.equals([torch.tensor(floats), torch.tensor([number])])


def test_a_replay_reads_the_batch_it_is_given() -> None:
    weight = torch.zeros(())

    def step(images: torch.Tensor) -> torch.Tensor:
        weight.add_(images.sum())
        return images.mean()

    recorded = RecordedStep(step, (torch.ones(4),), lambda: [weight], replaying([]))
    assert weight == 0 and recorded.num_images == 4
    assert recorded(torch.full((4,), 2.0)) == 2 and weight == 8
    assert recorded(torch.full((4,), 3.0)) == 3 and weight == 20


@pytest.mark.gpu
@needs_card
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("fields", CASES.values(), ids=CASES.keys())
def test_on_a_card_a_recorded_run_is_the_plain_one(
    fields: dict[str, Any], precision: str, storage: Storage, data_path: Path, toy: Dataset, tmp_path: Path
) -> None:
    fields = {**fields, "optim.precision": precision}
    run = opened(storage, data_path, toy, fields, None, device="cuda")
    found = outcome(run)
    plain = opened(Storage(str(tmp_path / "plain")), data_path, toy, fields, None, device="cuda")
    plain.loop._record = None
    assert_same(found, outcome(plain))
    assert run.loop.not_recorded is None and run.loop._recorded is not None
