"""Manifests: the newest by number, and one that is whole is enough."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from trainable.manifests import Chosen, choose_manifests, write_manifest
from trainable.records import RecordError
from trainable.storage import Storage

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def write(storage: Storage, number: int, hours: float, **header: Any) -> str:
    known = {"help": str(number), "published_eval": None, "overrides": {}, **header}
    run = {"label": "one", "run_id": "a" * 16, "seed": 1, "parents": [], "state": "ready", "reason": None}
    at = NOON + timedelta(hours=hours)
    return write_manifest(storage, grid="g", variant="full", written_at=at, header=known, rows=[], runs=[run])


def order(chosen: Chosen) -> list[str]:
    return [manifest["help"] for manifest in chosen.manifests]


def test_the_newest_is_the_last_although_the_clock_was_set_back(storage: Storage) -> None:
    for number, hours in ((1, 0), (2, -5), (3, -3)):
        write(storage, number, hours)
    assert order(choose_manifests(storage, "g")) == ["3", "2", "1"]


def test_those_without_a_number_are_older_and_ordered_by_their_time(storage: Storage) -> None:
    for number, hours in ((1, 0), (2, 1)):
        write(storage, number, hours)
        (path,) = (f"grids/g/{name}" for name in storage.names("grids/g") if f"T{12 + hours}" in name)
        storage.put(path, storage.read(path).replace(f' "number": {number},\n'.encode(), b""))
    write(storage, 3, -5)
    assert order(choose_manifests(storage, "g")) == ["3", "2", "1"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"schema_version": "1"}'])
def test_a_damaged_one_is_passed_over_and_named(storage: Storage, content: bytes) -> None:
    write(storage, 1, 0)
    path = write(storage, 2, 1)
    storage.put(path, content)
    chosen = choose_manifests(storage, "g")
    assert order(chosen) == ["1"] and chosen.damaged == (f"{storage.uri}/{path}",)
    write(storage, 3, -5)
    assert order(choose_manifests(storage, "g")) == ["3", "1"]


def test_none_that_is_whole_is_an_error_with_the_mend(storage: Storage) -> None:
    storage.put(write(storage, 1, 0), b"{")
    with pytest.raises(RecordError, match=r"g/full--\S+: not a manifest of this project; run the grid again"):
        choose_manifests(storage, "g")
