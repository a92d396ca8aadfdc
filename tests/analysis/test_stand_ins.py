"""No number of a run that began from random stand-ins of published weights is shown without that being said."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

import analysis.check
import analysis.power
import analysis.tables
from analysis import best, curves, features, pivot, report, run_report, sweeps
from analysis.allocation import next_seeds
from analysis.audit import audit_grid
from analysis.figures import FIGURES, draw_figures, load_inputs
from analysis.frame import RENDERERS, Frame, to_csv
from analysis.gates import Evidence, read_evidence
from analysis.hypotheses import Judgement, Reading, judge
from analysis.hypothesis_tables import tests_frame as hypotheses_frame
from analysis.load import GridResults, ResultRow, load_results
from analysis.plotting import add_caption, new_figure, style
from analysis.registration import registration
from analysis.sentences import cards
from analysis.stand_ins import COLUMN, SIGN, WORDS, marked, marks_of, note, row_mark, stand_in_of
from analysis.tables import TABLES, Source, build
from analysis.versions_table import versions_frame
from trainable import records
from trainable.schemas import OPTIONAL, SCHEMAS
from trainable.storage import Storage

MARKED = ("parent-vit", "vit-pre-default", "vit-pre-mixup", "vit-pre-cutmix")
"""Rows of `demo` that begin from a stand-in here; of the last, the run of seed 2 alone."""
OWN = {"vit-pre-default": "seed 0", "vit-pre-mixup": "seed 0", "vit-pre-cutmix": "seed 0 in the run of seed 2"}


@pytest.fixture(scope="module")
def store(made_store: Storage, made_results: GridResults, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """`made_store`, whose ViT's pretrained rows began from random weights."""
    assert made_store.local_root is not None
    labels = {run.run_id: (row.label, run.seed) for row in made_results.rows for run in row.done}
    storage = Storage(str(tmp_path_factory.mktemp("marked")))
    place = SCHEMAS["trials"].get_field_index(COLUMN)
    for commit in records.read_commits(made_store).values():
        held = {file.table for file in commit.files}
        tables = {name: records.read_table(made_store, name, [commit]) for name in SCHEMAS if name in held}
        assert set(SCHEMAS) - held <= set(OPTIONAL)
        label, seed = labels[commit.run_id]
        mark = (
            "seed 0"
            if label in MARKED and (label, seed) not in (("vit-pre-cutmix", 1), ("vit-pre-cutmix", 3))
            else None
        )
        tables["trials"] = tables["trials"].set_column(
            place, SCHEMAS["trials"].field(place), pa.array([mark], pa.string())
        )
        details = {"host": "synthetic", "pid": 1, "number": 1}
        records.start_attempt(storage, commit.run_id, commit.attempt_id, details)
        key = {"run_id": commit.run_id, "attempt_id": commit.attempt_id, "dataset": commit.dataset}
        records.commit_run(storage, tables=tables, **key)
        records.end_attempt(storage, commit.run_id, commit.attempt_id, "done", None)
    for folder in ("grids/demo", "dims/samples", "dims/classes"):
        for name in made_store.names(folder):
            storage.put(f"{folder}/{name}", made_store.read(f"{folder}/{name}"))
    return storage


@pytest.fixture(scope="module")
def results(store: Storage) -> GridResults:
    return load_results(store, "demo")


@pytest.fixture(scope="module")
def evidence(store: Storage, results: GridResults) -> dict[str, Evidence]:
    return read_evidence(store, results)


@pytest.fixture(scope="module")
def judgement(results: GridResults, evidence: dict[str, Evidence]) -> Judgement:
    return judge(results, evidence, registration())


