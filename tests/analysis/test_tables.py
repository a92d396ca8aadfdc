"""The results table: the study's rows, recomputed numbers, gaps as gaps, watermarks, one frame for all formats."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy import exec_spec

from analysis.frame import MINUS, to_csv, to_markdown, to_tex
from analysis.load import AnalysisError, load_results
from analysis.results_table import _remarks, results_frame
from analysis.stats import contrast, wilson
from analysis.tables import main
from trainable import records
from trainable.attempt import Attempt, RunFailed
from trainable.records import RecordError
from trainable.storage import Storage
from tuner.facts import LocalFacts
from tuner.grid import Grid, Selection, load_grid
from tuner.ledger import survey, write_manifest

SHORT = {"budget.epochs": 1, "data.limit_train": 20}


def record(grid: Grid, storage: Storage) -> None:
    write_manifest(storage, grid, survey(storage, grid), [], {})


def train(grid: Grid, labels: list[str], storage: Storage, data_path: Path) -> None:
    for run in sorted(grid.runs, key=lambda run: len(run.parents)):
        if run.label in labels:
            attempt = Attempt(run.spec, exec_spec(data_path), storage)
            while not attempt.done:
                attempt.advance()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, root: Path, data_path: Path) -> Storage:
    """Grid `demo`, shortened: two rows with two seeds, one with one, one failed, the rest not run."""
    storage = Storage(str(tmp_path_factory.mktemp("results")))
    facts = LocalFacts(data_path, None, download=False)
    labels = ["resnet-default", "resnet-mixup", "vit-default", "vit-mixup"]
    only = tuple(("label", label) for label in labels)
    one = load_grid(root / "experiments.yaml", "demo", Selection(only=only, fields=SHORT), facts)
    record(one, storage)
    train(one, ["resnet-default", "resnet-mixup", "vit-default"], storage, data_path)
    seeds = Selection(only=only[:2], seeds=(223, 224), fields=SHORT)
    two = load_grid(root / "experiments.yaml", "demo", seeds, facts)
    record(two, storage)
    train(two, ["resnet-default", "resnet-mixup"], storage, data_path)
    broken = next(run for run in one.runs if run.label == "vit-mixup")
    with pytest.raises(RunFailed):
        Attempt(broken.spec, exec_spec(data_path / "none"), storage)
    return storage


@pytest.fixture
def copy(store: Storage, tmp_path: Path) -> Storage:
    assert store.local_root is not None
    shutil.copytree(store.local_root, tmp_path / "copy")
    return Storage(str(tmp_path / "copy"))


def test_all_rows_of_the_grid_stand_there_with_gaps(store: Storage) -> None:
    results = load_results(store, "demo")
    assert len(results.rows) == 14 and [len(row.done) for row in results.rows[:3]] == [2, 2, 0]
    frame = results_frame(results)
    rows = {row[0]: dict(zip(frame.columns, row, strict=True)) for row in frame.rows}
    assert rows["resnet-cutmix"]["final %"] == "—" and rows["resnet-cutmix"]["seeds"] == "0"
    notes = "\n".join(frame.notes)
    assert "not selected yet" in notes and "FAILED: DataError: digits is not prepared" in notes
    assert rows["vit-mixup"]["notes"] != rows["resnet-cutmix"]["notes"]
    assert rows["parent-vit (parent)"]["seeds"] == "0"


def test_short_runs_are_watermarked(store: Storage) -> None:
    frame = results_frame(load_results(store, "demo"))
    assert frame.notes[0].startswith("SHORT OR CHANGED RUN (budget.epochs=1, data.limit_train=20)")


def test_numbers_are_those_of_the_stored_predictions(store: Storage) -> None:
    results = load_results(store, "demo")
    single = next(row for row in results.rows if row.label == "vit-default")
    (run,) = single.done
    table = records.read_table(store, "predictions", [records.read_commits(store)[run.run_id]]).to_pandas()
    final = table[table["eval_name"] == "final"]
    cells = {row[0]: dict(zip(results_frame(results).columns, row, strict=True)) for row in results_frame(results).rows}
    assert cells["vit-default"]["final %"] == f"{100 * final['correct'].mean():.2f}"
    low, high = wilson(int(final["correct"].sum()), len(final))
    assert cells["vit-default"]["95 % CI"] == f"[{100 * low:.1f}, {100 * high:.1f}]"


def test_several_seeds_have_mean_deviation_and_the_two_way_interval(store: Storage) -> None:
    results = load_results(store, "demo")
    row = results.rows[0]
    correct = np.stack([run.evaluations["final"].correct for run in row.done])
    found = contrast({"row": 1.0}, {"row": correct})
    raw = results_frame(results).raw[0]
    assert raw["num_seeds"] == 2 and raw["final_top1"] == pytest.approx(correct.mean())
    assert raw["final_top1_sd"] == pytest.approx(correct.mean(axis=1).std(ddof=1))
    assert (raw["final_top1_low"], raw["final_top1_high"]) == pytest.approx(tuple(np.clip(found.interval, 0, 1)))


def test_formats_agree_and_are_byte_stable(store: Storage) -> None:
    frames = [results_frame(load_results(store, "demo")) for _ in range(2)]
    for render in (to_markdown, to_csv, to_tex):
        assert render(frames[0]) == render(frames[1])
    rows = list(csv.DictReader(io.StringIO(to_csv(frames[0]))))
    table = [line for line in to_markdown(frames[0]).splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(table) == 14
    for row, line in zip(rows, table, strict=True):
        cells = dict(zip(frames[0].columns, [cell.strip() for cell in line.strip("|").split("|")], strict=True))
        assert cells["run"].removesuffix(" (parent)") == row["run"]
        if row["final_top1"]:
            assert cells["final %"].split(" ")[0] == f"{100 * float(row['final_top1']):.2f}"


def test_tex_is_escaped(store: Storage) -> None:
    tex = to_tex(results_frame(load_results(store, "demo")))
    assert r"small\_resnet" in tex and r"95 \% CI" in tex and tex.count(r"\begin{tabular}") == 1
    assert "—" not in tex and "±" not in tex


def test_published_values_stand_beside_ours(root: Path, tmp_path: Path, data_path: Path) -> None:
    storage = Storage(str(tmp_path / "paper"))
    grid = load_grid(root / "experiments.yaml", "paper", None, LocalFacts(data_path, None, download=False))
    record(grid, storage)
    frame = results_frame(load_results(storage, "paper"))
    first = dict(zip(frame.columns, frame.rows[0], strict=True))
    assert (first["run"], first["published %"], first["difference"]) == ("Control-1", "45.88", "—")
    assert len(frame.rows) == 24
    assert any("BLOCKED: cifar100 is not prepared" in note for note in frame.notes)
    assert any("its recall and results file say 0.5228" in note for note in frame.notes)


def test_the_difference_is_of_the_evaluation_that_was_published(store: Storage) -> None:
    results = load_results(store, "demo")
    row = next(row for row in results.rows if row.label == "vit-default")
    (run,) = row.done
    best = dataclasses.replace(run.evaluations["best_on_test"], metrics={**run.trial, "top1": 0.75})
    run = dataclasses.replace(run, evaluations={**run.evaluations, "best_on_test": best})
    row = dataclasses.replace(row, published={"top1": 0.5}, runs=(run,))
    for published_eval, expected in (("best_on_test", "+25.00"), (None, None)):
        frame = results_frame(dataclasses.replace(results, rows=(row,), published_eval=published_eval))
        cells = dict(zip(frame.columns, frame.rows[0], strict=True))
        final = 100 * (run.evaluations["final"].metrics["top1"] - 0.5)
        assert cells["difference"] == (expected or f"{final:+.2f}".replace("-", MINUS))


def test_a_row_that_was_changed_since_is_not_shown_with_its_old_run(copy: Storage, root: Path, data_path: Path) -> None:
    facts = LocalFacts(data_path, None, download=False)
    grid = load_grid(
        root / "experiments.yaml", "demo", Selection(only=(("label", "vit-default"),), fields=SHORT), facts
    )
    changed = dataclasses.replace(grid.runs[0], run_id="f" * 16)
    record(dataclasses.replace(grid, runs=(changed,)), copy)
    row = next(row for row in load_results(copy, "demo").rows if row.label == "vit-default")
    assert [(run.run_id, run.status) for run in row.runs] == [("f" * 16, "not run")]


def test_the_full_variant_comes_first_and_choices_are_listed(copy: Storage, root: Path, data_path: Path) -> None:
    facts = LocalFacts(data_path, None, download=False)
    other = load_grid(root / "experiments.yaml", "demo", Selection(fields={"budget.epochs": 2}), facts)
    record(other, copy)
    with pytest.raises(AnalysisError, match=r"grid demo: choose one of its 2 variants: --variant \w{8} \(budget"):
        load_results(copy, "demo")
    chosen = load_results(copy, "demo", other.header.variant)
    assert chosen.overrides == {"budget.epochs": 2} and len(chosen.other_variants) == 1
    record(load_grid(root / "experiments.yaml", "demo", None, facts), copy)
    full = load_results(copy, "demo")
    assert full.variant == "full" and len(full.other_variants) == 2
    with pytest.raises(AnalysisError, match="choose one of its 3 variants"):
        load_results(copy, "demo", "0000")


def test_a_row_blocked_now_but_done_before_is_shown(copy: Storage, root: Path, data_path: Path) -> None:
    """The data were moved away since: what was trained with them is still the row's result."""
    before = load_results(copy, "demo")
    path = copy.names("grids/demo")[-1]
    manifest = json.loads(copy.read(f"grids/demo/{path}"))
    manifest["written_at"] = "2099-01-01T00:00:00+00:00"
    for run in manifest["runs"]:
        run.update(run_id="f" * 16, state="blocked", reason="no data")
    copy.put(f"grids/demo/{manifest['variant']}--20990101.json", json.dumps(manifest).encode())
    after = load_results(copy, "demo")
    assert [len(row.done) for row in after.rows] == [len(row.done) for row in before.rows]


