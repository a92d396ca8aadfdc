"""The command line: what it prints, what it refuses, and that its options stay few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import analysis.best
import analysis.check
import analysis.compact
import analysis.curves
import analysis.features
import analysis.figures
import analysis.pivot
import analysis.power
import analysis.report
import analysis.run_report
import analysis.tables
import datasets.prepare
import trainable.evaluate
import trainable.run
import tuner.status
from tuner.run import main, parser

OPTIONS = {
    "tuner.run": "--grid --list --dry-run --on --preflight --json --quiet --experiments --only --seeds --epochs "
    "--steps --limit-train --limit-eval --until-decided --max-gpu-hours --over --search --scheduler --trials "
    "--data --results --weights --address --dashboard-host --cpus-per-trial --gpu-share --device --save-every --log",
    "tuner.status": "--grid --variant --results --json",
    "trainable.run": "--grid --label --data --results --weights --device --threads --save-every",
    "trainable.evaluate": "run --checkpoint --dataset --data --results --batch-size",
    "datasets.prepare": "names --source --data --image-size --replace",
    "analysis.tables": "--grid --variant --results --out --format --tables",
    "analysis.check": "--grid --variant --results",
    "analysis.compact": "--results",
    "analysis.report": "--grid --variant --results --out --lang",
    "analysis.power": "--grid --variant --results --next --json --digest",
    "analysis.figures": "--grid --variant --results --out --figures --format",
    "analysis.features": "--grid --variant --results --data --out --rows --images --seed --device --threads",
    "analysis.curves": "--grid --variant --results --out --y --x --split --filter --group --average --name --format",
    "analysis.best": "--grid --variant --results --out --by --split --filter --format",
    "analysis.pivot": "--grid --variant --results --out --rows --columns --value --eval --gain --filter --name --format",
    "analysis.run_report": "run --grid --variant --results --out --eval --format",
}
PARSERS = {
    "tuner.run": parser,
    "tuner.status": tuner.status.parser,
    "trainable.run": trainable.run.parser,
    "trainable.evaluate": trainable.evaluate.parser,
    "datasets.prepare": datasets.prepare.parser,
    "analysis.figures": analysis.figures.parser,
    "analysis.report": analysis.report.parser,
    "analysis.features": analysis.features.parser,
    "analysis.curves": analysis.curves.parser,
    "analysis.best": analysis.best.parser,
    "analysis.pivot": analysis.pivot.parser,
    "analysis.run_report": analysis.run_report.parser,
    "analysis.tables": analysis.tables.parser,
    "analysis.check": analysis.check.parser,
    "analysis.compact": analysis.compact.parser,
    "analysis.power": analysis.power.parser,
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_a_frozen_list(name: str) -> None:
    """An experiment's knob goes into the YAML row, never into a flag."""
    actions = PARSERS[name]()._actions
    found = [action.option_strings[-1] if action.option_strings else action.dest for action in actions]
    assert [option for option in found if option != "--help"] == OPTIONS[name].split()


def call(tmp_path: Path, data_path: Path, *arguments: str) -> int:
    return main([*arguments, "--data", str(data_path), "--results", str(tmp_path / "results")])


def test_list_names_the_grids(tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, data_path, "--list") == 0
    shown = capsys.readouterr().out
    assert "paper" in shown and "24" in shown and "demo" in shown
    assert "lr_sweep" in shown and "alpha_sweep" in shown and shown.count(" sweep ") == 2


