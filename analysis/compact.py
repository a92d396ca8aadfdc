"""Compaction: the small tables of all runs in a few large files beside them, for stores of thousands of runs.

    python -m analysis.compact [--results results]

    compacted/<id>/{trials,epochs,provenance}.parquet     rows of many commits, in the order of the record
    compacted/<id>.json                                   written last: those files, and of which committed file (by its
                                                          SHA-256) each stretch of rows is a copy

It is a copy and nothing else: sources stay, every reader still goes by the commits, and a row is taken from here only
where the commit's own SHA-256 stands in the record. Deleting `compacted/` loses nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets.terminal import plain
from trainable import records
from trainable.credentials import redacted
from trainable.records import RECORD_BYTES, Commit, RecordError
from trainable.schemas import SCHEMA_VERSION, SCHEMAS
from trainable.storage import Storage, StorageError

TABLES = ("trials", "epochs", "provenance")
"""Predictions, logits and steps are large enough as they are."""
WORTH_IT = 64
"""Files that are asked for together; fewer are read one by one."""


class _Stretch(BaseModel):
    """Rows of one committed file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str
    rows: int = Field(ge=0)


class _Record(BaseModel):
    """One compaction."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    sha256: dict[str, str]
    """Of the large file, by table."""
    stretches: dict[str, list[_Stretch]]
    """By table, in the order of its rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """What was done."""

    path: str
    num_commits: int
    num_bytes: int
    written: bool
    """False: the newest compaction holds the same commits."""


def compact(storage: Storage) -> Compacted:
    """Copies the small tables of every commit into large files.

    Raises:
        RecordError: a committed file is damaged; nothing is written then.
        StorageError: cannot be written.
    """
    commits = [commit for found in records.read_every_commit(storage).values() for commit in found]
    commits.sort(key=lambda commit: (commit.run_id, commit.attempt_id))
    digests = [commit.file(table).sha256 for commit in commits for table in TABLES]
    name = hashlib.sha256(" ".join([str(SCHEMA_VERSION), *digests]).encode()).hexdigest()[:16]
    path = f"compacted/{name}.json"
    if not commits or storage.exists(path):
        return Compacted(path=path, num_commits=len(commits), num_bytes=0, written=False)
    contents = {table: records.to_parquet(records.read_table(storage, table, commits)) for table in TABLES}
    record = _Record(
        schema_version=SCHEMA_VERSION,
        sha256={table: hashlib.sha256(content).hexdigest() for table, content in contents.items()},
        stretches={
            table: [_Stretch(sha256=commit.file(table).sha256, rows=commit.file(table).rows) for commit in commits]
            for table in TABLES
        },
    )
    for table, content in contents.items():
        storage.put(f"compacted/{name}/{table}.parquet", content)  # of an interrupted compaction the same may lie there
    storage.publish(path, record.model_dump_json().encode())
    num_bytes = sum(map(len, contents.values()))
    return Compacted(path=path, num_commits=len(commits), num_bytes=num_bytes, written=True)


def read_table(storage: Storage, name: str, commits: Sequence[Commit], columns: list[str] | None = None) -> pa.Table:
    """As `records.read_table`: of many commits from a compaction what stands there, the rest from their own files.

    A compaction whose record gives a run the rows of another is passed over.

    Args:
        storage: the results root.
        name: of the table.
        commits: of the runs.
        columns: only these, `run_id` among them.

    Raises:
        RecordError: a file is missing, its content is not what was committed, or it is of another run.
    """
    best: tuple[pa.Table, dict[str, tuple[int, int]]] | None = None
    if len(commits) >= WORTH_IT and name in TABLES:
        best = _best(storage, name, {commit.file(name).sha256 for commit in commits}, columns)
    if best is None:
        return _read_files(storage, name, commits, columns)
    table, places = best
    others = [commit for commit in commits if commit.file(name).sha256 not in places]
    rest = records.read_table(storage, name, others, columns)
    start = table.num_rows
    for commit in others:
        record = commit.file(name)
        places[record.sha256] = (start, record.rows)
        start += record.rows
    stretches = [places[commit.file(name).sha256] for commit in commits]
    rows = np.concatenate([np.arange(first, first + num) for first, num in stretches])
    whole = pa.concat_tables([table, rest]).unify_dictionaries().combine_chunks()
    whole = whole.take(pa.array(rows))
    owners = np.repeat([commit.run_id for commit in commits], [num for _, num in stretches])
    if not np.array_equal(whole["run_id"].to_numpy(zero_copy_only=False), owners):
        return _read_files(storage, name, commits, columns)
    return whole


