"""Writes and reads the results store over any `Storage`: Parquet tables, commits, attempts.

A run's tables are written first, each whole or absent; the commit record is written last and is the only mark of
success. Readers open the files that commits name, never a folder's listing. Nothing recorded is ever overwritten.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from datasets.store import NAME as DATASET_NAME
from trainable.schemas import OPTIONAL, PARTITIONED, SCHEMA_VERSION, SCHEMAS
from trainable.storage import MAX_READ_BYTES, Storage

RUN_ID = r"^[0-9a-f]{16}$"
ATTEMPT_ID = r"^[A-Za-z0-9][A-Za-z0-9.-]{0,63}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""What a grid or a sweep may be called: its name is a folder's. (`..` cannot begin with a letter or a digit.)"""
RECORD_BYTES = 256 << 20
"""A manifest of 10,000 rows takes 10 MB; no other record comes near."""
MAX_ROWS = 20_000_000
"""Of one file; ImageNet's test images with three evaluations make 150,000."""
MAX_LIST = 1 << 15
"""Values a row of a list column may have: class numbers are int16."""


class RecordError(Exception):
    """The results store holds something that cannot be read as whole; the message names it and the mend."""


class FileRecord(BaseModel):
    """One file of a commit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    path: str
    """Relative to the results root."""
    rows: int
    bytes: int
    sha256: str


class Commit(BaseModel):
    """The mark that an attempt finished its run: which files it wrote."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    run_id: str = Field(pattern=RUN_ID)
    attempt_id: str = Field(pattern=ATTEMPT_ID)
    dataset: str = Field(pattern=DATASET_NAME)
    committed_at: datetime
    files: tuple[FileRecord, ...]

    def file(self, table: str) -> FileRecord:
        """The record of one table."""
        return next(record for record in self.files if record.table == table)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptRecord:
    """One attempt at a run, as far as it got."""

    run_id: str
    attempt_id: str
    host: str
    """Name of the machine that trained; empty where it was not recorded."""
    pid: int | None
    """Of the process that trained, on `host`."""
    driver: tuple[str, int] | None
    """Machine and process that scheduled it; None where it schedules itself."""
    number: int
    """1 for the first attempt at the run; 0 where an older version did not say."""
    started_at: datetime
    ended_at: datetime | None
    """None: killed, or still running."""
    outcome: str | None
    """done, failed, stopped; None: killed, or still running."""
    error: str | None


