"""Writes and reads the results store over any `Storage`: Parquet tables, commits, attempts.

A run's tables are written first, each whole or absent; the commit record is written last and is the only mark of
success. Readers open the files that commits name, never a folder's listing. Nothing recorded is ever overwritten.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from trainable.schemas import PARTITIONED, SCHEMA_VERSION, SCHEMAS
from trainable.storage import Storage


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
    run_id: str
    attempt_id: str
    dataset: str
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
    started_at: datetime
    ended_at: datetime | None
    """None: killed, or still running."""
    outcome: str | None
    """done, failed, stopped; None: killed, or still running."""
    error: str | None


def commit_run(
    storage: Storage, *, run_id: str, attempt_id: str, dataset: str, tables: Mapping[str, pa.Table]
) -> Commit:
    """Writes an attempt's tables, then its commit record.

    Raises:
        StorageError: cannot be written; without a commit record nothing of it counts.
        FileExistsError: this attempt was committed before.
    """
    files = []
    for name, schema in SCHEMAS.items():
        content = to_parquet(tables[name].cast(schema))
        folder = f"{name}/dataset={dataset}" if name in PARTITIONED else name
        path = f"{folder}/{run_id}--{attempt_id}.parquet"
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


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file (zstd)."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_commits(storage: Storage, run_ids: Iterable[str] | None = None) -> dict[str, Commit]:
    """The newest commit of every run (or of the given ones) whose files are all there in full size.

    A commit that lost a file does not count: its run is trained again.

    Raises:
        RecordError: a commit record of a newer version of this project, or one that is damaged.
    """
    wanted = None if run_ids is None else set(run_ids)
    newest: dict[str, Commit] = {}
    for name in storage.names("commits"):
        if wanted is not None and name.split("--")[0] not in wanted:
            continue
        commit = _parse_commit(storage, f"commits/{name}")
        if any(storage.size(record.path) != record.bytes for record in commit.files):
            continue
        known = newest.get(commit.run_id)
        if known is None or (known.committed_at, known.attempt_id) < (commit.committed_at, commit.attempt_id):
            newest[commit.run_id] = commit
    return newest


def _parse_commit(storage: Storage, path: str) -> Commit:
    content = storage.read(path)
    try:
        version = json.loads(content)["schema_version"]
        if version > SCHEMA_VERSION:
            raise RecordError(
                f"{storage.folder(path)}: written with schema version {version}, this version reads up to "
                f"{SCHEMA_VERSION}; update this project"
            )
        return Commit.model_validate_json(content)
    except (ValidationError, ValueError, KeyError, TypeError):
        raise RecordError(
            f"{storage.folder(path)}: not a commit record of this project; move it away and its run is trained again"
        ) from None


def read_table(storage: Storage, name: str, commits: Iterable[Commit], columns: list[str] | None = None) -> pa.Table:
    """One table of all given commits, in their order, in the schema of this version.

    Raises:
        RecordError: a file is missing or its content is not what was committed.
    """
    schema = SCHEMAS[name] if columns is None else pa.schema([SCHEMAS[name].field(column) for column in columns])
    tables = [_read_file(storage, commit.file(name), columns).cast(schema) for commit in commits]
    return pa.concat_tables(tables).unify_dictionaries() if tables else schema.empty_table()


def _read_file(storage: Storage, record: FileRecord, columns: list[str] | None) -> pa.Table:
    try:
        content = storage.read(record.path)
    except FileNotFoundError:
        raise RecordError(f"{storage.folder(record.path)}: named by a commit but missing; run the grid again") from None
    if hashlib.sha256(content).hexdigest() != record.sha256:
        raise RecordError(
            f"{storage.folder(record.path)}: its content is not what was committed (SHA-256 differs); remove the "
            "file and run the grid again"
        )
    return pq.ParquetFile(io.BytesIO(content)).read(columns=columns)


def start_attempt(storage: Storage, run_id: str, attempt_id: str, details: Mapping[str, Any]) -> None:
    """Records that an attempt began."""
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
    """All attempts (of the given runs), oldest first."""
    wanted = None if run_ids is None else set(run_ids)
    names = storage.names("attempts")
    ends = {name.removesuffix(".end.json"): name for name in names if name.endswith(".end.json")}
    found = []
    for name in names:
        key = name.removesuffix(".json")
        if name.endswith(".end.json") or (wanted is not None and key.split("--")[0] not in wanted):
            continue
        start = json.loads(storage.read(f"attempts/{name}"))
        end = json.loads(storage.read(f"attempts/{ends[key]}")) if key in ends else {}
        found.append(
            AttemptRecord(
                run_id=start["run_id"],
                attempt_id=start["attempt_id"],
                started_at=datetime.fromisoformat(start["started_at"]),
                ended_at=datetime.fromisoformat(end["ended_at"]) if end else None,
                outcome=end.get("outcome"),
                error=end.get("error"),
            )
        )
    return sorted(found, key=lambda record: (record.started_at, record.attempt_id))


def _json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, sort_keys=True).encode()
