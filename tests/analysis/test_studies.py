"""The grids of the other studies: every command works on them or says in words why it cannot, published values stand
beside ours, and a row that was only evaluated is no fault."""

from __future__ import annotations

import hashlib
import importlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from study_store import NUM_TEST, load_study, write_study_store

from analysis import bundle, check, compact, figures, power, report, tables, verify
from analysis.audit import audit_grid
from analysis.figures import FIGURES
from analysis.load import load_results
from analysis.tables import Source, build
from trainable import records
from trainable.storage import Storage

GRIDS = ("tiny_stages", "ablations", "vit_transfer")
Stores = Callable[[str], Storage]
FEW = {
    "tiny_stages": ("s2-224-imagenet", "s3-eval-224-on-64", "s3-64-from-224"),
    "ablations": ("resnet18-aug", "vit-aux-3x4x256-8x8", "vitn-12x256-8x8-lt"),
    "vit_transfer": ("resnet18-cifar100-pretrain", "resnet18-cifar100-probe", "deit-tiny-in1k-probe"),
}
"""Rows that are done where much is made of each."""


def by_run(frame: object) -> dict[str, Mapping[str, object]]:
    return {str(row["run"]): row for row in frame.raw}  # type: ignore[attr-defined]


@pytest.fixture(scope="module", params=GRIDS)
def few(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Storage]:
    """A grid of which a few rows are done, and its store."""
    grid = request.param
    store = Storage(str(tmp_path_factory.mktemp(f"few-{grid}")))
    write_study_store(store, grid, without=[run.label for run in load_study(grid).runs if run.label not in FEW[grid]])
    return grid, store


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("best", ["--by", "top1"]),
        ("pivot", []),
        ("curves", ["--y", "top1,loss_nats"]),
        ("curves", ["--y", "top1", "--split", "test", "--x", "epoch"]),
        ("tables", []),
    ],
)
def test_rows_of_other_axes_are_shown(
    grid: str, command: str, options: list[str], study_store: Stores, tmp_path: Path
) -> None:
    main = importlib.import_module(f"analysis.{command}").main
    assert main(["--grid", grid, "--results", study_store(grid).uri, "--out", str(tmp_path), *options]) == 0
    assert len(list((tmp_path / grid).iterdir())) > 1