def commit_run(
    storage: Storage, *, run_id: str, attempt_id: str, dataset: str, tables: Mapping[str, pa.Table]
) -> Commit:
    """Writes an attempt's tables, of which those of OPTIONAL may be left out, then its commit record.

    Raises:
        StorageError: cannot be written; without a commit record nothing of it counts.
        FileExistsError: this attempt was committed before.
    """
    files = []
    for name, schema in SCHEMAS.items():
        if name in OPTIONAL and name not in tables:
            continue
        content = to_parquet(tables[name].cast(schema))
        path = _table_path(name, dataset, run_id, attempt_id)
        storage.publish(path, content)
        files.append(
            FileRecord(
                table=name,
                path=path,
                rows=tables[name].num_rows,
                bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    commit = Commit(
        schema_version=SCHEMA_VERSION,
        run_id=run_id,
        attempt_id=attempt_id,
        dataset=dataset,
        committed_at=datetime.now(UTC),
        files=tuple(files),
    )
    storage.publish(f"commits/{run_id}--{attempt_id}.json", commit.model_dump_json(indent=1).encode())
    return commit


def _table_path(name: str, dataset: str, run_id: str, attempt_id: str) -> str:
    folder = f"{name}/dataset={dataset}" if name in PARTITIONED else name
    return f"{folder}/{run_id}--{attempt_id}.parquet"


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file (zstd).

    Fractions and lists get no dictionary: they hardly repeat, and a file of logits without one is read four times as
    fast.
    """
    repeated = [
        field.name for field in table.schema if not (pa.types.is_nested(field.type) or pa.types.is_floating(field.type))
    ]
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", use_dictionary=repeated)
    return sink.getvalue()


def read_commits(
    storage: Storage, run_ids: Iterable[str] | None = None, unusable: list[str] | None = None
) -> dict[str, Commit]:
    """The newest commit of every run (or of the given ones) whose files are all there in full size.

    A commit that lost a file, or whose record is damaged, does not count: its run is trained again.

    Args:
        storage: the results root.
        run_ids: the runs to look for.
        unusable: gets a line for every commit that does not count, of runs that have none that does.

    Raises:
        RecordError: a commit record of a newer version of this project.
        StorageError: the storage cannot be read.
    """
    faults: list[tuple[str, str]] = []
    newest = {run_id: found[-1] for run_id, found in read_every_commit(storage, run_ids, faults).items()}
    if unusable is not None:
        unusable += [line for run_id, line in faults if run_id not in newest]
    return newest


def read_every_commit(
    storage: Storage, run_ids: Iterable[str] | None = None, faults: list[tuple[str, str]] | None = None
) -> dict[str, list[Commit]]:
    """All commits of every run (or of the given ones) whose files are all there in full size, oldest first.

    Args:
        storage: the results root.
        run_ids: the runs to look for.
        faults: gets the run id of every commit that does not count, and a line that says why.

    Raises:
        RecordError: a commit record of a newer version of this project.
        StorageError: the storage cannot be read.
    """
    wanted = None if run_ids is None else set(run_ids)
    found: dict[str, list[Commit]] = {}
    for name in storage.names("commits"):
        run_id = name.split("--")[0]
        if wanted is not None and run_id not in wanted:
            continue
        commit = _parse_commit(storage, f"commits/{name}")
        if (fault := _fault(storage, commit)) is not None:
            if faults is not None:
                faults.append((run_id, f"{storage.folder(f'commits/{name}')}: {fault}; it does not count"))
        elif commit is not None:
            found.setdefault(run_id, []).append(commit)
    for commits in found.values():
        commits.sort(key=lambda commit: (commit.committed_at, commit.attempt_id))
    return found


def _fault(storage: Storage, commit: Commit | None) -> str | None:
    """Why a commit does not count."""
    if commit is None:
        return "not a whole commit record"
    for record in commit.files:
        size = storage.size(record.path)
        if size != record.bytes:
            known = "missing" if size is None else f"{size:,} bytes and not {record.bytes:,}"
            return f"{record.path} is {known}"
    return None


def _parse_commit(storage: Storage, path: str) -> Commit | None:
    """None: not a commit record, or not a whole one."""
    content = storage.read(path, at_most=RECORD_BYTES)
    try:
        version = json.loads(content)["schema_version"]
        newer = version > SCHEMA_VERSION
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if newer:
        raise RecordError(
            f"{storage.folder(path)}: written with schema version {version}, this version reads up to "
            f"{SCHEMA_VERSION}; update this project"
        )
    try:
        commit = Commit.model_validate_json(content)
    except (ValidationError, RecursionError):
        return None
    return commit if _names_its_own(commit, path) else None


def _names_its_own(commit: Commit, path: str) -> bool:
    """Whether a commit lies under its own name, and names the tables of its own attempt and no other file."""
    key = (commit.dataset, commit.run_id, commit.attempt_id)
    own = {(name, _table_path(name, *key)) for name in SCHEMAS}
    found = [(record.table, record.path) for record in commit.files]
    whole = len(found) == len(set(found)) and {one for one in own if one[0] not in OPTIONAL} <= set(found) <= own
    return path == f"commits/{key[1]}--{key[2]}.json" and whole


def read_table(
    storage: Storage,
    name: str,
    commits: Iterable[Commit],
    columns: list[str] | None = None,
    *,
    first: int | None = None,
) -> pa.Table:
    """One table of all given commits, in their order, in the schema of this version.

    Args:
        storage: the results root.
        name: of the table; commits without one of OPTIONAL add nothing to it.
        commits: of the runs.
        columns: only these.
        first: only so many rows of each file; the rest is checked and not unpacked.

    Raises:
        RecordError: a file is missing or its content is not what was committed.
    """
    schema = SCHEMAS[name] if columns is None else pa.schema([SCHEMAS[name].field(column) for column in columns])
    having = [one for one in commits if name not in OPTIONAL or any(file.table == name for file in one.files)]
    tables = [_conform(_read_file(storage, commit.file(name), columns, first), schema) for commit in having]
    return pa.concat_tables(tables).unify_dictionaries() if tables else schema.empty_table()


def _conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of this or an older version in the columns of this version: those that came later are null."""
    known = table.column_names
    if known != schema.names:
        for field in schema:
            if field.name not in known:
                table = table.append_column(field, pa.nulls(table.num_rows, field.type))
        table = table.select(schema.names)
    return table if table.schema.equals(schema) else table.cast(schema)  # casting 90 columns takes as long as reading


def _read_file(storage: Storage, record: FileRecord, columns: list[str] | None, first: int | None) -> pa.Table:
    try:
        content = storage.read(record.path)
    except FileNotFoundError:
        raise RecordError(f"{storage.folder(record.path)}: named by a commit but missing; run the grid again") from None
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise RecordError(
            f"{storage.folder(record.path)}: its content is not what was committed (SHA-256 differs); remove the "
            "file and run the grid again, which writes it anew"
        )
    return _parse_parquet(storage, record.path, content, record.table, columns, rows=record.rows, first=first)


def read_parquet(storage: Storage, path: str, columns: list[str]) -> pa.Table:
    """Columns of a Parquet file that no commit names.

    Raises:
        FileNotFoundError: absent.
        RecordError: it is damaged, or of a newer version.
    """
    return _parse_parquet(storage, path, storage.read(path), path.split("/")[1], columns, rows=None)


def _parse_parquet(
    storage: Storage,
    path: str,
    content: bytes,
    name: str,
    columns: list[str] | None,
    *,
    rows: int | None,
    first: int | None = None,
) -> pa.Table:
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        _check_size(file.metadata, file.metadata.num_rows if rows is None else rows)
        version = int((file.schema_arrow.metadata or {}).get(b"schema_version", 0))
        if first is None:
            table = file.read(columns=columns, use_threads=False)  # a thread costs more than so small a file
        else:
            batches = file.iter_batches(batch_size=first, columns=columns, use_threads=False)
            table = pa.Table.from_batches([next(batches)]) if file.metadata.num_rows else file.read(columns=columns)
    except Exception as error:  # a foreign extension type raises what it likes, and memory may not do
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = "move it away" if rows is None else "move the run's commit away and run the grid again"
        raise RecordError(f"{storage.folder(path)}: cannot be read as the table {name} ({why}); {mend}") from None
    if version > SCHEMA_VERSION:
        raise RecordError(
            f"{storage.folder(path)}: written with schema version {version}, this version reads up to "
            f"{SCHEMA_VERSION}; update this project"
        )
    return table


def _check_size(metadata: pq.FileMetaData, rows: int) -> None:
    """Compressed, a few kilobytes can say that they are billions of values.

    Raises:
        ValueError: more than a run can have written, or other than its commit says.
    """
    if metadata.num_rows != rows or not 0 <= rows <= MAX_ROWS:
        raise ValueError(f"{metadata.num_rows:,} rows, its commit says {rows:,}, and at most are {MAX_ROWS:,}")
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for column in (group.column(one) for one in range(group.num_columns)):
            if column.num_values > group.num_rows * MAX_LIST or column.total_uncompressed_size > MAX_READ_BYTES:
                raise ValueError(f"column {column.path_in_schema} would unpack to {column.num_values:,} values")


def start_attempt(storage: Storage, run_id: str, attempt_id: str, details: Mapping[str, Any]) -> None:
    """Records that an attempt began. `number` among the details (1 for a run's first) orders attempts, since clocks
    may be set back between them."""
    record = {"run_id": run_id, "attempt_id": attempt_id, "started_at": datetime.now(UTC).isoformat(), **details}
    storage.publish(f"attempts/{run_id}--{attempt_id}.json", _json(record))


def end_attempt(storage: Storage, run_id: str, attempt_id: str, outcome: str, error: str | None) -> None:
    """Records how an attempt ended: done, failed or stopped. An attempt without this was killed."""
    record = {
        "run_id": run_id,
        "attempt_id": attempt_id,
        "ended_at": datetime.now(UTC).isoformat(),
        "outcome": outcome,
        "error": error,
    }
    storage.publish(f"attempts/{run_id}--{attempt_id}.end.json", _json(record))


def read_attempts(storage: Storage, run_ids: Iterable[str] | None = None) -> list[AttemptRecord]:
    """All attempts (of the given runs), those of a run oldest first.

    Of a damaged record its name counts, and when it was written: no result depends on what it says. An attempt whose
    end cannot be read was stopped.
    """
    wanted = None if run_ids is None else set(run_ids)
    names = storage.names("attempts")
    ends = {name.removesuffix(".end.json"): name for name in names if name.endswith(".end.json")}
    found = []
    for name in names:
        key = name.removesuffix(".json")
        run_id, _, attempt_id = key.partition("--")
        known = re.fullmatch(RUN_ID, run_id) and re.fullmatch(ATTEMPT_ID, attempt_id)
        if not known or name.endswith(".end.json") or (wanted is not None and run_id not in wanted):
            continue
        start = _parse(storage, f"attempts/{name}", _Start)
        if start is None:
            start = _Start(started_at=_written_at(storage, f"attempts/{name}"))
        end = None
        if key in ends:
            end = _parse(storage, f"attempts/{ends[key]}", _End)
            if end is None:
                end = _End(ended_at=_written_at(storage, f"attempts/{ends[key]}"), outcome="stopped", error=None)
        found.append(
            AttemptRecord(
                run_id=run_id,
                attempt_id=attempt_id,
                host=start.host,
                pid=start.pid,
                driver=(start.driver.host, start.driver.pid) if start.driver else None,
                number=start.number,
                started_at=start.started_at,
                ended_at=max(start.started_at, end.ended_at) if end else None,  # a clock may have been set back
                outcome=end.outcome if end else None,
                error=end.error if end else None,
            )
        )
    return sorted(found, key=lambda record: (record.number, record.started_at, record.attempt_id))


class _Driver(BaseModel):
    host: str
    pid: int


class _Start(BaseModel):
    """What is read of the record of a start."""

    started_at: AwareDatetime
    host: str = ""
    pid: int | None = None
    driver: _Driver | None = None
    number: int = 0


class _End(BaseModel):
    """What is read of the record of an end."""

    ended_at: AwareDatetime
    outcome: str
    error: str | None


def _written_at(storage: Storage, path: str) -> datetime:
    return storage.modified(path) or datetime.now(UTC)


Parsed = TypeVar("Parsed", bound=BaseModel)


def _parse(storage: Storage, path: str, kind: type[Parsed]) -> Parsed | None:
    """None: damaged."""
    try:
        return kind.model_validate_json(storage.read(path, at_most=RECORD_BYTES))
    except (ValidationError, RecursionError):
        return None


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, sort_keys=True).encode()