def test_dry_run_prints_the_plan_and_touches_nothing(
    tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, data_path, "--grid", "demo", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "to run: 14 runs" in shown and "parent-vit" in shown and "waiting" in shown
    assert not (tmp_path / "results").exists()


def test_dry_run_prices_every_row_on_machines_that_are_described(
    tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows whose data are not here are priced as if they were; GPU-hours follow from shares and times."""
    machine = ("--on", "gpus=2,gpu_memory_gib=24,cpus=24")
    assert call(tmp_path, data_path, "--grid", "paper", "--dry-run", *machine) == 0
    shown = capsys.readouterr().out
    assert "share" in shown and "to run: 24 runs (24 of them blocked now)" in shown
    assert "on 24 CPUs and 2 GPUs of 24.0 GiB: makespan" in shown and "lower bound" in shown
    assert call(tmp_path, data_path, "--grid", "paper", "--dry-run", "--json", *machine) == 0
    plan = json.loads(capsys.readouterr().out)
    assert all(0 < run["gpu_share"] <= 0.5 and run["basis"] == "model" for run in plan["runs"])
    hours = sum(run["gpu_share"] * run["seconds"] for run in plan["runs"]) / 3600
    assert plan["gpu_hours"] == pytest.approx(hours)
    assert plan["makespan_s"] >= plan["lower_bound_s"] >= max(run["seconds"] for run in plan["runs"])
    fixed = ("--gpu-share", "0.25")
    assert call(tmp_path, data_path, "--grid", "paper", "--dry-run", "--json", *machine, *fixed) == 0
    assert {run["gpu_share"] for run in json.loads(capsys.readouterr().out)["runs"]} == {0.25}


def test_dry_run_as_json_lists_every_row(tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(tmp_path, data_path, "--grid", "paper", "--dry-run", "--json", "--only", "pretrained=false") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["grid"] == "paper" and len(plan["runs"]) == 12
    first = plan["runs"][0]
    assert (first["label"], first["state"], first["num_parameters"]) == ("Control-1", "blocked", 23_712_932)
    assert "cifar100 is not prepared" in first["reason"] and first["spec"]["optim"]["lr"] == 1e-3
    assert first["published"]["top1"] == 0.4588


def test_seeds_and_limits_make_other_runs(tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = []
    for more in (
        [],
        ["--seeds", "223,224"],
        ["--epochs", "1"],
        ["--steps", "2"],
        ["--limit-train", "40"],
        ["--limit-eval", "40"],
    ):
        assert call(tmp_path, data_path, "--grid", "demo", "--dry-run", "--json", *more) == 0
        ids.append({run["run_id"] for run in json.loads(capsys.readouterr().out)["runs"]})
    full, seeds, *short = ids
    assert full < seeds and len(seeds) == 28
    assert all(not full & other for other in short)


def test_longest_first_parents_before_children(
    tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, data_path, "--grid", "demo", "--dry-run", "--json") == 0
    runs = {run["label"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    by_id = {run["run_id"]: run for run in runs.values()}
    assert sorted(run["order"] for run in runs.values()) == list(range(1, 15))
    for run in runs.values():
        assert all(by_id[parent]["order"] < run["order"] for parent in run["parents"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--grid NAME is missing;"),
        (
            ["--grid", "demo", "--epochs", "2", "--steps", "2"],
            "--epochs and --steps both say how long; give one of them",
        ),
        (["--grid", "demo", "--steps", "0"], "--steps 0: must be at least 1"),
        (["--grid", "papr"], "--grid papr: is not one of demo, paper, "),
        (["--grid", "demo", "--only", "mix"], "--only mix: give axis=value pairs with commas"),
        (["--grid", "demo", "--only", "mix=cutmixx"], "did you mean cutmix?"),
        (["--grid", "demo", "--seeds", "1,x"], "--seeds 1,x: give whole numbers with commas"),
        (["--grid", "demo", "--seeds", "1,1"], "--seeds 1,1: a seed is there twice"),
        (["--grid", "demo", "--seeds", "-1", "--dry-run"], "seed"),
        (["--grid", "demo", "--search", "tpe"], "--search goes with a sweep, and demo is none"),
        (["--grid", "lr_sweeep"], "--grid lr_sweeep: is not one of demo, paper, "),
        (["--grid", "lr_sweep", "--trials", "0"], "--trials 0: must be at least 1"),
        (["--grid", "lr_sweep", "--over", "papr"], '--over: "papr" is no grid of this file;'),
        (["--grid", "demo", "--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--grid", "demo", "--dry-run", "--quiet"], "--quiet goes with a run; a --dry-run prints its plan"),
        (["--grid", "demo", "--log", "tensorbord"], "did you mean tensorboard?"),
        (
            ["--grid", "demo", "--json", "--address", "ray://127.0.0.1:1"],
            "--json: over --address ray://127.0.0.1:1 both",
        ),
        (["--grid", "demo", "--experiments", "none.yaml"], "none.yaml: cannot be read"),
        (["--grid", "demo", "--cpus-per-trial", "0"], "--cpus-per-trial 0: must be at least 1"),
        (["--grid", "demo", "--save-every", "0"], "--save-every 0: must be more than 0 seconds"),
        (["--grid", "demo", "--save-every", "nan"], "--save-every nan: must be more than 0 seconds"),
        (["--grid", "demo", "--gpu-share", "nan"], "--gpu-share nan: give auto, a fraction up to 1 or a whole number"),
        (["--grid", "demo", "--gpu-share", "most"], "--gpu-share most: give auto, a fraction up to 1 or a whole"),
        (["--grid", "demo", "--dry-run", "--preflight"], "--preflight trains two steps of every row, --dry-run trains"),
        (["--grid", "demo", "--on", "cpus=4"], "--on describes machines that are not there; it goes with --dry-run"),
        (["--grid", "demo", "--dry-run", "--on", "cpus=4", "--address", "auto"], "--on and --address both say"),
        (["--grid", "demo", "--dry-run", "--on", "cpu=4"], '--on cpu=4: "cpu=4" is not one of nodes=N, cpus=N'),
        (["--grid", "demo", "--dry-run", "--cpus-per-trial", "999"], "a trial asks for 999 CPUs and 0 GPUs"),
        (["--grid", "demo", "--dry-run", "--gpu-share", "0.5", "--on", "cpus=4"], "the cluster has no GPU"),
        (["--grid", "demo", "--address", "127.0.0.1:1"], "--address 127.0.0.1:1: nothing listens there"),
        (["--grid", "demo", "--gpu-share", "1.5"], "--gpu-share 1.5: give auto, a fraction up to 1 or a whole number"),
    ],
)
def test_bad_input_exits_with_2_and_the_mend(
    arguments: list[str], message: str, tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, data_path, *arguments) == 2
    assert message in capsys.readouterr().err


def test_bad_results_uri_is_said(data_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "demo", "--dry-run", "--data", str(data_path), "--results", "ftp://x/y"]) == 2
    assert "--results ftp://x/y: cannot be opened" in capsys.readouterr().err


def test_the_plan_of_a_sweep_names_trials_and_rows_left_out(
    tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--grid", "alpha_sweep", "--over", "demo", "--only", "model=small_vit,pretrained=false", "--dry-run")
    assert call(tmp_path, data_path, *given) == 0
    shown = capsys.readouterr().out
    assert "vit-mixup mix_alpha=0.316" in shown and "to run: 10 runs" in shown
    assert "left out of alpha_sweep: vit-default (augment.mix_alpha is null there)" in shown
    assert "up to 2 more runs will be proposed on the way" in shown and not (tmp_path / "results").exists()
    assert call(tmp_path, data_path, *given, "--json", "--search", "random", "--trials", "3") == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["runs"]) == 6 and plan["sweep"]["field"] == "augment.mix_alpha"
    assert plan["sweep"]["left_out"] == ["vit-default"] and plan["sweep"]["search"] == "random"


def test_a_sweep_of_which_nothing_can_run_exits_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--grid", "lr_sweep", "--over", "demo", "--only", "label=vit-mixup", "--data", str(tmp_path / "none")]
    assert main([*given, "--results", str(tmp_path / "results")]) == 1
    shown = capsys.readouterr().out
    assert "5 BLOCKED" in shown and "vit-mixup: nothing chosen, vit-mixup lr=0.0001 is blocked" in shown


def test_all_blocked_exits_with_1_and_tells_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = str(tmp_path / "results")
    assert main(["--grid", "demo", "--data", str(tmp_path / "none"), "--results", results]) == 1
    shown = capsys.readouterr().out
    assert "14 BLOCKED" in shown and "run: python -m datasets.prepare digits" in shown
    assert f"python -m analysis.tables --grid demo --results {results}" in shown


def test_json_without_a_dry_run_is_one_object_on_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = str(tmp_path / "results")
    given = ["--grid", "demo", "--data", str(tmp_path / "none"), "--results", results]
    assert main([*given, "--json"]) == 1
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert {run["state"] for run in answer["runs"]} == {"blocked"} and len(answer["runs"]) == 14
    first = answer["runs"][0]
    assert list(first) == ["label", "seed", "run_id", "state", "reason", "top1", "seconds"]
    assert "digits is not prepared" in first["reason"] and first["top1"] is None
    assert "14 BLOCKED" in shown.err and "nothing to run" in shown.err


def test_quiet_prints_failures_and_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = str(tmp_path / "results")
    assert main(["--grid", "demo", "--data", str(tmp_path / "none"), "--results", results, "--quiet"]) == 1
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "grid demo: 14 BLOCKED" and len(rest) == 3