def test_damaged_records_are_passed_over_and_said(copy: Storage) -> None:
    damaged = (f"grids/demo/{copy.names('grids/demo')[0]}", f"commits/{copy.names('commits')[0]}")
    for path in damaged:
        copy.put(path, copy.read(path)[:50])
    notes = results_frame(load_results(copy, "demo")).notes
    for path, what in zip(damaged, ("manifest", "commit record"), strict=True):
        assert f"{copy.uri}/{path}: not a whole {what}; it does not count: run the grid again" in notes


def test_changes_at_a_resume_are_footnotes(copy: Storage) -> None:
    """With what changed, where the version that trained recorded it."""
    (row, *_) = load_results(copy, "demo").rows
    (first, *others) = row.runs
    changes = [{"step": 8, "changed": {"threads": [1, 2], "torch": ["2.14", "2.15"]}}, {"step": 9, "changed": {}}]
    for resumed, shown in (
        (json.dumps(changes), "threads 1 to 2, torch 2.14 to 2.15"),
        (None, "threads, libraries or"),
    ):
        trial = {**first.trial, "attempt_numerics_changed": True, "attempt_resumed_under_json": resumed}
        (remark,) = _remarks(dataclasses.replace(row, runs=(dataclasses.replace(first, trial=trial), *others)), {})
        assert remark.startswith(f"seed {first.seed}: resumed under other conditions, so bits may differ: {shown}")


