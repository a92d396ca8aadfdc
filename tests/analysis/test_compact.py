"""A compaction is a copy: with it, without it, behind the store or damaged, every table is the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from synthetic import design, tables_of, write_grid, write_manifest_of, write_run

import analysis.compact
from analysis.compact import compact, main, read_table
from analysis.load import load_results
from analysis.tables import Source, build
from trainable import records
from trainable.records import RecordError
from trainable.storage import Storage

SPECS = design(rows=2, seeds=3, datasets=("red",))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(analysis.compact, "WORTH_IT", 2)
    storage = Storage(str(tmp_path / "store"))
    write_grid(storage, SPECS, images=20, classes=5)
    return storage


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every path that is read from now on."""
    found: list[str] = []
    reading = Storage.read

    def read(self: Storage, path: str, **limits: int) -> bytes:
        found.append(path)
        return reading(self, path, **limits)

    monkeypatch.setattr(Storage, "read", read)
    return found


def tables(store: Storage) -> list[object]:
    return [build(Source(store, load_results(store, "made")), name) for name in ("T1", "T2", "T11")]


def trials(store: Storage) -> list[object]:
    commits = list(records.read_commits(store).values())
    return read_table(store, "trials", commits).to_pylist()


def test_tables_are_the_same_and_no_small_file_is_opened(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables(store)
    done = compact(store)
    assert done.written and done.num_commits == 6
    paths = opened(monkeypatch)
    assert tables(store) == before
    assert not any(path.startswith(("trials/", "epochs/", "provenance/")) for path in paths)
    commits = list(records.read_commits(store).values())
    for name in ("trials", "epochs", "provenance"):
        given = commits[::-1]
        assert read_table(store, name, given).to_pylist() == records.read_table(store, name, given).to_pylist()
    assert not compact(store).written and len(store.names("compacted")) == 1


def test_runs_that_came_later_are_read_from_their_own_files(store: Storage) -> None:
    compact(store)
    label = next(iter(SPECS))
    later = SPECS[label][0].model_copy(update={"seed": 9})
    write_run(store, later, tables_of(later, images=20, classes=5))
    write_manifest_of(store, {**SPECS, label: [*SPECS[label], later]}, number=2)
    row = load_results(store, "made").rows[0]
    assert [run.seed for run in row.done] == [1, 2, 3, 9]
    assert [run.trial["seed"] for run in row.done] == [1, 2, 3, 9]
    again = SPECS[label][1]
    write_run(store, again, tables_of(again, images=20, classes=5, attempt_id="a2"), "a2")
    assert load_results(store, "made").rows[0].done[1].trial["attempt_id"] == "a2", "the copy is of another commit"
    assert compact(store).num_commits == 8 and len(store.names("compacted")) == 2


def test_what_is_damaged_is_passed_over(store: Storage) -> None:
    before = trials(store)
    path = compact(store).path
    folder = path.removesuffix(".json")
    content = store.read(f"{folder}/trials.parquet")
    record = json.loads(store.read(path))
    for harmed in (content[:-50], content[:200] + b"\0" + content[201:], b""):
        store.put(f"{folder}/trials.parquet", harmed)
        assert trials(store) == before
    store.delete(f"{folder}/trials.parquet")
    assert trials(store) == before
    store.put(f"{folder}/trials.parquet", content)
    for bad in (b"{", b"[]", json.dumps({**record, "schema_version": 99}).encode()):
        store.put(path, bad)
        assert trials(store) == before
    record["stretches"]["trials"] = record["stretches"]["trials"][:-1]
    store.put(path, json.dumps(record).encode())
    assert trials(store) == before, "rows and record do not fit each other"


@pytest.mark.parametrize("table", ["trials", "epochs", "provenance"])
def test_a_record_that_gives_a_run_the_rows_of_another_is_passed_over(table: str, store: Storage) -> None:
    commits = list(records.read_commits(store).values())
    before = read_table(store, table, commits).to_pylist()
    path = compact(store).path
    record = json.loads(store.read(path))
    for harm in ("swapped", "doubled"):
        stretches = [dict(one) for one in record["stretches"][table]]
        stretches[1]["sha256"], first = stretches[0]["sha256"], stretches[1]["sha256"]
        if harm == "swapped":
            stretches[0]["sha256"] = first
        store.put(path, json.dumps({**record, "stretches": {**record["stretches"], table: stretches}}).encode())
        assert read_table(store, table, commits).to_pylist() == before


def test_a_damaged_store_is_not_copied(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    commit = next(iter(records.read_commits(store).values()))
    path = commit.file("epochs").path
    content = store.read(path)
    store.put(path, content[:-9] + b"x" + content[-8:])
    with pytest.raises(RecordError, match="its content is not what was committed"):
        compact(store)
    assert main(["--results", store.uri]) == 2 and path in capsys.readouterr().err
    assert store.names("compacted") == []


def test_the_command_says_what_it_did(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    for said in ("bytes", "as before, nothing was written"):
        assert main(["--results", store.uri]) == 0
        shown = capsys.readouterr().out
        assert "6 commits in" in shown and said in shown