@pytest.mark.parametrize("grid", GRIDS)
def test_a_store_of_another_study_breaks_no_rule(
    grid: str, study_store: Stores, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check.main(["--grid", grid, "--results", study_store(grid).uri]) == 0
    shown = capsys.readouterr().out
    assert "FAIL" not in shown and "0 faults" in shown
    asked = {
        line.split()[1]: line.split()[0] for line in shown.splitlines() if line.split()[:1] in (["PASS"], ["----"])
    }
    assert (asked["splits"], asked["scalars"]) == ("PASS", "PASS")
    assert asked["steps"] == ("PASS" if grid == "ablations" else "----")


@pytest.mark.parametrize("grid", GRIDS)
def test_what_has_no_hypothesis_says_so(grid: str, study_store: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    assert power.main(["--grid", grid, "--results", study_store(grid).uri]) == 2
    assert "has the parts of no registered design" in capsys.readouterr().err
    assert power.main(["--grid", grid, "--results", study_store(grid).uri, "--next", "H1"]) == 2


@pytest.mark.parametrize("grid", GRIDS)
def test_figures_pass_the_lint_or_say_why_not(
    grid: str, study_store: Stores, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [kind.id for kind in FIGURES if kind.id not in ("F6", "F7")]
    given = ["--grid", grid, "--results", study_store(grid).uri, "--out", str(tmp_path), "--figures", ",".join(ids)]
    assert figures.main([*given, "--format", "svg"]) == 0, "the lint found nothing"
    shown = capsys.readouterr()
    said = {line.split()[0]: line for line in shown.out.splitlines()}
    assert set(said) == set(ids) and not shown.err
    missing = {one for one in ids if "not drawn" in said[one]}
    assert missing == {"F1", "F2", "F3", "F5", "F8", "F14", *(["F17"] if grid == "ablations" else [])}
    assert "all rows have one augmentation (none)" in said["F1"] and "no axis mix" in said["F5"]


def test_a_report_is_made(few: tuple[str, Storage], tmp_path: Path) -> None:
    grid, store = few
    assert report.main(["--grid", grid, "--results", store.uri, "--out", str(tmp_path)]) == 0
    page = (tmp_path / grid / "report.html").read_text()
    assert "No hypothesis is judged here" in page and 'id="T7"' in page and "Faults of the figures" not in page
    assert ('id="F17"' in page, 'id="T15"' in page) == (grid != "ablations", grid == "ablations")
    assert "T16 (" not in page, "what this kind of grid cannot have is missed by nobody"


def test_a_bundle_is_verified(few: tuple[str, Storage], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid, store = few
    archive = tmp_path / "grid.tar"
    assert bundle.main(["--grid", grid, "--results", store.uri, "--out", str(archive)]) == 0
    capsys.readouterr()
    assert verify.main([str(archive), "--out", str(tmp_path / "again")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("SAME")
    names = {path.name for path in (tmp_path / "again").iterdir()}
    assert {"T1.csv", "T7.csv", *(["T15.csv", "T17.csv"] if grid == "ablations" else ["F17.csv"])} <= names


def test_a_store_is_the_same_after_compaction(study_store: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table `steps`, which not every run has, stays in its own files."""
    store = study_store("ablations")
    before = [build(Source(store, load_results(store, "ablations")), name) for name in ("T1", "T15", "T17")]
    monkeypatch.setattr(compact, "WORTH_IT", 2)
    assert compact.compact(store).num_commits == 21
    assert [build(Source(store, load_results(store, "ablations")), name) for name in ("T1", "T15", "T17")] == before


@pytest.mark.parametrize("grid", ["tiny_stages", "vit_transfer"])
def test_published_values_stand_beside_ours(grid: str, study_store: Stores) -> None:
    source = Source(study_store(grid), load_results(study_store(grid), grid))
    results, published = by_run(build(source, "T1")), by_run(build(source, "T7"))
    rows = {run.label: run.published for run in load_study(grid).runs}
    assert set(results) == set(rows) and set(published) == {label for label, one in rows.items() if one is not None}
    for label, row in published.items():
        theirs = rows[label]
        assert theirs is not None and row["published_top1"] == theirs.top1
        assert row["top1"] == pytest.approx(theirs.top1, abs=0.5 / NUM_TEST)
        assert results[label]["difference"] == row["difference"] == pytest.approx(row["top1"] - theirs.top1)  # type: ignore[operator]
        assert row["difference_low"] < row["difference"] < row["difference_high"]  # type: ignore[operator]


def test_a_row_that_was_only_evaluated_says_so(study_store: Stores) -> None:
    store = study_store("tiny_stages")
    source = Source(store, load_results(store, "tiny_stages"))
    rows = by_run(build(source, "T1"))
    assert rows["s3-eval-224-on-64"]["notes"] == "evaluated only, not trained"
    assert "evaluated" not in str(rows["s3-64-from-224"]["notes"])
    (cost,) = [row for row in build(source, "T11").raw if row["run"] == "s3-eval-224-on-64"]
    assert cost["train_images_per_s"] is None


def test_learning_curves_of_rows_apart_stand_in_rows(study_store: Stores, tmp_path: Path) -> None:
    """Not on a grid of architectures by settings of which most places are empty; and one evaluation is a dot."""
    for grid, pages in (("ablations", 2), ("tiny_stages", 1)):
        given = ["--grid", grid, "--results", study_store(grid).uri, "--out", str(tmp_path), "--figures", "F4"]
        assert figures.main([*given, "--format", "svg"]) == 0
        drawn = sorted((tmp_path / grid).glob("F4*.svg"))
        text = "".join(path.read_text() for path in drawn)
        assert len(drawn) == pages and "no run done" not in text and "unknown" not in text
        assert all(
            f">{run.label}<" in text for run in load_study(grid).runs if run.label not in ("resnet34", "vit-b-8x8")
        )
    caption = (tmp_path / "tiny_stages" / "F4.json").read_text()
    assert "no final checkpoint, but some of those that other rows start from" in caption


def test_the_same_store_gives_the_same_tables_to_the_byte(study_store: Stores, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        given = ["--grid", "ablations", "--results", study_store("ablations").uri, "--out", str(tmp_path / name)]
        assert tables.main(given) == 0
        files = sorted((tmp_path / name / "ablations").iterdir())
        digests.append([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])
    assert digests[0] == digests[1] and {"T15.md", "T16.tex", "T17.html"} <= {name for name, _ in digests[0]}


def test_a_store_of_the_second_schema_is_read(study_store: Stores, tmp_path: Path) -> None:
    """What it had not yet is nothing: no temperatures, no table of steps, no mark of stand-ins."""
    given = study_store("tiny_stages")
    assert given.local_root is not None
    shutil.copytree(given.local_root, tmp_path / "old")
    store = Storage(str(tmp_path / "old"))
    for commit in records.read_commits(store).values():
        trials = records.read_table(store, "trials", [commit]).drop_columns(["init_stand_in", "final_scalars_json"])
        old = records.to_parquet(trials.replace_schema_metadata({b"schema_version": b"2"}))
        store.put(commit.file("trials").path, old)
        changed = {"bytes": len(old), "sha256": hashlib.sha256(old).hexdigest()}
        files = [file.model_copy(update=changed if file.table == "trials" else {}) for file in commit.files]
        first = commit.model_copy(update={"schema_version": 2, "files": tuple(files)})
        store.put(f"commits/{commit.run_id}--{commit.attempt_id}.json", first.model_dump_json().encode())
    assert all(commit.schema_version == 2 for commit in records.read_commits(store).values())
    audit = audit_grid(store, "tiny_stages")
    assert not audit.faults and audit.num_done == 6
    before = [build(Source(one, load_results(one, "tiny_stages")), "T1").raw for one in (store, given)]
    assert before[0] == before[1]
    assert compact.compact(store).written
    commit = next(iter(records.read_commits(store).values()))
    tables = {file.table: records.read_table(store, file.table, [commit]) for file in commit.files}
    column = tables["trials"].schema.get_field_index("final_scalars_json")
    tables["trials"] = tables["trials"].set_column(column, "final_scalars_json", pa.array(["{}"], pa.string()))
    records.commit_run(store, run_id=commit.run_id, attempt_id="a2", dataset=commit.dataset, tables={
        name: table.set_column(table.schema.get_field_index("attempt_id"), table.schema.field("attempt_id"), pa.array(["a2"] * len(table)))
        for name, table in tables.items()
    })  # fmt: skip
    audit = audit_grid(store, "tiny_stages")
    assert not audit.faults and audit.asked["attempts"] == 1, "an attempt of the new version agrees with the old one"
