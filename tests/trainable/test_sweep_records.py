"""The log of a sweep's decisions, and what its trials reached on the hold-out."""

from __future__ import annotations

import json
import uuid

import pytest

from trainable.records import RecordError
from trainable.storage import Storage
from trainable.sweep_records import DecisionLog, pruned, read_scores

FIRST = {"kind": "suggest", "row": "a", "value": 0.1, "runs": {"1": "0123456789abcdef"}}


def log(storage: Storage, *, write: bool = True) -> DecisionLog:
    return DecisionLog(storage, "lr_sweep", "full", write=write)


@pytest.mark.parametrize("where", ["local", "s3"])
def test_decisions_are_appended_and_read_in_their_order(
    where: str, request: pytest.FixtureRequest, storage: Storage
) -> None:
    if where == "s3":
        storage = Storage(request.getfixturevalue("s3_uri").format(name=uuid.uuid4().hex))
    one = log(storage)
    one.add([FIRST, {**FIRST, "row": "b"}])
    one.add([])
    for number in range(5):
        one.add([{"kind": "rung", "number": number}])
    log(storage).add([{"kind": "choose", "value": [0.1, 2]}])
    read = log(storage)
    assert read.decisions == [*one.decisions, {"kind": "choose", "value": [0.1, 2]}]
    assert len(storage.names("sweeps/lr_sweep/full")) == 7, "one file for decisions that were taken together"
    assert read.of("suggest") == [FIRST, {**FIRST, "row": "b"}]


def test_order_does_not_hang_on_the_clock(storage: Storage) -> None:
    one = log(storage)
    for number in range(3):
        one.add([{"kind": "rung", "number": number}])
    names = storage.names("sweeps/lr_sweep/full")
    for name, new in zip(names, reversed("abc"), strict=True):
        storage.put(f"sweeps/lr_sweep/full/{new}.json", storage.read(f"sweeps/lr_sweep/full/{name}"))
        storage.delete(f"sweeps/lr_sweep/full/{name}")
    assert [decision["number"] for decision in log(storage).decisions] == [0, 1, 2]


def test_a_dry_run_keeps_decisions_to_itself(storage: Storage) -> None:
    one = log(storage, write=False)
    one.add([FIRST])
    assert one.decisions == [FIRST] and log(storage).decisions == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no decisions of a sweep; move it away and run the sweep again"),
        *((content, "no decisions of a sweep") for content in ("", "{}", "[]", "null", '{"schema_version": "1"}')),
        (json.dumps({"schema_version": 1, "number": "x", "decisions": []}), "no decisions of a sweep"),
        (json.dumps({"schema_version": 1, "number": 1, "decisions": [{}]}), "no decisions of a sweep"),
        (json.dumps({"schema_version": 2, "number": 1, "decisions": []}), "written with version 2, this one reads up"),
    ],
)
def test_a_damaged_log_is_refused(storage: Storage, content: str, message: str) -> None:
    storage.put("sweeps/lr_sweep/full/x.json", content.encode())
    with pytest.raises(RecordError, match=message):
        log(storage)


def test_early_ends_are_stops_and_divergences() -> None:
    stop = {"kind": "rung", "action": "stop", "run_id": "a"}
    more = [{"kind": "rung", "action": "continue", "run_id": "b"}, {"kind": "diverged", "run_id": "c"}, FIRST]
    assert pruned([stop, *more]) == {"a": stop, "c": more[1]}


def test_runs_that_are_not_there_have_no_score(storage: Storage) -> None:
    assert read_scores(storage, ["x"]) == {}