def test_a_number_that_does_not_follow_from_the_predictions_is_refused(copy: Storage) -> None:
    run_id, commit = next(iter(records.read_commits(copy).items()))
    tables = {name: records.read_table(copy, name, [commit]) for name in records.SCHEMAS}
    trials = tables["trials"]
    at = trials.column_names.index("final_top1")
    tables["trials"] = trials.set_column(at, trials.schema.field(at), pa.array([0.999]))
    tables = {
        name: table.set_column(1, table.schema.field(1), pa.array(["z"] * len(table), pa.string()))
        for name, table in tables.items()
    }
    records.commit_run(copy, run_id=run_id, attempt_id="z", dataset="digits", tables=tables)
    with pytest.raises(
        RecordError, match=r"final column top1: recomputed from the predictions is 0\.\d+, .* says 0\.999"
    ):
        load_results(copy, "demo")


def test_command_prints_and_writes(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--results", store.uri, "--out", str(tmp_path)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "resnet-default" in shown and "SHORT OR CHANGED RUN" in shown and "written:" in shown
    (folder,) = tmp_path.iterdir()
    assert sorted(path.name for path in folder.glob("T1.*")) == ["T1.csv", "T1.html", "T1.md", "T1.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "papr"], "--grid papr: .* has no such grid; it has demo"),
        (["--format", "pdf"], '--format: "pdf" is not one of md, csv, tex, html'),
        (["--grid", "demo", "--variant", "x"], r"choose one of its 1 variants: --variant \w{8} \(budget\.epochs=1"),
    ],
)
def test_bad_input_exits_with_2(
    arguments: list[str], message: str, store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert main([*arguments, "--results", store.uri, "--out", str(tmp_path)]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_an_empty_store_says_what_to_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--results", str(tmp_path / "none")]) == 2
    assert "holds no grid; run one: python -m tuner.run --grid demo" in capsys.readouterr().err


def test_it_needs_neither_torch_nor_ray(root: Path) -> None:
    code = "import sys, analysis.tables; print(sorted({'torch', 'ray', 'tuner'} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert shown.stdout.strip() == "[]"
