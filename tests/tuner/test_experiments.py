"""Every row that the repository ships: it loads, its id is pinned, its published values are the study's."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tuner.grid import Grid, list_grids, load_grid

README_ORDER = [
    "Control-1",
    "Exp-1",
    "Exp-2",
    "Control-5",
    "Exp-9",
    "Exp-10",
    "Control-2",
    "Exp-3",
    "Exp-4",
    "Control-6",
    "Exp-11",
    "Exp-12",
    "Control-3",
    "Exp-5",
    "Exp-6",
    "Control-7",
    "Exp-13",
    "Exp-14",
    "Control-4",
    "Exp-7",
    "Exp-8",
    "Control-8",
    "Exp-15",
    "Exp-16",
]


@pytest.fixture(scope="module")
def paper(root: Path) -> Grid:
    return load_grid(root / "experiments.yaml", "paper")


def test_ids_of_all_shipped_rows_are_pinned(root: Path) -> None:
    """An id that changes makes every stored result of that row a stranger: raise SPEC_VERSION and say so."""
    path = root / "experiments.yaml"
    found = {name: {run.label: run.run_id for run in load_grid(path, name).runs} for name, _, _ in list_grids(path)}
    assert found == json.loads((root / "tests" / "golden_ids.json").read_text())


def test_no_two_rows_are_the_same_run(root: Path) -> None:
    path = root / "experiments.yaml"
    ids = [run.run_id for name, _, _ in list_grids(path) for run in load_grid(path, name).runs]
    assert len(ids) == len(set(ids))


def test_paper_is_the_studys_grid(paper: Grid) -> None:
    assert [run.label for run in paper.runs] == README_ORDER
    for run in paper.runs:
        spec = run.spec
        assert (spec.optim.name, spec.optim.lr, spec.optim.betas, spec.optim.eps) == ("adam", 1e-3, (0.9, 0.999), 1e-8)
        assert (spec.optim.weight_decay, spec.optim.schedule, spec.optim.schedule_per) == (0.0, "cosine", "epoch")
        assert (spec.budget.epochs, spec.budget.batch_size, spec.seed) == (50, 256, 223)
        assert spec.data.val_fraction == 0 and spec.data.limit_train is None and spec.optim.precision == "float32"
        assert spec.data.image_size == {"cifar100": 32, "tiny-imagenet-200": 64}[spec.data.dataset]
        assert (spec.augment.mix_alpha, spec.augment.mix_prob) == (None if spec.augment.mix == "none" else 1.0, 1.0)
        assert (spec.augment.pad_crop, spec.augment.hflip_prob, spec.augment.normalize) == (0, 0.0, "dataset")
        assert spec.init.kind == ("hub" if run.axes["pretrained"] == "true" else "scratch")
        assert spec.evaluate.select == ("best_on_test",) and spec.evaluate.every_epochs == 1


def test_published_values_are_the_studys(paper: Grid, shared: Path) -> None:
    path = shared.parent / "seeds" / "published_grid.csv"
    with path.open() as file:
        published = {row["exp_id"]: row for row in csv.DictReader(file)}
    names = {"top1": "top1", "top5": "top5", "recall": "recall_macro", "precision": "precision_macro", "f1": "f1_macro"}
    for run in paper.runs:
        theirs = published[run.label]
        assert theirs["dataset"].replace("tiny_imagenet", "tiny-imagenet-200") == run.spec.data.dataset
        assert run.spec.model.name.startswith(theirs["arch"])
        assert theirs["aug"].replace("default", "none") == run.spec.augment.mix
        assert (theirs["pretrained"] == "1") == (run.axes["pretrained"] == "true")
        ours = run.published.model_dump() if run.published else {}
        for column, field in names.items():
            assert round(100 * ours[field], 2) == float(theirs[column]), (run.label, field)


def test_demo_is_a_dag_of_two_parents_and_twelve_rows(root: Path) -> None:
    grid = load_grid(root / "experiments.yaml", "demo")
    parents = {run.run_id for run in grid.runs if run.label.startswith("parent")}
    rows = [run for run in grid.runs if run.run_id not in parents]
    assert len(parents) == 2 and len(rows) == 12
    assert all(run.spec.data.classes == (5, 6, 7, 8, 9) for run in rows)
    children = [run for run in rows if run.axes["pretrained"] == "true"]
    assert len(children) == 6 and all(set(run.parents) < parents for run in children)


def test_crop32_trains_small_and_tests_at_native_size(root: Path) -> None:
    grid = load_grid(root / "experiments.yaml", "paper_crop32")
    assert [run.label for run in grid.runs] == ["Control-3", "Exp-5", "Exp-6", "Control-7", "Exp-13", "Exp-14"]
    assert all((run.spec.augment.train_crop, run.spec.data.image_size) == (32, 64) for run in grid.runs)
