"""Manifests: one JSON file an invocation of a grid, with its rows, labels, run ids and what the command line changed.

    grids/<grid>/<variant>--<time>.json

The scheduler writes them; the tables and the status read them. A grid is shown in its full variant, else in its only
one, else the choices are listed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainable.records import NAME, RECORD_BYTES, RUN_ID, RecordError
from trainable.storage import Storage

SCHEMA_VERSION = 1
FULL = "full"
VARIANT = r"^(full|[0-9a-f]{8})$"


class _Run(BaseModel):
    """What readers rely on in an entry of `runs`."""

    model_config = ConfigDict(strict=True)

    label: str = Field(min_length=1)
    run_id: str = Field(pattern=RUN_ID)
    seed: int
    parents: list[str]
    state: str
    reason: str | None


class _Row(BaseModel):
    """What readers rely on in an entry of `rows`."""

    model_config = ConfigDict(strict=True)

    label: str
    axes: dict[str, str]
    is_parent: bool
    published: dict[str, float | str | None] | None


class _SweptRow(BaseModel):
    """What readers rely on in a row of a sweep."""

    label: str
    default: Any
    runs: dict[str, Annotated[str, Field(pattern=RUN_ID)]]


class _Sweep(BaseModel):
    """What readers rely on in the description of a sweep."""

    model_config = ConfigDict(strict=True)

    field: str
    over: str
    search: str
    scheduler: str
    set: dict[str, Any]
    left_out: list[str]
    rows: list[_SweptRow]


class _Form(BaseModel):
    """What readers rely on in a manifest; it may say more."""

    model_config = ConfigDict(strict=True)

    schema_version: int
    grid: str = Field(pattern=NAME)
    variant: str = Field(pattern=VARIANT)
    help: str
    published_eval: str | None
    overrides: dict[str, Any]
    written_at: str
    command: list[str] = []
    number: int = 0
    rows: list[_Row]
    runs: list[_Run]
    sweep: _Sweep | None = None


class ManifestError(Exception):
    """The store has no such grid or variant, or several to choose from; the message names what it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """One variant of a grid, as its invocations recorded it."""

    newest: dict[str, Any]
    """The manifest of the latest invocation."""
    manifests: tuple[dict[str, Any], ...]
    """Those of all its invocations, newest first."""
    damaged: tuple[str, ...]
    """Paths of manifests that cannot be read and were passed over."""
    other_variants: tuple[str, ...]

    def run_ids(self) -> set[str]:
        """Every run that any invocation named."""
        return {entry["run_id"] for manifest in self.manifests for entry in manifest["runs"]}

    def entries(self, done: Collection[str]) -> list[dict[str, Any]]:
        """The run that stands for every label and seed: of the newest invocation, in order of label and seed.

        A run that was blocked there (weights or data not at hand) gives way to an older one that is done.

        Args:
            done: run ids that are committed.
        """
        chosen: dict[tuple[str, int], dict[str, Any]] = {}
        for manifest in self.manifests:
            for entry in manifest["runs"]:
                known = chosen.get((entry["label"], entry["seed"]))
                blocked = known is not None and known["state"] == "blocked" and known["run_id"] not in done
                if known is None or (blocked and entry["run_id"] in done):
                    chosen[entry["label"], entry["seed"]] = entry
        return sorted(chosen.values(), key=lambda entry: (entry["label"], entry["seed"]))


def write_manifest(
    storage: Storage,
    *,
    grid: str,
    variant: str,
    written_at: datetime,
    header: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    runs: Sequence[Mapping[str, Any]],
    sweep: Mapping[str, Any] | None = None,
) -> str:
    """Records an invocation.

    Args:
        storage: the results root.
        grid: the grid's name.
        variant: `full`, or the hash of what was changed.
        written_at: the time, with its zone.
        header: help, published_eval, overrides, command, code_tree_sha256.
        rows: label, axes, is_parent and published of every row of the grid.
        runs: label, run_id, seed, parents, state and reason of every selected run.
        sweep: of a sweep, what is varied how, over which rows with which own values.

    Returns:
        The manifest's path below the results root.

    Raises:
        StorageError: cannot be written.
    """
    content = {
        "schema_version": SCHEMA_VERSION,
        "grid": grid,
        "variant": variant,
        "number": 1 + sum(file.rpartition("--")[0] == variant for file in storage.names(f"grids/{grid}")),
        **header,
        "written_at": written_at.isoformat(),
        "rows": list(rows),
        "runs": list(runs),
        **({"sweep": dict(sweep)} if sweep is not None else {}),
    }
    path = f"grids/{grid}/{variant}--{written_at:%Y%m%dT%H%M%S.%f}.json"
    storage.publish(path, json.dumps(content, indent=1).encode())
    return path