def marks(results: GridResults) -> dict[str, str]:
    return {label: mark for label, mark in marks_of(results.rows).items() if not label.startswith("parent")}


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_rows_are_marked_by_their_runs(results: GridResults, made_results: GridResults) -> None:
    assert marks(results) == OWN and marks_of(made_results.rows) == {}
    row = next(row for row in results.rows if row.label == "vit-pre-default")
    assert row_mark(row.done) == row_mark(row.done[:1]) == "seed 0" and row_mark(()) == ""
    old = dataclasses.replace(row.done[0], trial={"seed": 1})
    assert stand_in_of(old) is None, "a store of before the column"
    other = dataclasses.replace(row.done[1], trial={**row.done[1].trial, COLUMN: "seed 7"})
    both = row_mark((row.done[0], other))
    assert both == f"seed 0 in the run of seed {row.done[0].seed}; seed 7 in the run of seed {row.done[1].seed}"


def test_many_rows_are_counted() -> None:
    told = note({f"row-{number}": "seed 0" for number in range(15)})
    assert (
        told.startswith(f"{SIGN} row-0, row-1, ")
        and "row-11, 3 more rows: weights are" in told
        and "row-12" not in told
    )
    twelve = note({f"row-{number}": "seed 0" for number in range(12)})
    assert "row-10, row-11: weights are" in twelve and "more rows" not in twelve