def _read_files(storage: Storage, name: str, commits: Sequence[Commit], columns: list[str] | None) -> pa.Table:
    table = records.read_table(storage, name, commits, columns)
    start = 0
    for commit in commits:
        num = next((file.rows for file in commit.files if file.table == name), 0)  # not every run has every table
        check_owner(storage, commit, name, table.slice(start, num))
        start += num
    return table


def check_owner(storage: Storage, commit: Commit, name: str, table: pa.Table) -> None:
    """Refuses the rows of another run under a commit's name.

    Args:
        storage: the results root.
        commit: of the run.
        name: of the table.
        table: its rows, `run_id` among the columns.

    Raises:
        RecordError: some are of another run.
    """
    others = set(table["run_id"].unique().to_pylist()) - {commit.run_id}
    if others:
        raise RecordError(
            f"{storage.folder(commit.file(name).path)}: holds rows of run {others.pop()}, and is not of run "
            f"{commit.run_id}; move the run's commit away and run the grid again"
        )


def _best(
    storage: Storage, name: str, wanted: set[str], columns: list[str] | None
) -> tuple[pa.Table, dict[str, tuple[int, int]]] | None:
    """The compaction that holds most of the wanted files: its table, and where each file's rows lie there.

    One that cannot be read or is not what its record says is passed over: the files themselves are still there.
    """
    found: list[tuple[int, str, _Record]] = []
    for file in storage.names("compacted"):
        record = _parse(storage, f"compacted/{file}")
        if record is not None and name in record.stretches:
            held = sum(one.sha256 in wanted for one in record.stretches[name])
            found.append((held, file.removesuffix(".json"), record))
    for held, folder, record in sorted(found, key=lambda one: one[:2], reverse=True):
        path = f"compacted/{folder}/{name}.parquet"
        table = _read(storage, path, name, record, columns) if 2 * held >= len(wanted) else None
        if table is not None:
            ends = np.cumsum([one.rows for one in record.stretches[name]])
            places = {
                one.sha256: (int(end) - one.rows, one.rows)
                for one, end in zip(record.stretches[name], ends, strict=True)
            }
            return table, places
    return None


def _read(storage: Storage, path: str, name: str, record: _Record, columns: list[str] | None) -> pa.Table | None:
    schema = SCHEMAS[name] if columns is None else pa.schema([SCHEMAS[name].field(column) for column in columns])
    try:
        if hashlib.sha256(storage.read(path)).hexdigest() != record.sha256.get(name):
            return None
        table = records.read_parquet(storage, path, schema.names)
    except (FileNotFoundError, RecordError):
        return None
    num = sum(one.rows for one in record.stretches[name])
    return table.select(schema.names).cast(schema) if table.num_rows == num else None


def _parse(storage: Storage, path: str) -> _Record | None:
    """None: damaged, or of another version."""
    try:
        content: Mapping[str, Any] = json.loads(storage.read(path, at_most=RECORD_BYTES))
        record = _Record.model_validate(content)
    except (ValidationError, ValueError, RecursionError):
        return None
    return record if record.schema_version == SCHEMA_VERSION else None


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.compact`."""
    cli = argparse.ArgumentParser(
        prog="python -m analysis.compact", description="Copy the small tables of all runs into a few large files."
    )
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when it could not be done."""
    options = parser().parse_args(argv)
    try:
        storage = Storage(options.results)
        done = compact(storage)
    except (RecordError, StorageError) as error:
        print(plain(f"analysis.compact: {redacted(str(error))}"), file=sys.stderr)
        return 2
    what = f"{done.num_bytes:,} bytes" if done.written else "as before, nothing was written"
    print(plain(f"{done.num_commits:,} commits in {storage.folder(done.path)}: {what}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
