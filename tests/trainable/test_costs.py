"""Records of measured costs: written by finished runs, found by shape, never trusted blindly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy import exec_spec, run_spec

from trainable import provenance
from trainable.attempt import Attempt, RunFailed, is_out_of_memory
from trainable.costs import NEWEST, CostRecord, peak_memory, read_costs, shape_of, write_cost
from trainable.spec import RunSpec
from trainable.storage import Storage
from trainable.training import TrainingRun


def finish(spec: RunSpec, data_path: Path, storage: Storage) -> Attempt:
    attempt = Attempt(spec, exec_spec(data_path), storage)
    while not attempt.done:
        attempt.advance()
    return attempt


def test_a_finished_run_leaves_what_it_cost(data_path: Path, toy_spec: RunSpec, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    attempt = finish(toy_spec, data_path, storage)
    (record,) = read_costs(storage, [shape_of(toy_spec)])[shape_of(toy_spec)]
    assert (record.run_id, record.attempt_id, record.source) == (toy_spec.run_id, attempt.info.attempt_id, "run")
    assert (record.device, record.threads, record.gpu_fraction) == ("cpu", 1, 0.0)
    assert 0 < record.seconds_per_step < 5 and 0 < record.seconds_per_evaluated_image < 5
    assert record.setup_s is not None and 1e8 < record.peak_memory_bytes < 1e11
    assert peak_memory(storage, [record.attempt_id, "other"]) == {record.attempt_id: record.peak_memory_bytes}


def test_a_resumed_run_does_not_say_how_long_opening_took(data_path: Path, toy_spec: RunSpec, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    first = Attempt(toy_spec, exec_spec(data_path), storage)
    first.advance()
    first.stop()
    finish(toy_spec, data_path, storage)
    (record,) = read_costs(storage, [shape_of(toy_spec)])[shape_of(toy_spec)]
    assert record.setup_s is None


def test_only_the_newest_records_of_the_wanted_shapes_are_read(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for number in range(NEWEST + 3):
        write_cost(storage, _record("a" * 12, f"2026{number:04}"))
    write_cost(storage, _record("b" * 12, "2026"))
    storage.put(f"costs/{'a' * 12}--20269999.json", b"not JSON")
    found = read_costs(storage, ["a" * 12, "c" * 12])
    assert [record.attempt_id for record in found["a" * 12]] == [f"2026{n:04}" for n in range(4, NEWEST + 3)]
    assert set(found) == {"a" * 12}


def test_a_damaged_record_is_no_hint(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for number in (1, 2):
        write_cost(storage, _record("a" * 12, str(number)))
    for content in (b"", b"{", b"\xff"):
        storage.put(f"costs/{'a' * 12}--1.json", content)
        assert [record.attempt_id for record in read_costs(storage, ["a" * 12])["a" * 12]] == ["2"]
        assert peak_memory(storage, ["1", "2"]) == {"2": 1}


def test_the_peak_is_of_this_run_alone() -> None:
    """A process that trained something larger before must not report that."""
    device = torch.device("cpu")
    large = torch.ones(200 * 2**20 // 4)
    high = provenance.peak_memory_bytes(device)
    del large
    provenance.reset_peak_memory(device)
    assert provenance.peak_memory_bytes(device) < high - 150 * 2**20


@pytest.mark.parametrize(
    ("error", "known"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
            True,
        ),
        (RuntimeError("size mismatch"), False),
    ],
)
def test_an_out_of_memory_is_told_from_other_failures(
    data_path: Path, toy_spec: RunSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, known: bool
) -> None:
    assert is_out_of_memory(error) is known

    def fail(self: TrainingRun, seconds: float) -> None:
        raise error

    monkeypatch.setattr(TrainingRun, "advance", fail)
    attempt = Attempt(toy_spec, exec_spec(data_path), Storage(str(tmp_path)))
    with pytest.raises(RunFailed) as failed:
        attempt.advance()
    assert failed.value.out_of_memory is known
    (end,) = (json.loads(path.read_text()) for path in (tmp_path / "attempts").glob("*.end.json"))
    assert end["outcome"] == "failed" and type(error).__name__ in end["error"]


def test_torch_says_what_the_rule_expects() -> None:
    """The CPU allocator's own words, which have no class of their own."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert is_out_of_memory(error.value)


def _record(shape: str, attempt_id: str) -> CostRecord:
    return CostRecord(
        shape=shape,
        run_id=run_spec().run_id,
        attempt_id=attempt_id,
        source="run",
        device="cpu",
        device_name="x",
        threads=1,
        gpu_fraction=0.0,
        seconds_per_step=1.0,
        seconds_per_evaluated_image=1.0,
        setup_s=None,
        peak_memory_bytes=1,
    )
