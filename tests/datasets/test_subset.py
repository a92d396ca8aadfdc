"""Which rows a run uses: stratified, seeded, and disjoint where they must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import run_spec

from datasets.store import DataError, Dataset
from datasets.subset import select_rows, stratified


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=80, deadline=None)
def test_every_class_keeps_its_share(sizes: list[int], share: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = int(share * len(labels))
    chosen = stratified(labels, count, np.random.default_rng(seed))
    assert len(chosen) == count == len(set(chosen.tolist())) and (np.diff(chosen) > 0).all()
    kept = np.bincount(labels[chosen], minlength=len(sizes))
    assert (np.abs(kept - np.array(sizes) * count / len(labels)) < 1).all()


def test_it_is_not_the_first_n(toy: Dataset) -> None:
    rows = select_rows(run_spec({"data.limit_train": 15}).data, toy)
    assert rows.train.index.tolist() != list(range(15))


def test_the_subset_depends_on_its_own_seed_only(toy: Dataset) -> None:
    chosen = [
        select_rows(run_spec({"data.limit_train": 15, "data.limit_seed": seed}, seed=run).data, toy).train.index
        for seed, run in ((0, 1), (0, 2), (1, 1))
    ]
    assert (chosen[0] == chosen[1]).all() and (chosen[0] != chosen[2]).any()


def test_hold_out_is_cut_from_train_and_disjoint(toy: Dataset) -> None:
    rows = select_rows(run_spec({"data.val_fraction": 0.1}).data, toy)
    assert rows.val is not None
    assert np.bincount(rows.val.labels).tolist() == [2, 2, 2]
    assert sorted([*rows.val.index, *rows.train.index]) == list(range(60))
    assert len(rows.test.index) == 30


def test_limit_comes_after_the_hold_out(toy: Dataset) -> None:
    whole = select_rows(run_spec({"data.val_fraction": 0.1}).data, toy)
    short = select_rows(run_spec({"data.val_fraction": 0.1, "data.limit_train": 9}).data, toy)
    assert whole.val is not None and short.val is not None
    assert (whole.val.index == short.val.index).all()
    assert set(short.train.index) <= set(whole.train.index) and len(short.train.index) == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.limit_train": 61}, r"data\.limit_train: 61 is more than the 60 images there are; lower it or set null"),
        ({"data.limit_eval": 31}, r"data\.limit_eval: 31 is more than the 30 images"),
        ({"data.classes": [1, 3]}, r"data\.classes: .*3.* is not within 0\.\.2, the classes of toy"),
        ({"data.val_fraction": 0.001}, r"data\.val_fraction: 0\.001 holds out no image; raise it"),
    ],
)
def test_what_cannot_be_is_said(toy: Dataset, fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        select_rows(run_spec(fields).data, toy)
