"""A sweep's block: what its trials are, which rows it leaves out, and its faults, each with place and mend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tuner.facts import PinnedFacts
from tuner.grid import Selection, load_grid
from tuner.grid_file import GridError
from tuner.sweep import OpenedSweep, open_sweep, sweep_names, with_fields
from tuner.sweep_file import Choices
from tuner.yaml_file import read_yaml


def opened(path: Path, name: str = "lr_sweep", selection: Selection | None = None, **choices: Any) -> OpenedSweep:
    return open_sweep(path, name, Choices(**choices), selection or Selection(), PinnedFacts())


@pytest.fixture
def file(root: Path, tmp_path: Path) -> Any:
    """Writes the shipped file with changes to its lr_sweep, which then goes over grid demo."""

    def write(**changes: Any) -> Path:
        content = read_yaml(root / "experiments.yaml")
        block = {**content["sweeps"]["lr_sweep"], "over": "demo", **changes}
        content["sweeps"] = {"lr_sweep": {name: value for name, value in block.items() if value != "absent"}}
        path = tmp_path / "experiments.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("name", ["lr_sweep", "alpha_sweep"])
@pytest.mark.parametrize("over", ["paper", "demo"])
def test_the_shipped_sweeps_are_sound(root: Path, name: str, over: str) -> None:
    path = root / "experiments.yaml"
    assert name in dict(sweep_names(path))
    sweep = opened(path, name, over=over)
    for row in sweep.rows:
        values = row.space.grid(sweep.sweep.trials)
        assert len(values) == 5 and (row.default in values or over == "demo"), "the grid's own value is one of the five"


def test_a_trial_is_the_row_with_value_and_hold_out_and_nothing_else(root: Path) -> None:
    path = root / "experiments.yaml"
    row = next(row for row in opened(path, over="demo").rows if row.label == "vit-mixup")
    (seed,) = row.base
    trial = row.trial(seed, 0.002)
    fields = {"optim.lr": 0.002, "data.val_fraction": 0.1, "evaluate.select": ["best_on_val"]}
    same = load_grid(path, "demo", Selection(fields=fields), PinnedFacts())
    assert trial.run_id == next(run.run_id for run in same.runs if run.label == "vit-mixup")
    assert trial.label == "vit-mixup lr=0.002" and trial.published is None


def test_the_chosen_row_is_an_ordinary_row_and_the_grids_own_at_its_own_value(root: Path) -> None:
    path = root / "experiments.yaml"
    grid = {run.label: run for run in load_grid(path, "demo", Selection(), PinnedFacts()).runs}
    row = next(row for row in opened(path, over="demo").rows if row.label == "vit-mixup")
    assert row.chosen(223, 3e-3) == grid["vit-mixup"]
    other = row.chosen(223, 1e-2)
    assert other.spec == with_fields(grid["vit-mixup"].spec, {"optim.lr": 1e-2}) and other.label.endswith("lr=0.01")
    assert other.spec.data.val_fraction == 0 and other.spec.evaluate.select == ("best_on_test",)


def test_parents_are_the_grids_own_and_shared(root: Path) -> None:
    path = root / "experiments.yaml"
    grid = {run.label: run for run in load_grid(path, "demo", Selection(), PinnedFacts()).runs}
    only = (("label", "vit-pre-default"),)
    sweep = opened(path, selection=Selection(only=only), over="demo")
    assert [row.label for row in sweep.rows] == ["vit-pre-default"]
    assert list(sweep.grid.runs) == [grid["parent-vit"]]
    assert sweep.rows[0].trial(223, 1e-3).parents == (grid["parent-vit"].run_id,)
    assert not any(label.startswith("parent") for label in (row.label for row in opened(path, over="demo").rows))


def test_rows_without_mixing_are_left_out_of_the_alpha_sweep_with_a_notice(root: Path) -> None:
    sweep = opened(root / "experiments.yaml", "alpha_sweep")
    assert len(sweep.rows) == 16 and sweep.left_out == tuple(f"Control-{n}" for n in (1, 5, 2, 6, 3, 7, 4, 8))
    assert sweep.notices[0].startswith("left out of alpha_sweep: Control-1, Control-5,")
    assert sweep.notices[0].endswith("(augment.mix_alpha is null there)")
    with pytest.raises(GridError, match=r"augment.mix_alpha is null in every selected row of paper"):
        opened(root / "experiments.yaml", "alpha_sweep", Selection(only=(("mix", "none"),)))


def test_seeds_rows_and_epochs_of_the_command_line_hold_for_trials(root: Path) -> None:
    selection = Selection(seeds=(1, 2), only=(("model", "small_vit"), ("mix", "cutmix")), fields={"budget.epochs": 2})
    sweep = opened(root / "experiments.yaml", selection=selection, over="demo")
    assert [row.label for row in sweep.rows] == ["vit-cutmix", "vit-pre-cutmix"]
    assert all(row.trial(seed, 1e-3).spec.budget.epochs == 2 for row in sweep.rows for seed in (1, 2))
    assert sweep.grid.header.overrides["budget.epochs"] == 2


def test_a_hold_out_that_the_parent_has_seen_is_told(root: Path, tmp_path: Path) -> None:
    content = read_yaml(root / "experiments.yaml")
    content["grids"]["demo"]["parents"]["parent-vit"]["set"]["data.classes"] = [0, 5, 6]
    path = tmp_path / "experiments.yaml"
    path.write_text(yaml.safe_dump(content))
    (notice,) = opened(path, over="demo").notices
    assert notice.startswith("vit-pre-default, vit-pre-mixup, vit-pre-cutmix: the parent was trained on held-out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"over": "dmo"}, r'sweeps.lr_sweep.over: "dmo" is no grid of this file; .* did you mean demo\?'),
        ({"field": "optim.lrr"}, r'lr_sweep.field: "optim.lrr" is no field of a spec; did you mean optim.lr\?'),
        ({"field": "optim"}, r'lr_sweep.field: "optim" is a whole part of a spec; name one of its fields: name, lr'),
        ({"field": "seed"}, r'lr_sweep.field: "seed" tells which run it is'),
        ({"field": "data.val_fraction"}, r"lr_sweep.field: .* decides on which images trials are judged"),
        ({"space": {}}, r"lr_sweep.space: needs exactly one of values, log_uniform, uniform; got none"),
        ({"space": {"values": [1], "uniform": [0, 1]}}, r"got values, uniform"),
        ({"space": {"uniform": [2, 1]}}, r"lr_sweep.space.uniform: must rise, got \[2, 1\]"),
        ({"space": {"log_uniform": [0, 1]}}, r"lr_sweep.space.log_uniform: must begin above 0, got 0; use uniform"),
        ({"space": {"values": [1, 1]}}, r"lr_sweep.space.values: must list different values"),
        ({"space": {"values": [-1.0]}}, r"lr_sweep.space: optim.lr of resnet-default: -1.0: input should be greater"),
        ({"space": {"values": [1e-3]}, "search": "tpe"}, r"lr_sweep.search: tpe needs an interval, and space lists"),
        ({"search": "annealing"}, r'lr_sweep.search: "annealing" is not one of grid, random, tpe'),
        ({"trials": "absent"}, r"lr_sweep.trials: is missing; an interval needs the number of values a row"),
        ({"set": {}}, r"lr_sweep.set: must hold images out, on which to choose: set data.val_fraction, such as 0.1"),
        ({"set": {"data.val_fraction": 0.1}}, r"lr_sweep.set: trials must not choose on the test set; set evaluate"),
        ({"set": {"data.dataset": "toy"}}, r'lr_sweep.set.data.dataset: "data.dataset" tells which run it is'),
        ({"set": {"optim.lr": 1.0}}, r"lr_sweep.set.optim.lr: is the field that is varied; leave it out"),
        ({"set": {"optim.foo": 1}}, r'lr_sweep.set.optim.foo: "optim.foo" is no field of a spec'),
        (
            {"scheduler": "pbt"},
            r"lr_sweep.generations: 15 epochs of resnet-default \(its trials\) cannot be cut into 4",
        ),
        ({"scheduler": "pbt", "search": "tpe"}, r"lr_sweep.scheduler: pbt needs an interval"),
        ({"scheduler": "pbt", "field": "budget.batch_size"}, r"pbt varies a field of optim or augment"),
        ({"scheduler": "asha", "field": "budget.epochs"}, r"lr_sweep.scheduler: asha compares trials of one length"),
        ({"scheduler": "pbt", "trials": 1}, r"lr_sweep.trials: is 1; pbt needs a population of at least 2"),
    ],
)
def test_faults_have_a_place_and_a_mend(file: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(GridError, match=message):
        opened(file(**changes))


def test_faults_of_a_block_come_together(file: Any) -> None:
    path = file(over="x", field="seed", space={"uniform": [1, 0]}, trials="absent")
    with pytest.raises(GridError) as caught:
        opened(path)
    assert "4 faults" in str(caught.value)


def test_a_scheduler_needs_a_budget_in_epochs(file: Any) -> None:
    steps = {"data.val_fraction": 0.1, "evaluate.select": [], "budget.epochs": None, "budget.steps": 9}
    with pytest.raises(
        GridError, match="asha counts in epochs, and the budget of resnet-default is in steps; use none"
    ):
        opened(file(scheduler="asha", set=steps))


def test_pbt_follows_one_seed(root: Path) -> None:
    selection = Selection(seeds=(1, 2), fields={"budget.epochs": 4})
    with pytest.raises(GridError, match="--seeds: pbt follows one population; give one seed at a time"):
        opened(root / "experiments.yaml", selection=selection, over="demo", scheduler="pbt")


def test_a_parents_checkpoint_chosen_on_the_test_set_is_refused(root: Path, tmp_path: Path) -> None:
    content = read_yaml(root / "experiments.yaml")
    content["grids"]["demo"]["axes"]["pretrained"]["true"]["init.checkpoint"] = "best_on_test"
    path = tmp_path / "experiments.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(GridError, match="starts from its parent's best_on_test, which was chosen on the test set"):
        opened(path, over="demo")


def test_a_name_is_a_grid_or_a_sweep(file: Any, root: Path, tmp_path: Path) -> None:
    content = read_yaml(root / "experiments.yaml")
    content["sweeps"]["demo"] = content["sweeps"]["lr_sweep"]
    path = tmp_path / "experiments.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(GridError, match=r"sweeps.demo: is the name of a grid too; --grid could not tell them apart"):
        load_grid(path, "demo")


def test_a_whole_number_stays_one(file: Any) -> None:
    path = file(field="budget.batch_size", space={"log_uniform": [8, 64]}, trials=4)
    row = opened(path).rows[0]
    assert row.space.grid(4) == [8, 16, 32, 64] and row.trial(223, 16).spec.budget.batch_size == 16
