"""The results store: Parquet first, the commit record last; only whole attempts count."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from toy import exec_spec, run_spec

from datasets.store import Dataset
from trainable import records, schemas
from trainable.attempt import Attempt
from trainable.metrics import summarise
from trainable.records import RecordError
from trainable.storage import Storage


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data_path: Path, toy: Dataset) -> tuple[Storage, str]:
    """A store with one finished run."""
    storage = Storage(str(tmp_path_factory.mktemp("results")))
    spec = run_spec({"data.content_sha256": toy.manifest.content_sha256})
    attempt = Attempt(spec, exec_spec(data_path), storage)
    while not attempt.done:
        attempt.advance()
    return storage, spec.run_id


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "results"))
    return Storage(request.getfixturevalue("s3_uri").format(name=uuid.uuid4().hex))


@pytest.fixture(scope="module")
def tables(done: tuple[Storage, str]) -> dict[str, pa.Table]:
    storage, run_id = done
    commit = records.read_commits(storage)[run_id]
    return {name: records.read_table(storage, name, [commit]) for name in schemas.SCHEMAS}


def commit(store: Storage, tables: dict[str, pa.Table], run_id: str = "a" * 16, attempt: str = "1") -> records.Commit:
    return records.commit_run(store, run_id=run_id, attempt_id=attempt, dataset="toy", tables=tables)


class TestContract:
    def test_what_is_committed_is_read(self, store: Storage, tables: dict[str, pa.Table]) -> None:
        written = commit(store, tables)
        found = records.read_commits(store)
        assert found == {"a" * 16: written}
        for name in schemas.SCHEMAS:
            assert records.read_table(store, name, found.values()).equals(tables[name])

    def test_the_commit_names_every_file_with_rows_bytes_and_sha256(
        self, store: Storage, tables: dict[str, pa.Table]
    ) -> None:
        for record in commit(store, tables).files:
            content = store.read(record.path)
            assert record.bytes == len(content) and record.rows == tables[record.table].num_rows
            assert record.sha256 == hashlib.sha256(content).hexdigest()

    def test_an_attempt_is_committed_once(self, store: Storage, tables: dict[str, pa.Table]) -> None:
        commit(store, tables)
        with pytest.raises(FileExistsError, match="results are never overwritten"):
            commit(store, tables)

    def test_the_newest_commit_of_a_run_counts(self, store: Storage, tables: dict[str, pa.Table]) -> None:
        commit(store, tables, attempt="1")
        time.sleep(0.01)
        commit(store, tables, attempt="0")
        assert records.read_commits(store)["a" * 16].attempt_id == "0"

    def test_attempts_append(self, store: Storage) -> None:
        records.start_attempt(store, "a" * 16, "1", {"host": "h"})
        records.end_attempt(store, "a" * 16, "1", "failed", "boom")
        time.sleep(0.001)
        records.start_attempt(store, "a" * 16, "2", {})
        records.start_attempt(store, "b" * 16, "3", {})
        first, second = records.read_attempts(store, ["a" * 16])
        assert (first.outcome, first.error, second.outcome, second.ended_at) == ("failed", "boom", None, None)
        assert len(records.read_attempts(store)) == 3

    def test_files_without_a_commit_do_not_count(self, store: Storage, tables: dict[str, pa.Table]) -> None:
        path = commit(store, tables).file("predictions").path
        store.delete(f"commits/{'a' * 16}--1.json")
        assert store.exists(path) and records.read_commits(store) == {}

    def test_a_commit_that_lost_a_file_does_not_count(self, store: Storage, tables: dict[str, pa.Table]) -> None:
        store.delete(commit(store, tables).file("epochs").path)
        assert records.read_commits(store) == {}

    def test_a_cut_file_does_not_count(self, store: Storage, tables: dict[str, pa.Table]) -> None:
        path = commit(store, tables).file("epochs").path
        store.put(path, store.read(path)[:-1])
        assert records.read_commits(store) == {}

    def test_an_altered_file_is_refused_by_name(self, store: Storage, tables: dict[str, pa.Table]) -> None:
        path = commit(store, tables).file("predictions").path
        content = bytearray(store.read(path))
        content[50] ^= 1
        store.put(path, bytes(content))
        with pytest.raises(RecordError, match=r"a{16}--1\.parquet(\?\S+)?: its content is not what was committed"):
            records.read_table(store, "predictions", records.read_commits(store).values())


def test_a_newer_schema_is_named(storage: Storage) -> None:
    storage.put("commits/x--1.json", json.dumps({"schema_version": 99}).encode())
    with pytest.raises(RecordError, match=r"x--1\.json: written with schema version 99, .* update this project"):
        records.read_commits(storage)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"schema_version": "1"}', b'{"schema_version": 1}', b"\xff\x00"],
)
def test_a_damaged_commit_record_is_none_and_is_said(
    storage: Storage, tables: dict[str, pa.Table], content: bytes
) -> None:
    commit(storage, tables)
    storage.put(f"commits/{'a' * 16}--1.json", content)
    unusable: list[str] = []
    assert records.read_commits(storage, unusable=unusable) == {}
    (line,) = unusable
    assert line == f"{storage.uri}/commits/{'a' * 16}--1.json: not a whole commit record; it does not count"
    commit(storage, tables, attempt="2")
    unusable.clear()
    assert list(records.read_commits(storage, unusable=unusable)) == ["a" * 16] and unusable == []


def test_a_commit_record_cut_anywhere_is_none(storage: Storage, tables: dict[str, pa.Table]) -> None:
    commit(storage, tables)
    path = f"commits/{'a' * 16}--1.json"
    whole = storage.read(path)
    for length in range(0, len(whole), 97):
        storage.put(path, whole[:length])
        assert records.read_commits(storage) == {}


def test_a_commit_record_of_another_run_is_none(storage: Storage, tables: dict[str, pa.Table]) -> None:
    commit(storage, tables)
    storage.put(f"commits/{'b' * 16}--1.json", storage.read(f"commits/{'a' * 16}--1.json"))
    assert list(records.read_commits(storage)) == ["a" * 16]


def test_lost_and_cut_files_are_said(storage: Storage, tables: dict[str, pa.Table]) -> None:
    for run_id in ("a" * 16, "b" * 16):
        commit(storage, tables, run_id)
    storage.delete(f"epochs/{'a' * 16}--1.parquet")
    storage.put(f"trials/{'b' * 16}--1.parquet", b"PAR1")
    unusable: list[str] = []
    assert records.read_commits(storage, unusable=unusable) == {}
    assert f"epochs/{'a' * 16}--1.parquet is missing; it does not count" in unusable[0]
    assert f"trials/{'b' * 16}--1.parquet is 4 bytes and not " in unusable[1]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"started_at": "yesterday"}', b'{"ended_at": 1}'])
def test_damaged_attempt_records_count_by_their_names(storage: Storage, content: bytes) -> None:
    for number in (1, 2, 3):
        records.start_attempt(storage, "a" * 16, str(number), {"number": number})
        records.end_attempt(storage, "a" * 16, str(number), "failed", "boom")
    storage.put(f"attempts/{'a' * 16}--1.json", content)
    storage.put(f"attempts/{'a' * 16}--3.end.json", content)
    found = {record.attempt_id: record for record in records.read_attempts(storage)}
    assert {key: record.outcome for key, record in found.items()} == {"1": "failed", "2": "failed", "3": "stopped"}
    assert all(record.ended_at is not None and record.ended_at >= record.started_at for record in found.values())


def test_attempts_are_ordered_by_number_when_the_clock_was_set_back(storage: Storage) -> None:
    for number, hour in ((1, 12), (2, 3), (3, 7)):
        record = {"started_at": f"2026-01-01T{hour:02}:00:00+00:00", "number": number}
        records.start_attempt(storage, "a" * 16, f"{hour:02}", record)
        records.end_attempt(storage, "a" * 16, f"{hour:02}", "stopped", None)
    end = f"attempts/{'a' * 16}--12.end.json"
    storage.put(end, json.dumps({**json.loads(storage.read(end)), "ended_at": "2026-01-01T02:00:00+00:00"}).encode())
    found = records.read_attempts(storage)
    assert [record.attempt_id for record in found] == ["12", "03", "07"]
    assert found[0].ended_at == found[0].started_at, "no attempt took less than no time"


def test_a_store_of_the_first_schema_is_read(storage: Storage, tables: dict[str, pa.Table]) -> None:
    """Columns that came later are null."""
    written = commit(storage, {**tables, "trials": tables["trials"]})
    old = records.to_parquet(tables["trials"].drop_columns(["attempt_resumed_under_json"]))
    record = written.file("trials")
    storage.put(record.path, old)
    changed = {"bytes": len(old), "sha256": hashlib.sha256(old).hexdigest()}
    files = [file.model_copy(update=changed if file.table == "trials" else {}) for file in written.files]
    first = written.model_copy(update={"schema_version": 1, "files": tuple(files)})
    storage.put(f"commits/{'a' * 16}--1.json", first.model_dump_json().encode())
    (found,) = records.read_commits(storage).values()
    trials = records.read_table(storage, "trials", [found])
    assert trials.schema == schemas.TRIALS and trials["attempt_resumed_under_json"].to_pylist() == [None]
    one = records.read_table(storage, "trials", [found], ["run_id", "attempt_resumed_under_json"])
    assert one.column_names == ["run_id", "attempt_resumed_under_json"]


def test_one_row_per_trial_with_metrics_that_follow_from_predictions(tables: dict[str, pa.Table]) -> None:
    (trial,) = tables["trials"].to_pylist()
    frame = tables["predictions"].to_pandas()
    assert sorted(frame["eval_name"].unique()) == ["best_on_test", "final"]
    for name, part in frame.groupby("eval_name", observed=True):
        assert part["sample_id"].tolist() == list(range(30))
        arrays = {column: part[column].to_numpy() for column in part.columns}
        for metric, value in summarise(arrays, pd.Series(trial["classes"]).to_numpy()).items():
            assert trial[f"{name}_{metric}"] == value
    assert trial["final_step"] == 12 and trial["peak_memory_bytes"] > 1e7 and trial["train_images_per_s"] > 0
    assert trial["best_on_val_top1"] is None


def test_epochs_are_keyed_by_evaluation_and_split(tables: dict[str, pa.Table]) -> None:
    frame = tables["epochs"].to_pandas()
    assert frame[["eval_index", "split"]].drop_duplicates().shape[0] == len(frame) == 6
    assert frame["epoch"].tolist() == [1, 1, 2, 2, 3, 3] and frame["step"].tolist() == [4, 4, 8, 8, 12, 12]
    assert frame["loss_nats"].notna().all()
    assert frame["num_images"].tolist() == [60, 30] * 3, "every epoch counts its own images"


def test_logits_give_the_predictions(tables: dict[str, pa.Table]) -> None:
    logits = tables["logits"].to_pandas()
    assert tables["logits"].schema.field("logits").type.value_type == pa.float16()
    assert all(len(row) == 3 for row in logits["logits"])
    assert tables["predictions"]["pred"].to_pylist() == [int(row.argmax()) for row in logits["logits"]]


def test_provenance_says_with_what(tables: dict[str, pa.Table]) -> None:
    (row,) = tables["provenance"].to_pylist()
    assert run_spec().model_validate_json(row["spec_json"]).seed == 1
    assert json.loads(row["numerics_json"])["threads"] == 1
    assert set(json.loads(row["host_versions_json"])) >= {"python", "torch", "timm", "numpy"}
    assert len(row["code_tree_sha256"]) == 64 and row["data_source"]


def test_volatile_columns_are_named_so() -> None:
    volatile = {name for schema in schemas.SCHEMAS.values() for name in schema.names if schemas.is_volatile(name)}
    assert volatile >= {"attempt_id", "train_s", "ended_at", "peak_memory_bytes", "code_git_sha", "host_device"}
    assert not volatile & {"run_id", "final_top1", "numerics_json", "weights_report_json", "epochs", "steps"}


def test_pandas_opens_the_folders_as_they_are(done: tuple[Storage, str]) -> None:
    storage, run_id = done
    assert storage.local_root is not None
    predictions = pd.read_parquet(storage.local_root / "predictions")
    assert len(predictions) == 60 and set(predictions["dataset"]) == {"toy"}
    assert pd.read_parquet(storage.local_root / "trials")["run_id"].tolist() == [run_id]
    classes = pd.read_parquet(storage.local_root / "dims" / "classes")
    assert classes["name"].tolist() == ["a", "b", "c"]
    samples = pd.read_parquet(storage.local_root / "dims" / "samples")
    test = samples[samples["split"] == "test"].set_index("sample_id")
    final = predictions[predictions["eval_name"] == "final"].set_index("sample_id")
    assert (test["label"] == final["label"]).all() and samples["pixel_sha1"].str.len().eq(40).all()


def test_table_folders_hold_finished_parquet_only(done: tuple[Storage, str]) -> None:
    root = done[0].local_root
    assert root is not None
    for name in ("trials", "epochs", "predictions", "logits", "provenance", "dims"):
        assert all(path.suffix == ".parquet" for path in (root / name).rglob("*") if path.is_file())


WRITER = """
import sys
import pyarrow.parquet as pq
from trainable import records
from trainable.storage import Storage
root, source, run_id = sys.argv[1:]
tables = {name: pq.read_table(f"{source}/{name}.parquet") for name in ("trials", "epochs", "predictions", "logits", "provenance")}
print("ready", flush=True)
number = 0
while True:
    records.commit_run(Storage(root), run_id=run_id, attempt_id=f"{number:06d}", dataset="toy", tables=tables)
    number += 1
"""


@pytest.mark.slow
def test_killed_writers_leave_nothing_that_counts_but_is_not_whole(
    storage: Storage, tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    """Twelve writers, each killed at a moment of its own: every commit is whole, down to the hash of its files."""
    import pyarrow.parquet as pq

    for name, table in tables.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    arguments = [sys.executable, "-c", WRITER, str(storage.local_root), str(tmp_path)]
    writers = []
    for number in range(12):
        process = subprocess.Popen([*arguments, f"{number:016x}"], stdout=subprocess.PIPE, text=True)
        writers.append(process)
        if len(writers) % 2 == 0:
            for one in writers[-2:]:
                assert one.stdout is not None and one.stdout.readline() == "ready\n"
            time.sleep(0.05 + 0.017 * number)
            for one in writers[-2:]:
                os.kill(one.pid, signal.SIGKILL)
                one.wait()
                one.stdout.close()  # type: ignore[union-attr]
    names = storage.names("commits")
    assert len(names) > 12
    for name in names:
        parsed = records._parse_commit(storage, f"commits/{name}")
        for table in schemas.SCHEMAS:
            assert records.read_table(storage, table, [parsed]).num_rows == tables[table].num_rows
