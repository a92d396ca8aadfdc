"""Compares two results stores: equal in every column but the volatile ones."""

from __future__ import annotations

import pyarrow as pa

from trainable import records
from trainable.schemas import SCHEMAS, is_volatile
from trainable.storage import Storage


def assert_same_results(one: Storage, other: Storage, run_ids: list[str] | None = None) -> None:
    """Both stores hold the same runs with the same bits in every column that is not volatile."""
    left, right = (records.read_commits(storage, run_ids) for storage in (one, other))
    assert sorted(left) == sorted(right)
    for run_id in sorted(left):
        for name in SCHEMAS:
            first = records.read_table(one, name, [left[run_id]])
            second = records.read_table(other, name, [right[run_id]])
            for column in first.column_names:
                if not is_volatile(column):
                    assert _same(first[column], second[column]), f"run {run_id}: {name}.{column} differs"


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    return one.combine_chunks().to_pylist() == other.combine_chunks().to_pylist()
