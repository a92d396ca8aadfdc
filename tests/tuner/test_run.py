"""The command line: what it prints, what it refuses, and that its options stay few."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import analysis.tables
import datasets.prepare
import trainable.evaluate
import trainable.run
from tuner.run import main, parser

OPTIONS = {
    "tuner.run": "--grid --list --dry-run --json --experiments --only --seeds --epochs --limit-train --limit-eval "
    "--data --results --weights --address --cpus-per-trial --gpu-share --save-every",
    "trainable.run": "--grid --label --data --results --weights --device --threads --save-every",
    "trainable.evaluate": "run --checkpoint --dataset --data --results --batch-size",
    "datasets.prepare": "names --source --data --image-size --replace",
    "analysis.tables": "--grid --variant --results --out --format",
}
PARSERS = {
    "tuner.run": parser,
    "trainable.run": trainable.run.parser,
    "trainable.evaluate": trainable.evaluate.parser,
    "datasets.prepare": datasets.prepare.parser,
    "analysis.tables": analysis.tables.parser,
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


def test_dry_run_prints_the_plan_and_touches_nothing(
    tmp_path: Path, data_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path, data_path, "--grid", "demo", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "to run: 14 runs" in shown and "parent-vit" in shown and "waiting" in shown
    assert not (tmp_path / "results").exists()


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
    for more in ([], ["--seeds", "223,224"], ["--epochs", "1"], ["--limit-train", "40"], ["--limit-eval", "40"]):
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
        (["--grid", "papr"], "--grid papr: is not one of demo, paper, "),
        (["--grid", "demo", "--only", "mix"], "--only mix: give axis=value pairs with commas"),
        (["--grid", "demo", "--only", "mix=cutmixx"], "did you mean cutmix?"),
        (["--grid", "demo", "--seeds", "1,x"], "--seeds 1,x: give whole numbers with commas"),
        (["--grid", "demo", "--seeds", "1,1"], "--seeds 1,1: a seed is there twice"),
        (["--grid", "demo", "--seeds", "-1", "--dry-run"], "seed"),
        (["--grid", "demo", "--epochs", "0"], "--epochs 0: must be at least 1"),
        (["--grid", "demo", "--json"], "--json goes with --dry-run"),
        (["--grid", "demo", "--experiments", "none.yaml"], "none.yaml: cannot be read"),
        (["--grid", "demo", "--cpus-per-trial", "0"], "--cpus-per-trial 0: must be at least 1"),
        (["--grid", "demo", "--save-every", "0"], "--save-every 0: must be more than 0 seconds"),
        (["--grid", "demo", "--save-every", "nan"], "--save-every nan: must be more than 0 seconds"),
        (["--grid", "demo", "--gpu-share", "nan"], "--gpu-share nan: give a fraction up to 1 or a whole number"),
        (["--grid", "demo", "--address", "127.0.0.1:1"], "--address 127.0.0.1:1: nothing listens there"),
        (["--grid", "demo", "--gpu-share", "1.5"], "--gpu-share 1.5: give a fraction up to 1 or a whole number"),
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


def test_all_blocked_exits_with_1_and_tells_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = str(tmp_path / "results")
    assert main(["--grid", "demo", "--data", str(tmp_path / "none"), "--results", results]) == 1
    shown = capsys.readouterr().out
    assert "14 BLOCKED" in shown and "run: python -m datasets.prepare digits" in shown
    assert f"python -m analysis.tables --grid demo --results {results}" in shown