def test_every_table_says_it_in_every_format(
    store: Storage, made_store: Storage, results: GridResults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert analysis.tables.main(["--results", store.uri, "--out", str(tmp_path)]) == 0
    assert WORDS in capsys.readouterr().out
    written = {path.name: path.read_text() for path in (tmp_path / "demo").iterdir()}
    names = sorted({name.partition(".")[0] for name in written})
    assert {"T1", "T2", "T3", "T4", "T5", "T6", "T8", "T9", "T10", "T11", "T12"} <= set(names)
    labels = {row.label for row in results.rows}
    for name in names:
        for kind in ("md", "tex", "html"):
            assert WORDS in written[f"{name}.{kind}"], f"{name}.{kind}"
        assert r"\S{}" in written[f"{name}.tex"] and SIGN in written[f"{name}.md"]
        for line in rows_of(written[f"{name}.csv"]):
            own = {line[key] for key in ("run", "one", "other") if line.get(key) in labels}
            told = line[COLUMN]
            for label, mark in OWN.items():
                expected = label in own if own else True
                assert (label in told and mark in told) == expected, f"{name}: {line}"
    assert analysis.tables.main(["--results", made_store.uri, "--out", str(tmp_path / "plain")]) == 0
    for path in (tmp_path / "plain" / "demo").iterdir():
        text = path.read_text()
        assert "stand-in" not in text and COLUMN not in text and SIGN not in text, path.name


def test_the_sign_stands_at_the_rows(store: Storage, results: GridResults) -> None:
    source = Source(store, results)
    for name in ("T1", "T8", "T11", "T12"):
        frame = build(source, name)
        signed = {cells[0].removesuffix(f" {SIGN}") for cells in frame.rows if cells[0].endswith(SIGN)}
        assert {label.removesuffix(" (parent)") for label in signed} == set(MARKED), name
        assert sum(frame.notes.count(told) for told in frame.notes if WORDS in told) == 1, "said once"
    pairs = build(source, "T10")
    assert any(cells[2].endswith(SIGN) and not cells[1].endswith(SIGN) for cells in pairs.rows)
    for cells, raw in zip(pairs.rows, pairs.raw, strict=True):
        assert [cell.endswith(SIGN) for cell in cells[:3]] == [False, raw["one"] in OWN, raw["other"] in OWN]
    paper = build(source, "T2")
    places = {
        (cells[0], paper.groups[i])
        for cells in paper.rows
        for i, cell in enumerate(cells)
        if SIGN in cell and paper.columns[i] == "top-1 %"
    }
    assert len(places) == 1 and {place[0] for place in places} == {"small_vit"}


def test_a_sign_is_not_put_at_a_longer_name() -> None:
    cells = {"one": "Exp-10", "other": "Exp-1"}
    frame = Frame(
        title="",
        notes=(),
        columns=("one", "other"),
        left=2,
        narrow=(),
        rows=(("Exp-10 (x)", "Exp-1 (x)"),),
        raw=(cells,),
    )
    found = marked(frame, {"Exp-1": "seed 0"}, ["Exp-1", "Exp-10"])
    assert found.rows == (("Exp-10 (x)", f"Exp-1 (x) {SIGN}"),)
    assert found.raw[0][COLUMN] == "seed 0 (Exp-1)" and rows_of(to_csv(found))[0][COLUMN] == "seed 0 (Exp-1)"
    assert marked(frame, {}, ["Exp-1"]) is frame


def test_verdicts_are_marked_and_not_silent(
    results: GridResults, evidence: dict[str, Evidence], judgement: Judgement
) -> None:
    touched = 0
    for one in judgement.findings:
        told = [mark for mark in one.marks if WORDS in mark]
        assert {mark.partition(":")[0] for mark in told} == {label for label in one.labels if label in OWN}
        touched += bool(told)
    assert 0 < touched < len(judgement.findings)
    frame = hypotheses_frame(results, judgement)
    column = frame.columns.index("notes")
    for one, cells, raw in zip(judgement.findings, frame.rows, frame.raw, strict=False):
        assert (WORDS in str(raw["notes"])) == any(label in OWN for label in one.labels) == bool(cells[column])
    published = judge(results, evidence, registration(), Reading(evaluation="published"), with_scales=False)
    assert not any(one.marks for one in published.findings), "the study's own values began elsewhere"


def test_sentences_say_it_in_both_languages(judgement: Judgement) -> None:
    for lang, words in (
        ("en", r"The initial weights of (vit-pre-\w+, )*vit-pre-\w+ are random"),
        ("ko", "무작위 대체물"),
    ):
        told = {card.id: re.search(words, card.sentence) is not None for card in cards(judgement, lang)}
        expected = {
            claim.id: any(label in OWN for one in judgement.of_claim(claim) for label in one.labels)
            for claim in judgement.registration.claims
        }
        assert told == expected and any(told.values())


def test_a_decision_on_stand_ins_says_so(
    store: Storage, results: GridResults, evidence: dict[str, Evidence], capsys: pytest.CaptureFixture[str]
) -> None:
    claim = registration().claims[0].id
    found = next_seeds(store, results, evidence, registration(), claim)
    assert f"vit-pre-default: {WORDS} (seed 0)" in found.lines
    assert analysis.power.main(["--results", store.uri, "--grid", "demo"]) == 0
    assert note(marks_of(results.rows)) in capsys.readouterr().out


def test_check_notes_it_and_passes(store: Storage, made_store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis.check.main(["--results", store.uri, "--grid", "demo"]) == 0
    shown = capsys.readouterr().out
    marked_runs = [run for run in audit_grid(store, "demo").runs if run.stand_in is not None]
    assert {run.label for run in marked_runs} <= set(MARKED) and len(
        [r for r in marked_runs if "cutmix" in r.label]
    ) == 1
    assert f"NOTE  stand-ins    of {len(marked_runs)} of 42 runs the {WORDS} ({SIGN})" in shown.replace(
        "of 38", "of 42"
    )
    assert f"{WORDS}: seed 0 (seed 2)" in shown and f"{WORDS}: seed 0 (seed 1, 2, 3)" in shown
    assert f"done {SIGN}" in shown and "FAIL" not in shown
    assert analysis.check.main(["--results", made_store.uri, "--grid", "demo"]) == 0
    plain = capsys.readouterr().out
    assert "NOTE" not in plain and SIGN not in plain


def test_captions_begin_with_it_where_such_runs_are_shown(store: Storage, made_store: Storage, tmp_path: Path) -> None:
    kinds = [kind for kind in FIGURES if kind.id in ("F1", "F2", "F4", "F6", "F15")]
    inputs = load_inputs(store, "demo")
    drawn = draw_figures(inputs, kinds, tmp_path / "marked", ["svg"])
    assert not [fault for one in drawn for fault in one.faults]
    labels = {run.run_id: row.label for row in inputs.results.rows for run in row.done if stand_in_of(run)}
    seen = set()
    for path in (tmp_path / "marked").glob("*.json"):
        facts = json.loads(path.read_text())
        rows = {labels[run_id] for run_id in facts["runs"] if run_id in labels}
        told = facts["caption"].partition(". ")[0]
        assert facts["caption"].startswith(SIGN) == bool(rows) == (WORDS in told), path.name
        assert all(row in told for row in rows)
        drawn_text = path.with_suffix(".svg").read_text()
        assert ("random stand-ins, not" in drawn_text) == bool(rows), "in the picture too"
        header = path.with_suffix(".csv").read_text().splitlines()[0]
        assert (COLUMN in header.split(",")) == bool(rows)
        seen.add(bool(rows))
    assert seen == {True, False}, "a page of rows from other weights is as it was"
    draw_figures(load_inputs(made_store, "demo"), kinds[:1], tmp_path / "plain", ["svg"])
    assert "stand-in" not in (tmp_path / "plain" / "F1.svg").read_text()


def test_the_report_says_it_first(store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "FIGURES", tuple(kind for kind in FIGURES if kind.id == "F1"))
    assert report.main(["--results", store.uri, "--grid", "demo", "--out", str(tmp_path)]) == 0
    for name in ("report.html", "report.md"):
        text = (tmp_path / "demo" / name).read_text()
        assert WORDS in text.partition("What to know before reading")[2][:1000], "among the notices"
        assert f"done {SIGN}" in text and "The initial weights of vit-pre-" in text


@pytest.mark.parametrize(
    ("command", "name", "arguments"),
    [
        (pivot, "pivot", ["--rows", "model,pretrained", "--columns", "mix"]),
        (best, "best-top1-test", []),
        (run_report, "run-vit-pre-mixup-1", ["vit-pre-mixup/1"]),
    ],
)
def test_other_tables_say_it(command: object, name: str, arguments: list[str], store: Storage, tmp_path: Path) -> None:
    assert command.main([*arguments, "--results", store.uri, "--out", str(tmp_path)]) == 0  # type: ignore[attr-defined]
    for kind in RENDERERS:
        text = (tmp_path / "demo" / f"{name}.{kind}").read_text()
        assert COLUMN in text if kind == "csv" else WORDS in text
    if command is run_report:
        assert SIGN in json.loads((tmp_path / "demo" / f"{name}-confusion-picture.json").read_text())["caption"]
        assert COLUMN in (tmp_path / "demo" / f"{name}-confusion.csv").read_text()
        assert run_report.main(["vit-mixup/1", "--results", store.uri, "--out", str(tmp_path)]) == 0
        assert WORDS not in (tmp_path / "demo" / "run-vit-mixup-1.md").read_text(), "a run of other weights"
    elif command is best:
        for line in rows_of((tmp_path / "demo" / f"{name}.csv").read_text()):
            label = line["row"]
            assert line[COLUMN] == (f"{OWN[label]} ({label})" if label in OWN else "")
        own_lines = {
            line.split("|")[1].strip()
            for line in (tmp_path / "demo" / f"{name}.md").read_text().splitlines()
            if SIGN in line and line[0] == "|"
        }
        assert own_lines == {f"{label} {SIGN}" for label in OWN}
    elif command is pivot:
        lines = (tmp_path / "demo" / "pivot.md").read_text().splitlines()
        signed = [line for line in lines if line.startswith("|") and SIGN in line]
        assert len(signed) == 1 and signed[0].count(SIGN) == 3 and "small_vit | true" in signed[0]


def test_curves_say_it(store: Storage, tmp_path: Path) -> None:
    for pattern, told in (("vit-pre", True), ("resnet", False)):
        given = ["--results", store.uri, "--out", str(tmp_path), "--filter", pattern, "--name", pattern]
        assert curves.main(given) == 0
        facts = json.loads((tmp_path / "demo" / f"{pattern}.json").read_text())
        assert facts["caption"].startswith(SIGN) == told


def test_versions_say_it(store: Storage, results: GridResults) -> None:
    row = next(row for row in results.rows if row.label == "vit-pre-default")
    trial = {**row.done[0].trial, "init_source": "some.tag", "init_sha256": "ab" * 32}
    runs = [dataclasses.replace(row.done[0], trial={**trial, COLUMN: mark}) for mark in ("seed 3", None)]
    rows = tuple(
        ResultRow(label=f"{i}", axes={}, is_parent=False, published={}, runs=(run,)) for i, run in enumerate(runs)
    )
    frame = versions_frame(store, dataclasses.replace(results, rows=rows), registration())
    told = [cells[1] for cells in frame.rows if cells[0] == "weights some.tag"]
    assert told == ["ab" * 32, f"{'ab' * 32}, random stand-ins, not the published ones (seed 3)"]


def test_tables_of_features_say_it(results: GridResults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = Frame(
        title="",
        notes=(),
        columns=("block", "arch"),
        left=2,
        narrow=(),
        rows=(("a", "b"),),
        raw=({"run": "vit-pre-mixup"},),
    )
    monkeypatch.setattr(features, "attribution_frame", lambda *_: frame)
    monkeypatch.setattr(features, "representation_frame", lambda *_: None)
    monkeypatch.setattr(features, "_baseline", lambda _: None)
    inputs = type("Inputs", (), {"results": results})()
    features._write_tables(inputs, [], tmp_path)
    assert rows_of((tmp_path / "T13.csv").read_text()) == [{"run": "vit-pre-mixup", COLUMN: "seed 0 (vit-pre-mixup)"}]
    assert WORDS in (tmp_path / "T13.html").read_text()


def test_response_curves_say_it(store: Storage, results: GridResults) -> None:
    runs = {row.label: row.done for row in results.rows}
    asked = {run.run_id for label in ("vit-pre-default", "vit-default") for run in runs[label]}
    assert sweeps._stand_ins(store, asked) == {run.run_id: "seed 0" for run in runs["vit-pre-default"]}

    def row(label: str, own: str, stand_in: str) -> sweeps.SweptRow:
        point = sweeps.Point(value=0.1, scores={}, state="unfinished", pruned_epoch=None, run_ids=())
        return sweeps.SweptRow(
            label=label, points=(point,), default=0.1, own=runs[own], chosen=None, winner=(), stand_in=stand_in
        )

    sweep = {"field": "optim.lr", "over": "demo", "search": "grid", "scheduler": "none", "set": {}}
    made = sweeps.SweepResults(
        name="lr_sweep",
        variant="full",
        help="",
        overrides={},
        sweep=sweep,
        rows=(
            row("trials", "vit-default", "seed 5"),
            row("own", "vit-pre-default", ""),
            row("none", "vit-default", ""),
        ),
        left_out=(),
        unread=(),
        other_variants=(),
    )
    frame = sweeps.sweep_frame(made)
    assert [cells[0] for cells in frame.rows] == [f"trials {SIGN}", f"own {SIGN}", "none"]
    assert [line[COLUMN] for line in rows_of(to_csv(frame))] == ["seed 5 (trials)", "seed 0 (own)", ""]
    assert frame.notes[0] == f"{SIGN} trials: {WORDS} (seed 5); own: {WORDS} (seed 0)"


def test_all_tables_that_exist_are_built_with_it() -> None:
    """`build` is the one way to a table; whoever adds one gets the mark with it."""
    assert set(TABLES) >= {f"T{number}" for number in range(1, 13)}


def test_a_caption_takes_the_place_of_the_former() -> None:
    with style():
        figure = new_figure(2.0)
        add_caption(figure, "words " * 40)
        once = figure.get_size_inches().tolist()
        add_caption(figure, "words " * 40)
        assert figure.get_size_inches().tolist() == once and once[1] > 2.0
        add_caption(figure, "word")
        assert 2.0 < figure.get_size_inches()[1] < once[1] and figure.get_supxlabel() == "word"
