"""Grids from YAML: expansion, parents, selection, and all faults at once with their places."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy import BASE

from tuner.facts import LocalFacts
from tuner.grid import Grid, Selection, list_grids, load_grid
from tuner.grid_file import GridError


def nested(fields: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in fields.items():
        node = tree
        *parts, last = path.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


VARIED = {"augment.mix", "augment.mix_alpha", "model.name", "data.content_sha256"}
SCRATCH = {"init.kind": "scratch", "init.source": None, "init.checkpoint": None, "init.surgery": []}
FILE: dict[str, Any] = {
    "version": 1,
    "axes": {
        "mix": {
            "none": {"augment.mix": "none", "augment.mix_alpha": None},
            "mixup": {"augment.mix": "mixup", "augment.mix_alpha": 1.0},
            "cutmix": {"augment": {"mix": "cutmix", "mix_alpha": 1.0}},
        },
        "model": {"small_vit": {"model.name": "small_vit"}, "small_resnet": {"model.name": "small_resnet"}},
        "pretrained": {
            "false": SCRATCH,
            "true": {
                "init.kind": "parent",
                "init.source": "base",
                "init.checkpoint": "last",
                "init.surgery": ["new_head"],
            },
        },
    },
    "grids": {
        "small": {
            "help": "A small grid\nwith details",
            "base": nested({path: value for path, value in BASE.items() if path not in VARIED and path[:5] != "init."}),
            "matrix": {"model": ["small_vit"], "pretrained": [False, True], "mix": ["none", "mixup", "cutmix"]},
            "rows": {
                "Control": {
                    "at": {"model": "small_vit", "pretrained": False, "mix": "none"},
                    "published": {"top1": 0.5},
                },
                "Exp": {"at": {"model": "small_vit", "pretrained": True, "mix": "cutmix"}, "set": {"optim.lr": 0.5}},
            },
            "parents": {
                "base": {
                    "at": {"model": "small_vit", "pretrained": False, "mix": "none"},
                    "set": {"data.classes": [0, 1]},
                }
            },
        },
        "twin": {"help": "The same in bfloat16", "like": "small", "set": {"optim.precision": "bfloat16"}},
    },
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(change: Callable[[dict[str, Any]], object] = lambda file: None) -> Path:
        file = copy.deepcopy(FILE)
        change(file)
        path = tmp_path / "experiments.yaml"
        path.write_text(yaml.safe_dump(file, sort_keys=False))
        return path

    return written


def by_label(grid: Grid) -> dict[str, Any]:
    return {run.label: run for run in grid.runs}


def test_matrix_in_order_the_last_axis_fastest(write: Callable[..., Path]) -> None:
    grid = load_grid(write(), "small")
    assert [run.label for run in grid.runs] == [
        "Control",
        "small_vit-false-mixup",
        "small_vit-false-cutmix",
        "small_vit-true-none",
        "small_vit-true-mixup",
        "Exp",
        "base",
    ]
    assert [row.label for row in grid.rows if row.is_parent] == ["base"]
    runs = by_label(grid)
    assert runs["Exp"].spec.augment.mix == "cutmix" and runs["Exp"].spec.optim.lr == 0.5
    assert runs["Control"].spec.optim.lr == 1e-3 and runs["Control"].published.top1 == 0.5
    assert len({run.run_id for run in grid.runs}) == 7


def test_a_childs_spec_holds_its_parents_id(write: Callable[..., Path]) -> None:
    runs = by_label(load_grid(write(), "small"))
    assert runs["Exp"].spec.init.source == runs["base"].run_id and runs["Exp"].parents == (runs["base"].run_id,)
    other = by_label(load_grid(write(), "small", Selection(fields={"budget.epochs": 1})))
    assert other["Exp"].spec.init.source == other["base"].run_id != runs["base"].run_id


def test_every_seed_repeats_the_grid_with_its_own_parents(write: Callable[..., Path]) -> None:
    grid = load_grid(write(), "small", Selection(seeds=(1, 2)))
    assert len(grid.runs) == 14 and grid.header.variant == "full"
    for run in grid.runs:
        parents = [parent for parent in grid.runs if parent.run_id in run.parents]
        assert all(parent.spec.seed == run.spec.seed for parent in parents)
    alone = load_grid(write(), "small")
    assert {run.run_id for run in alone.runs} < {run.run_id for run in grid.runs}, "seed 1 is the base's own"


def test_like_takes_over_everything_and_sets_on_top(write: Callable[..., Path]) -> None:
    twin, small = load_grid(write(), "twin"), load_grid(write(), "small")
    assert [run.label for run in twin.runs] == [run.label for run in small.runs]
    assert all(run.spec.optim.precision == "bfloat16" for run in twin.runs)
    assert not {run.run_id for run in twin.runs} & {run.run_id for run in small.runs}


def test_like_may_narrow_the_matrix(write: Callable[..., Path]) -> None:
    path = write(lambda file: file["grids"]["twin"].update(matrix={"mix": ["cutmix"]}))
    assert [run.label for run in load_grid(path, "twin").runs] == ["small_vit-false-cutmix", "Exp", "base"]


def test_only_closes_over_parents(write: Callable[..., Path]) -> None:
    path = write()

    def labels(*only: tuple[str, str]) -> list[str]:
        return [run.label for run in load_grid(path, "small", Selection(only=only)).runs]

    assert labels(("label", "Exp")) == ["Exp", "base"]
    assert labels(("mix", "cutmix"), ("pretrained", "false")) == ["small_vit-false-cutmix"]
    assert labels(("mix", "cutmix"), ("mix", "none"), ("pretrained", "false")) == ["Control", "small_vit-false-cutmix"]
    assert labels(("label", "base")) == ["base"]
    assert len(load_grid(path, "small", Selection(only=(("label", "Exp"),))).rows) == 7, "the table keeps all rows"


def test_overrides_change_ids_and_variant(write: Callable[..., Path]) -> None:
    path = write()
    full = load_grid(path, "small")
    short = load_grid(path, "small", Selection(fields={"budget.epochs": 1, "data.limit_train": 9}))
    assert full.header.variant == "full" != short.header.variant
    assert short.header.overrides == {"budget.epochs": 1, "data.limit_train": 9}
    assert not {run.run_id for run in full.runs} & {run.run_id for run in short.runs}


def test_data_and_weights_on_this_machine_are_part_of_the_id(write: Callable[..., Path], data_path: Path) -> None:
    here = load_grid(write(), "small", facts=LocalFacts(data_path, None, download=False))
    nowhere = load_grid(write(), "small", facts=LocalFacts(data_path / "none", None, download=False))
    assert all(run.missing is None for run in here.runs)
    assert all("toy is not prepared in" in str(run.missing) for run in nowhere.runs)
    assert here.runs[0].spec.data.content_sha256 is not None
    assert here.runs[0].run_id != nowhere.runs[0].run_id


def change(*path: str, value: Any = None, remove: bool = False) -> Callable[[dict[str, Any]], None]:
    def apply(file: dict[str, Any]) -> None:
        node: Any = file
        for part in path[:-1]:
            node = node[int(part)] if isinstance(node, list) else node[part]
        if remove:
            del node[path[-1]]
        else:
            node[int(path[-1]) if isinstance(node, list) else path[-1]] = value

    return apply


FAULTS = {
    "axis value": (
        change("grids", "small", "matrix", "mix", "2", value="cutmixx"),
        'grids.small.matrix.mix[2]: "cutmixx" is not one of none, mixup, cutmix; did you mean cutmix?',
    ),
    "axis": (
        change("grids", "small", "matrix", "mixx", value=["none"]),
        'grids.small.matrix.mixx[0]: "mixx" is no axis; axes are mix, model, pretrained; did you mean mix?',
    ),
    "value twice": (
        change("grids", "small", "matrix", "mix", "2", value="none"),
        'grids.small.matrix.mix[2]: "none" is there twice',
    ),
    "number": (
        change("grids", "small", "base", "optim", "lr", value="fast"),
        'grids.small.base.optim.lr: "fast": input should be a valid number',
    ),
    "choice": (
        change("grids", "small", "base", "optim", "schedule", value="cosin"),
        'grids.small.base.optim.schedule: "cosin" is not one of constant, cosine, step, warmup_decay; did you mean cosine?',
    ),
    "missing": (
        change("grids", "small", "base", "optim", "lr", remove=True),
        "grids.small.base.optim.lr: is set by neither base, axes nor row; nothing has a hidden default, set it in the base",
    ),
    "unknown field": (
        change("grids", "small", "base", "optim", "speed", value=1),
        "grids.small.base.optim.speed: is no known field",
    ),
    "unknown field of an axis": (
        change("axes", "mix", "mixup", "augment.mix_beta", value=1),
        "axes.mix.mixup.augment.mix_beta: is no known field",
    ),
    "field of the row": (
        change("grids", "small", "rows", "Exp", "set", value={"budget.epochs": -1}),
        "grids.small.rows.Exp.set.budget.epochs: -1: input should be greater than or equal to 0",
    ),
    "no cell": (
        change("grids", "small", "rows", "Exp", "at", value={"mix": "none"}),
        "grids.small.rows.Exp.at: (mix none) is no cell of the matrix over model, pretrained, mix",
    ),
    "cell twice": (
        change("grids", "small", "rows", "Exp", "at", value={"model": "small_vit", "pretrained": False, "mix": "none"}),
        "grids.small.rows.Exp.at: is the cell of Control too",
    ),
    "parent": (
        change("axes", "pretrained", "true", "init.source", value="bse"),
        'axes.pretrained.true.init.source: "bse" is no row of this grid; did you mean base?',
    ),
    "circle": (
        change(
            "grids", "small", "parents", "base", "at", value={"model": "small_vit", "pretrained": True, "mix": "none"}
        ),
        "parents form a circle: ",
    ),
    "like": (
        change("grids", "twin", "like", value="smal"),
        'grids.twin.like: "smal" is no grid of this file; did you mean small?',
    ),
    "like and base": (
        change("grids", "twin", "base", value={"seed": 1}),
        "grids.twin.base: cannot stand beside like: small",
    ),
    "like and matrix": (
        change("grids", "twin", "matrix", value={"colour": ["red"]}),
        "grids.twin.matrix.colour: is no axis of the matrix of small",
    ),
    "unknown key": (change("grids", "small", "matirx", value={}), "grids.small.matirx: is no known field"),
    "version": (change("version", value=2), "version: is 2; this version of the project reads 1"),
    "parts that do not fit": (
        change("axes", "mix", "mixup", "augment.mix_alpha", value=None),
        "mix_alpha must be null when mix is none and a number otherwise, got mix mixup with mix_alpha null",
    ),
    "published": (
        change("grids", "small", "rows", "Control", "published", value={"top1": "high"}),
        'grids.small.rows.Control.published.top1: "high": input should be a valid number',
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_its_place_and_the_mend(fault: str, write: Callable[..., Path]) -> None:
    apply, message = FAULTS[fault]
    with pytest.raises(GridError) as caught:
        load_grid(write(apply), "twin" if "twin" in message else "small")
    assert message in str(caught.value)


def test_all_faults_come_at_once_and_each_once(write: Callable[..., Path]) -> None:
    def several(file: dict[str, Any]) -> None:
        base = file["grids"]["small"]["base"]
        base["optim"]["lr"] = "fast"
        base["budget"]["batch_size"] = 0
        file["axes"]["mix"]["mixup"]["augment.mix_alpha"] = -1.0

    with pytest.raises(GridError) as caught:
        load_grid(write(several), "small")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("experiments.yaml: 3 faults") and len(lines) == 4


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (("mix", "cutmi"), '--only mix=cutmi: "cutmi" is not one of none, mixup, cutmix; did you mean cutmix?'),
        (("mxi", "none"), '--only mxi=none: "mxi" is not one of label, model, pretrained, mix; did you mean mix?'),
        (("label", "Ex"), '--only label=Ex: "Ex" is not one of Control, '),
        (("model", "small_resnet"), '--only model=small_resnet: "small_resnet" is not one of small_vit'),
    ],
)
def test_a_wrong_selection_names_what_there_is(only: tuple[str, str], message: str, write: Callable[..., Path]) -> None:
    with pytest.raises(GridError) as caught:
        load_grid(write(), "small", Selection(only=(only,)))
    assert message in str(caught.value)


def test_unknown_grid_names_the_nearest(write: Callable[..., Path]) -> None:
    with pytest.raises(GridError, match=r"--grid smll: is not one of small, twin; did you mean small\?"):
        load_grid(write(), "smll")


def test_list_shows_rows_and_the_first_line_of_help(write: Callable[..., Path]) -> None:
    assert list_grids(write()) == [("small", 7, "A small grid"), ("twin", 7, "The same in bfloat16")]