def grid_names(storage: Storage) -> list[str]:
    """The grids of which the store has a manifest; a folder that no grid can be called after is none of ours."""
    return [name for name in storage.folders("grids") if re.fullmatch(NAME, name)]


def variants(storage: Storage, name: str) -> list[str]:
    """The variants of a grid, read from the names of its manifests alone; empty where it was never run."""
    return list(dict.fromkeys(file.rpartition("--")[0] for file in storage.names(f"grids/{name}")))


def choose_manifests(storage: Storage, name: str, variant: str | None = None) -> Chosen:
    """One variant of a grid.

    Args:
        storage: the results root.
        name: the grid.
        variant: `full` or the hash of another variant; None chooses the full one, else the only one.

    Raises:
        ManifestError: no such grid or variant, or several variants and none of them full.
        RecordError: a manifest is newer than this version, or all are damaged.
    """
    known = variants(storage, name) if re.fullmatch(NAME, name) else []
    if not known:
        names = ", ".join(grid_names(storage)) or "none"
        raise ManifestError(f"--grid {name}: {storage.uri} has no such grid; it has {names}")
    if variant is None:
        variant = FULL if FULL in known else known[0] if len(known) == 1 else None
    if variant is None or variant not in known:
        newest = {key: _read(storage, name, key)[0][0] for key in known}
        choices = "; ".join(f"--variant {key} ({_overrides(manifest)})" for key, manifest in newest.items())
        raise ManifestError(f"grid {name}: choose one of its {len(known)} variants: {choices}")
    manifests, damaged = _read(storage, name, variant)
    return Chosen(
        newest=manifests[0],
        manifests=tuple(manifests),
        damaged=tuple(damaged),
        other_variants=tuple(key for key in known if key != variant),
    )


def _read(storage: Storage, name: str, variant: str) -> tuple[list[dict[str, Any]], list[str]]:
    """All manifests of a variant, newest first, and the paths of those that cannot be read.

    They are ordered by their numbers: the clock may have been set back between two invocations.
    """
    paths = [f"grids/{name}/{file}" for file in storage.names(f"grids/{name}") if file.rpartition("--")[0] == variant]
    parsed = {path: _parse(storage, path) for path in paths}
    whole = [manifest for manifest in parsed.values() if manifest is not None]
    damaged = [storage.folder(path) for path, manifest in parsed.items() if manifest is None]
    if not whole:
        raise RecordError(f"{damaged[0]}: not a manifest of this project; run the grid again, which writes another")
    whole.sort(key=lambda manifest: (manifest.get("number", 0), str(manifest["written_at"])), reverse=True)
    return whole, damaged


def _parse(storage: Storage, path: str) -> dict[str, Any] | None:
    """None: not a manifest, or not a whole one."""
    try:
        content = json.loads(storage.read(path, at_most=RECORD_BYTES))
        newer = content["schema_version"] > SCHEMA_VERSION
        if not newer:
            form = _Form.model_validate(content)
            whole = path.startswith(f"grids/{form.grid}/{form.variant}--")
            if not whole or datetime.fromisoformat(form.written_at).tzinfo is None:
                return None
    except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if newer:
        raise RecordError(
            f"{storage.folder(path)}: written with schema version {content['schema_version']}, this version reads up "
            f"to {SCHEMA_VERSION}; update this project"
        )
    return dict(content)


def _overrides(manifest: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in manifest["overrides"].items()) or "as in the file"
