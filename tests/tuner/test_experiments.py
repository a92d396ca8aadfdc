"""Every row that the repository ships: it loads, its id is pinned, its published values are the study's."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tuner.grid import Grid, PlannedRun, Selection, list_grids, load_grid

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


def test_suspected_faults_train_otherwise_than_they_test(root: Path) -> None:
    grid = load_grid(root / "experiments.yaml", "paper_faults")
    assert len(grid.runs) == 14
    for run in grid.runs:
        augment, exp = run.spec.augment, run.label.rsplit("-", 1)[0]
        paper = next(one for one in load_grid(root / "experiments.yaml", "paper").runs if one.label == exp)
        assert {axis: value for axis, value in run.axes.items() if axis != "fault"} == paper.axes
        assert (augment.train_crop == 32) == (run.axes["fault"] in ("early", "crop32"))
        assert augment.train_normalize == {"early": "imagenet", "crop32": None, "normalize": "none"}[run.axes["fault"]]
        assert augment.normalize == "dataset"
        model = run.spec.model_copy(update={"augment": paper.spec.augment})
        assert model == paper.spec, "nothing else differs"


def published_rows(shared: Path, study: str) -> list[dict[str, str]]:
    with (shared.parent / "seeds" / "published_results.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["seed_id"] == study and row["metric"].startswith("top1_acc")]


def fields(run: PlannedRun) -> dict[str, object]:
    return run.published.model_dump() if run.published else {}


def test_published_values_of_the_other_studies(root: Path, shared: Path) -> None:
    grids = {
        name: {run.label: run for run in load_grid(root / "experiments.yaml", name).runs}
        for name in ("tiny_stages", "ablations", "vit_transfer")
    }
    for row in published_rows(shared, "002"):
        if row["source"] == "README":
            assert fields(grids["tiny_stages"][row["run_id"]])["top1"] == pytest.approx(
                float(row["value_percent"]) / 100
            )
    seen = set()
    for row in published_rows(shared, "003"):
        ours = fields(grids["ablations"][row["run_id"].split("/")[0]])
        prefix = "train_" if row["split"] == "train_200" else ""
        assert ours[f"{prefix}top1"] == pytest.approx(float(row["value_percent"]) / 100)
        assert ours[f"{prefix}step"] == int(row["step"])
        seen.add(row["run_id"].split("/")[0])
    assert len(seen) == 19 and len(grids["ablations"]) == 23
    assert {label for label, run in grids["ablations"].items() if not run.published} == set(grids["ablations"]) - seen
    for row in published_rows(shared, "004"):
        if row["source"] == "README" and row["metric"] == "top1_acc":
            assert fields(grids["vit_transfer"][row["run_id"]])["top1"] == pytest.approx(
                float(row["value_percent"]) / 100
            )
    assert len(grids["vit_transfer"]) == 8


def test_chains_start_from_the_rows_that_the_studies_say(root: Path) -> None:
    stages = {run.label: run for run in load_grid(root / "experiments.yaml", "tiny_stages").runs}
    s2 = stages["s2-224-imagenet"].run_id
    children = {label for label, run in stages.items() if run.parents == (s2,)}
    assert children == {"s3-eval-224-on-64", "s3-64-from-224", "s4-64-finetune-stem"}
    assert {stages[label].spec.init.checkpoint for label in children} == {"best_on_test"}
    transfer = {run.label: run for run in load_grid(root / "experiments.yaml", "vit_transfer").runs}
    assert transfer["resnet18-cifar100-probe"].parents == (transfer["resnet18-cifar100-pretrain"].run_id,)
    assert transfer["vit-oc-cifar100-ft"].parents == (transfer["vit-oc-pretrain"].run_id,)
    frozen = {label for label, run in transfer.items() if run.spec.optim.frozen}
    assert frozen == {label for label in transfer if label.endswith("-probe")}


def test_the_command_line_says_how_long_for_rows_that_train(root: Path) -> None:
    path = root / "experiments.yaml"

    def budgets(name: str, **fields: object) -> dict[str, tuple[int | None, int | None, int | None]]:
        chosen = Selection(fields={f"budget.{key}": value for key, value in fields.items()})
        return {
            run.label: (run.spec.budget.epochs, run.spec.budget.steps, run.spec.budget.compress_to)
            for run in load_grid(path, name, chosen).runs
        }

    stages = budgets("tiny_stages", compress_to=4)
    assert stages.pop("s3-eval-224-on-64") == (0, None, None), "an evaluation stays one"
    assert set(stages.values()) == {(15, None, 4), (7, None, 4)}
    assert budgets("tiny_stages", epochs=2)["s3-eval-224-on-64"] == (0, None, None)
    assert set(budgets("ablations", compress_to=300).values()) == {(None, 5000, 300)}
    assert set(budgets("ablations", epochs=2).values()) == {(2, None, None)}, "a budget in steps gives way"


def test_a_changed_parent_changes_its_children_alone(root: Path, tmp_path: Path) -> None:
    text = (root / "experiments.yaml").read_text()
    assert text.count('"2": {budget.epochs: 7}') == 1
    changed = tmp_path / "experiments.yaml"
    changed.write_text(text.replace('"2": {budget.epochs: 7}', '"2": {budget.epochs: 8}'))
    before, after = (
        {run.label: run.run_id for run in load_grid(path, "tiny_stages").runs}
        for path in (root / "experiments.yaml", changed)
    )
    same = {label for label in before if before[label] == after[label]}
    assert same == {"s1a-baseline-scratch", "s1b-baseline-imagenet"}
