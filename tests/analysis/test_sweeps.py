"""Response curves from the store alone: chosen value, values that cannot be told from it, pruned trials, test top-1."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from toy import exec_spec

import analysis.best
import analysis.bundle
import analysis.curves
import analysis.pivot
import analysis.verify
from analysis.frame import to_csv, to_markdown, to_tex
from analysis.load import AnalysisError
from analysis.sweeps import Point, SweepResults, curves, is_apart, is_sweep, load_sweep, sweep_frame
from analysis.tables import main
from trainable.attempt import Attempt
from trainable.storage import Storage
from trainable.sweep_records import Score
from tuner.facts import LocalFacts
from tuner.grid import Selection, load_grid
from tuner.ledger import survey, write_manifest
from tuner.planner import SweepPlanner
from tuner.sweep import open_sweep
from tuner.sweep_file import Choices

SHORT = {"budget.epochs": 2, "data.limit_train": 40}
ROWS = (("label", "vit-default"), ("label", "vit-mixup"))


def invoke(root: Path, storage: Storage, data_path: Path, selection: Selection, **choices: Any) -> SweepPlanner:
    """A sweep over grid demo as `tuner.run` would do it, in this process."""
    facts = LocalFacts(data_path, None, download=False)
    path = root / "experiments.yaml"
    planner = SweepPlanner(
        open_sweep(path, "lr_sweep", Choices(over="demo", **choices), selection, facts), storage, write=True
    )
    write_manifest(storage, planner.grid, survey(storage, planner.grid, planner.pruned), [], {}, planner.describe())
    return planner


def train(planner: SweepPlanner, storage: Storage, data_path: Path, leave: tuple[str, ...] = ()) -> None:
    """Trains all that is not pruned and whose label does not end as in `leave`."""
    done: set[str] = set()
    while True:
        todo = [run for run in planner.grid.runs if run.run_id not in done | set(planner.pruned)]
        todo = [run for run in todo if not run.label.endswith(leave or ("?",))]
        for run in todo:
            attempt = Attempt(run.spec, exec_spec(data_path), storage)
            while not attempt.done:
                attempt.advance()
            done.add(run.run_id)
        if not planner.more(survey(storage, planner.grid, planner.pruned).states, idle=True):
            return


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, root: Path, data_path: Path) -> Storage:
    """Two rows over three rates, one trial pruned; the first row also as grid demo has it."""
    storage = Storage(str(tmp_path_factory.mktemp("results")))
    planner = invoke(root, storage, data_path, Selection(only=ROWS, fields=SHORT), scheduler="asha", trials=3)
    hopeless = next(run for run in planner.grid.runs if run.label == "vit-default lr=0.0001")
    Attempt(hopeless.spec, exec_spec(data_path), storage).stop()
    stop = {
        "kind": "rung",
        "action": "stop",
        "run_id": hopeless.run_id,
        "epoch": 1.0,
        "max_epochs": 2,
        "val_top1": 0.25,
    }
    planner.log.add([{**stop, "why": "below the cutoff"}])
    planner.prune(planner.log.decisions[-1])
    train(planner, storage, data_path)
    own = load_grid(
        root / "experiments.yaml",
        "demo",
        Selection(only=ROWS[:1], fields=SHORT),
        LocalFacts(data_path, None, download=False),
    )
    attempt = Attempt(own.runs[0].spec, exec_spec(data_path), storage)
    while not attempt.done:
        attempt.advance()
    return storage


@pytest.fixture(scope="module")
def results(store: Storage) -> SweepResults:
    return load_sweep(store, "lr_sweep")


def raw(results: SweepResults, label: str) -> list[dict[str, Any]]:
    return [dict(line) for line in sweep_frame(results).raw if line["run"] == label]


def test_a_curve_a_row_by_rising_value_with_intervals(results: SweepResults) -> None:
    lines = raw(results, "vit-mixup")
    assert [line["value"] for line in lines] == [1e-4, 1e-3, 1e-2]
    for line in lines:
        assert line["holdout_low"] < line["holdout_top1"] < line["holdout_high"]
        assert len(str(line["trial_run_ids"])) == 16
    assert sum(line["is_chosen"] for line in lines) == 1
    chosen = next(line for line in lines if line["is_chosen"])
    assert chosen["holdout_top1"] == max(line["holdout_top1"] for line in lines) and chosen["verdict"] == "chosen"
    others = {line["verdict"] for line in lines if not line["is_chosen"]}
    assert others <= {"worse", "cannot be told from the chosen"}


def test_the_chosen_rows_test_top1_stands_beside_the_rows_own(results: SweepResults) -> None:
    lines = raw(results, "vit-default")
    chosen = next(line for line in lines if line["is_chosen"])
    own = next(line for line in lines if line["is_default"])
    assert own["value"] == 3e-3 and own["holdout_top1"] is None and own["verdict"] == "not tried"
    for line in (chosen, own):
        assert line["test_low"] < line["test_top1"] < line["test_high"]
    assert chosen["test_run_ids"] != own["test_run_ids"] and chosen["test_run_ids"] not in chosen["trial_run_ids"]
    assert all(line["test_top1"] is None for line in lines if line not in (chosen, own))
    assert not any(line["is_default"] for line in raw(results, "vit-mixup")), "its own value is not done"


def test_a_pruned_trial_says_how_far_it_got(results: SweepResults) -> None:
    line = raw(results, "vit-default")[0]
    assert line["verdict"] == "pruned at epoch 1 of 2 with 25.00 %" and line["pruned_epoch"] == 1.0
    assert line["holdout_top1"] is None and line["num_seeds"] == 0


def test_all_formats_come_from_one_frame(results: SweepResults) -> None:
    frame = sweep_frame(results)
    assert next(csv.DictReader(io.StringIO(to_csv(frame))))["field"] == "optim.lr"
    assert "| vit-default | 0.0001 | 0 | — | — |  |  | pruned at epoch 1" in to_markdown(frame)
    assert r"vit-default & 0.0001 & 0 & --- & ---" in to_tex(frame)
    notes = "\n".join(frame.notes)
    assert "the value was chosen on them alone" in notes and "over=demo" in notes
    assert "optim.lr over demo: search grid, scheduler asha; trials with data.val_fraction=0.1" in notes


def test_the_picture_shows_gaps_and_the_best(results: SweepResults) -> None:
    first, second = curves(results)
    assert first.split()[:1] == ["vit-default"] and first.split()[1][0] == "·" and "█" in first
    assert len(second.split()[1]) == 3 and second.endswith("at 0.0001 to 0.01")


def test_the_command_shows_and_writes_the_sweep(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--grid", "lr_sweep", "--results", store.uri, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "sweep lr_sweep: Learning rate of every row" in shown and "chosen" in shown and "█" in shown
    (folder,) = tmp_path.iterdir()
    assert folder.name.startswith("lr_sweep-") and sorted(path.name for path in folder.iterdir()) == [
        "T1.csv",
        "T1.html",
        "T1.md",
        "T1.tex",
    ]


def test_seeds_are_averaged_and_their_spread_is_the_interval(
    root: Path, tmp_path: Path, data_path: Path, store: Storage
) -> None:
    assert store.local_root is not None
    shutil.copytree(store.local_root, tmp_path / "copy")
    storage = Storage(str(tmp_path / "copy"))
    planner = invoke(root, storage, data_path, Selection(only=ROWS[1:], seeds=(223, 224), fields=SHORT), trials=3)
    train(planner, storage, data_path, leave=("lr=0.01",))
    results = load_sweep(storage, "lr_sweep")
    points = {point.value: point for point in results.rows[1].points}
    both = points[1e-3]
    values = [score.top1 for score in both.scores.values()]
    low, high = both.interval
    assert len(values) == 2 and both.top1 == pytest.approx(sum(values) / 2)
    assert low is not None and high is not None and low <= both.top1 <= high
    assert (points[1e-2].state == "done" and len(points[1e-2].scores) == 1) or points[1e-2].state == "not run yet"
    assert len(results.rows) == 2, "rows of an earlier invocation stay in the table"


def point(value: float, *seeds: float, num: int = 1000) -> Point:
    scores = {seed: Score(top1=top1, num_images=num, epoch=1.0) for seed, top1 in enumerate(seeds)}
    return Point(value=value, scores=scores, state="done", pruned_epoch=None, run_ids=())


def test_what_can_be_told_apart() -> None:
    assert is_apart(point(1, 0.9), point(2, 0.8)) and not is_apart(point(1, 0.9), point(2, 0.89))
    assert not is_apart(point(1, 0.9, num=20), point(2, 0.8, num=20)), "few images tell little"
    assert is_apart(point(1, 0.90, 0.91, 0.92), point(2, 0.80, 0.81, 0.83))
    assert not is_apart(point(1, 0.90, 0.7), point(2, 0.80, 0.81))
    assert not is_apart(point(1, 0.9), point(2))


def test_a_population_is_shown_as_schedules(root: Path, storage: Storage, data_path: Path) -> None:
    selection = Selection(only=ROWS[:1], fields={**SHORT, "budget.epochs": 4})
    planner = invoke(root, storage, data_path, selection, scheduler="pbt", trials=2)
    train(planner, storage, data_path)
    results = load_sweep(storage, "lr_sweep")
    points = results.rows[0].points
    (choice,) = planner.log.of("choose")
    assert len(points) == 2 and all(len(one.value) == 4 for one in points)
    assert results.rows[0].chosen == choice["value"] and any(one.value == choice["value"] for one in points)
    lines = raw(results, "vit-default")
    assert sum(line["is_chosen"] for line in lines) == 1 and " > " in str(lines[0]["value"])
    assert next(line for line in lines if line["is_chosen"])["test_top1"] is not None and curves(results) == []


def test_grids_are_no_sweeps_and_an_empty_sweep_is_said(root: Path, storage: Storage, data_path: Path) -> None:
    grid = load_grid(root / "experiments.yaml", "demo")
    write_manifest(storage, grid, survey(storage, grid), [], {})
    assert not is_sweep(storage, "demo") and not is_sweep(storage, "nothing")
    invoke(root, storage, data_path, Selection(only=ROWS), search="tpe")
    with pytest.raises(AnalysisError, match=r"sweep lr_sweep: no trial was begun yet; run it: python -m tuner.run"):
        sweep_frame(load_sweep(storage, "lr_sweep"))


def test_a_sweep_is_bundled_with_its_log(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials that no manifest names and the decisions about them: the response curves are made again of the bundle."""
    assert analysis.bundle.main(["--grid", "lr_sweep", "--results", store.uri, "--out", str(tmp_path / "x.tar")]) == 0
    with tarfile.open(tmp_path / "x.tar") as archive:
        names = archive.getnames()
    assert sorted(name.split("/")[-1] for name in names if "/commits/" in name) == store.names("commits")
    assert any(name.startswith("store/sweeps/lr_sweep/") for name in names) and "outputs/T1.csv" in names
    assert analysis.verify.main([str(tmp_path / "x.tar")]) == 0, capsys.readouterr().out


def test_curves_and_bests_take_a_sweeps_values_for_rows(store: Storage, tmp_path: Path) -> None:
    common = ["--results", store.uri, "--out", str(tmp_path), "--grid", "lr_sweep"]
    assert analysis.curves.main([*common, "--filter", "vit-mixup", "--group", "optim.lr", "--split", "val"]) == 0
    with (tmp_path / Path(*next(tmp_path.iterdir()).relative_to(tmp_path).parts) / "curves.csv").open() as file:
        groups = {row["group"] for row in csv.DictReader(file)}
    assert len(groups) == 3 and all(group.startswith("optim.lr=") for group in groups)
    assert analysis.best.main([*common, "--split", "val"]) == 0
    assert analysis.pivot.main(common) == 2
