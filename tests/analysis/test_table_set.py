"""All tables of a grid: the published grid to the last digit, what is bold, what does not change when nothing does."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import synthetic
from synthetic import design, noisy, write_grid, write_manifest_of

import analysis.load
from analysis.frame import MINUS, RENDERERS, Frame, to_csv
from analysis.load import AnalysisError, GridResults, load_results
from analysis.paper_table import difference, paper_frame
from analysis.published_table import published_frame
from analysis.results_table import results_frame
from analysis.tables import TABLES, Source, build, main
from trainable.costs import CostRecord, write_cost
from trainable.records import RecordError
from trainable.storage import Storage

PUBLISHED = {"top1": 0.5, "top5": 0.9, "precision_macro": None, "recall_macro": 0.5, "f1_macro": None, "note": "faulty"}
ACCURACY = {"none": 0.5, "mixup": 0.52, "cutmix": 0.8}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """24 rows but one, two seeds; CutMix helps by far more than noise, MixUp by less."""
    storage = Storage(str(tmp_path_factory.mktemp("tables")))
    specs = design(rows=24, seeds=2)
    missing = specs.pop("blue-vit-pre-cutmix")
    write_grid(storage, specs, images=60, classes=6, logits=noisy(ACCURACY))
    specs["blue-vit-pre-cutmix"] = missing
    write_manifest_of(storage, specs, {"red-resnet-scratch-none": PUBLISHED}, number=2)
    return storage


@pytest.fixture(scope="module")
def source(store: Storage) -> Source:
    return Source(store, load_results(store, "made"))


def columns(frame: Frame) -> list[dict[str, str]]:
    return [dict(zip(frame.columns, row, strict=True)) for row in frame.rows]


def test_the_published_grid_is_the_published_table(published_store: Storage) -> None:
    """Every published number of all 24 rows, recomputed from 10,000 stored predictions each."""
    results = load_results(published_store, "paper")
    one, two = columns(results_frame(results)), columns(published_frame(results))
    assert len(one) == len(two) == 24
    names = ("top5", "precision_macro", "recall_macro", "f1_macro")
    titles = ("top-5 %", "precision %", "recall %", "F1 %")
    for row, first, second in zip(results.rows, one, two, strict=True):
        assert first["run"] == second["run"] == row.label
        assert first["published %"] == first["best_on_test %"] == f"{100 * row.published['top1']:.2f}"
        assert first["difference"] == "+0.00" and second["difference"] == "+0.00"
        for name, title in zip(names, titles, strict=True):
            assert second[title] == "{0} / {0}".format(f"{100 * row.published[name]:.2f}")
    assert two[0]["its 95 % CI"] == "[44.9, 46.9]", "Wilson of 4588 of 10,000"
    notes = published_frame(results).notes
    assert any("README prints top-1 0.5278; its recall and results file say 0.5228" in note for note in notes)


def test_the_collapsed_runs_are_marked_and_kept(published_store: Storage) -> None:
    frame = build(Source(published_store, load_results(published_store, "paper")), "T1")
    marked = {
        row["run"]
        for row in columns(frame)
        for note in frame.notes
        if "UNHEALTHY" in note and note.split(" ")[0] in row["notes"]
    }
    assert marked == {"Exp-5", "Exp-13"}
    paper = build(Source(published_store, load_results(published_store, "paper")), "T2")
    daggers = {(row[:2], cell) for row in paper.rows for cell in row if "†" in cell}
    assert daggers == {(("resnet50", "MixUp"), "4.13 †"), (("resnet50", "MixUp"), "7.58 †")}


def test_every_table_is_written_in_every_format(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", store.uri, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    made = [name for name in TABLES if f"{name} (" not in shown.partition("not for this grid")[2]]
    assert {"T1", "T2", "T7", "T8", "T9", "T10", "T11", "T12"} <= set(made)
    written = {path.name: path.read_text() for path in (tmp_path / "made").iterdir()}
    assert set(written) == {f"{name}.{kind}" for name in made for kind in RENDERERS}
    for name in made:
        rows = list(csv.DictReader(io.StringIO(written[f"{name}.csv"])))
        body = written[f"{name}.html"].partition("<tbody>")[2]
        assert len(rows) == body.count("<tr>") >= 1
        assert all(
            re.search(r"from 46 runs of grid made \(full\), \w{12}; prereg", text)
            for text in written.values()
            if "###" in text
        )
    assert main(["--results", store.uri, "--out", str(tmp_path / "again")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "again" / "made").iterdir()} == written, "byte for byte"


def test_tables_that_are_named_are_shown(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--results", store.uri, "--out", str(tmp_path), "--tables", "T2,T11", "--format", "md,html"]
    assert main(given) == 0
    shown = capsys.readouterr().out
    assert "T2, grid made" in shown and "T11, grid made" in shown and "final %" not in shown
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["T11.html", "T11.md", "T2.html", "T2.md"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("T99", '--tables: "T99" is not one of T1, T2'),
        ("T7", "--tables T7: grid made: the grid has no published values"),
        ("T3", "--tables T3: grid made: "),
    ],
)
def test_a_table_that_cannot_be_made_says_why(
    table: str, message: str, store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Storage(str(tmp_path / "store"))
    write_grid(copy, design(rows=1, seeds=1, datasets=("red",)), images=20, classes=5)
    assert main(["--results", copy.uri, "--out", str(tmp_path / "out"), "--tables", table]) == 2
    assert message in capsys.readouterr().err
    assert main(["--results", copy.uri, "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "not for this grid: T2 (no augmentation beside" in shown and "T7 (the grid has no published values)" in shown


def test_bold_is_the_best_and_all_that_tie_with_it(source: Source) -> None:
    """CutMix is best in every block; where one of its runs is missing, so is its mark."""
    frame = paper_frame(source.results)
    rows = [row[:2] for row in frame.rows]
    for group in range(4):
        column = 2 + 2 * group
        bold = {rows[i] for i, k in frame.bold if k == column}
        shown = {row[:2]: row[column] for row in frame.rows}
        best = max((arm for arm in rows if shown[arm] != "—"), key=lambda arm: float(shown[arm]))
        assert best in bold and all(arm[1] == "CutMix" for arm in bold), frame.groups[column]
    missing = frame.rows[rows.index(("small_vit", "CutMix"))]
    assert missing[-2:] == ("—", "—") and "—: no run of this cell is done" in frame.notes
    assert frame.groups[2:4] == ("red scratch", "red scratch") and "Δ pp [95 % CI]" in frame.columns


def test_ties_that_no_seed_can_tell_apart_are_all_bold(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    write_grid(storage, design(rows=3, seeds=2, datasets=("red",)), images=40, classes=5, logits=noisy(0.6))
    assert len(paper_frame(load_results(storage, "made")).bold) == 3


def test_the_gain_is_less_the_default_of_its_own_block(source: Source) -> None:
    from analysis.design import baseline_of, cells_of

    cells = cells_of(source.results)
    assert len(cells) == 24 and sum(baseline_of(cell, cells) is None for cell in cells) == 8
    mixup = next(cell for cell in cells if cell.row.label == "blue-vit-pre-mixup")
    base = baseline_of(mixup, cells)
    assert base is not None and base.row.label == "blue-vit-pre-none"
    found = difference(mixup, base)
    assert found is not None
    means = [np.mean([run.final.correct for run in cell.row.done]) for cell in (mixup, base)]
    assert found.estimate == pytest.approx(means[0] - means[1])
    raw = paper_frame(source.results).raw[4]
    assert raw["blue pretrained gain"] == pytest.approx(found.estimate)


def test_cost_is_by_the_card_that_was_set_aside(store: Storage) -> None:
    results = load_results(store, "made")
    (row, other) = (next(row for row in results.rows if row.label == f"red-vit-pre-{mix}") for mix in ("none", "mixup"))
    for found in (row, other):
        for run in found.done:
            record = CostRecord(
                shape="0" * 12, run_id=run.run_id, attempt_id=f"{run.run_id}x", source="run", device="cuda",
                device_name="a card", threads=1, gpu_fraction=0.25, seconds_per_step=1.0,
                seconds_per_evaluated_image=1.0, setup_s=None, peak_memory_bytes=1,
            )  # fmt: skip
            write_cost(store, record)
            run.trial.update(attempt_id=record.attempt_id, train_s=7000.0, evaluate_s=200.0)
    lines = {line["run"]: line for line in columns(build(Source(store, results), "T11"))}
    line = lines["red-vit-pre-mixup"]
    assert (line["device"], line["wall h"], line["GPU-h"]) == ("a card", "2.00", "0.50")
    assert line["parameters"] == "1,000,000" and line["peak GiB"] == "1.00"
    gain = np.diff([np.mean([run.final.metrics["top1"] for run in one.done]) for one in (row, other)])[0]
    assert line["pp per GPU-h"] == f"{100 * gain / 0.5:+.1f}".replace("-", MINUS)
    assert lines["red-vit-pre-none"]["gain pp"] == "—" and lines["blue-vit-scratch-none"]["GPU-h"] == "—"


def test_every_attempt_stands_in_the_ledger(tmp_path: Path) -> None:
    from trainable import records

    storage = Storage(str(tmp_path))
    specs = design(rows=1, seeds=2, datasets=("red",))
    ((one, two),) = specs.values()
    records.start_attempt(storage, one.run_id, "a0", {"number": 0})
    write_grid(storage, specs, images=20, classes=5)
    store_records = storage.names("commits")
    storage.delete(f"commits/{next(name for name in store_records if name.startswith(two.run_id))}")
    records.start_attempt(storage, two.run_id, "b1", {"number": 2})
    records.end_attempt(storage, two.run_id, "b1", "failed", "out of memory")
    lines = columns(build(Source(storage, load_results(storage, "made")), "T12"))
    found = [(line["seed"], line["state"], line["used"], line["notes"]) for line in lines]
    assert found == [
        ("1", "killed or running", "no", "continued by a later attempt"),
        ("1", "done", "yes", ""),
        ("2", "done", "no", "its commit does not count: files are damaged"),
        ("2", "failed", "no", "out of memory"),
    ]
    assert lines[1]["code"] == "cccccccc" and lines[1]["data"] == "11111111" and lines[0]["code"] == "—"


def test_order_and_names_of_seeds_change_no_number(source: Source) -> None:
    """Seeds renamed and in another order: every number of every table is the same."""
    results = source.results
    renamed = tuple(
        dataclasses.replace(
            row, runs=tuple(dataclasses.replace(run, seed=100 - run.seed) for run in reversed(row.runs))
        )
        for row in results.rows
    )
    other = Source(source.storage, dataclasses.replace(results, rows=renamed))
    for table in ("T1", "T2", "T7", "T8", "T9", "T11"):
        before, after = build(source, table), build(other, table)
        assert len(before.raw) == len(after.raw)
        for one, two in zip(before.raw, after.raw, strict=True):
            for key, value in one.items():
                if isinstance(value, float):
                    assert two[key] == pytest.approx(value, abs=1e-9), f"{table} {key}"


def test_a_manifest_that_calls_a_run_by_another_seed_is_refused(store: Storage, tmp_path: Path) -> None:
    """Else a run could be counted twice."""
    copy = Storage(str(tmp_path))
    specs = design(rows=1, seeds=1, datasets=("red",))
    write_grid(copy, specs, images=20, classes=5)
    (name,) = copy.names("grids/made")
    manifest = json.loads(copy.read(f"grids/made/{name}"))
    manifest["runs"][0]["seed"] = 9
    copy.put(f"grids/made/{name}", json.dumps(manifest).encode())
    with pytest.raises(
        RecordError, match=r"trials/\w{16}--a1.parquet: is of seed 1, a manifest of the grid says seed 9"
    ):
        load_results(copy, "made")


def test_a_large_grid_is_shown_from_its_trials(
    store: Storage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No predictions are opened, the interval is no narrower than the two-way one, and it is said."""
    whole = results_frame(load_results(store, "made"))
    monkeypatch.setattr(analysis.load, "VERIFIED_UP_TO", 45)
    reading = Storage.read

    def read(self: Storage, path: str, **limits: int) -> bytes:
        assert not path.startswith(("predictions", "logits", "epochs")), path
        return reading(self, path, **limits)

    monkeypatch.setattr(Storage, "read", read)
    assert main(["--results", store.uri, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "46 runs: numbers as the runs recorded them; python -m analysis.check recomputes each" in shown
    assert "not made of so many runs unless named: --tables T2,T3" in shown
    large = results_frame(load_results(store, "made"))
    for one, two in zip(whole.raw, large.raw, strict=True):
        assert one["final_top1"] == (None if two["final_top1"] is None else pytest.approx(two["final_top1"], abs=1e-12))
        if one["final_top1"] is not None:
            assert two["final_top1_low"] <= one["final_top1_low"] + 1e-12  # type: ignore[operator]
            assert two["final_top1_high"] >= one["final_top1_high"] - 1e-12  # type: ignore[operator]
    monkeypatch.undo()
    assert to_csv(whole) == to_csv(results_frame(load_results(store, "made")))


def test_rows_that_share_a_cell_have_no_paper_table(source: Source) -> None:
    results = source.results
    twice = dataclasses.replace(results, rows=(*results.rows, dataclasses.replace(results.rows[0], label="twin")))
    with pytest.raises(AnalysisError, match="rows red-resnet-scratch-none and twin stand in one cell"):
        paper_frame(twice)
    bare: GridResults = dataclasses.replace(results, rows=(dataclasses.replace(results.rows[0], axes={}),))
    with pytest.raises(AnalysisError, match="row red-resnet-scratch-none has no axis model and no axis mix"):
        paper_frame(bare)


def test_permuted_images_and_relabelled_classes_change_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, logits = design(rows=3, seeds=2, datasets=("red",)), noisy(ACCURACY)
    rng = np.random.default_rng(3)
    order, relabel = rng.permutation(60), rng.permutation(6)
    plain, permuted = Storage(str(tmp_path / "plain")), Storage(str(tmp_path / "permuted"))
    write_grid(plain, specs, images=60, classes=6, logits=logits)
    monkeypatch.setattr(synthetic, "labels_of", lambda num, classes: relabel[np.arange(num) % classes][order])
    other = lambda spec, labels: logits(spec, np.arange(60) % 6)[order][:, np.argsort(relabel)]  # noqa: E731
    write_grid(permuted, specs, images=60, classes=6, logits=other)
    one, two = (Source(store, load_results(store, "made")) for store in (plain, permuted))
    for table in ("T1", "T2", "T10"):
        for before, after in zip(build(one, table).raw, build(two, table).raw, strict=True):
            for key, value in before.items():
                same = pytest.approx(value, abs=1e-9) if isinstance(value, float) else value
                assert after[key] == same, f"{table} {key}"
