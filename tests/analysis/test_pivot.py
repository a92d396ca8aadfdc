"""Pivots against the runs' own rows and the contrast; reports of one run against scikit-learn."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import classification_report, confusion_matrix
from synthetic import design, noisy, tables_of, write_dims, write_manifest_of, write_run

from analysis import pivot, run_report
from analysis.load import GridResults, load_results
from analysis.stats import contrast
from trainable.storage import Storage

NEVER = "red-vit-scratch-cutmix"
ACCURACY = {"none": 0.5, "mixup": 0.6, "cutmix": 0.7}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Twelve rows on one data set with two seeds; one never ran, and one class is never answered by anybody."""
    storage = Storage(str(tmp_path_factory.mktemp("results")))
    specs = design(12, 2, datasets=("red",))
    plain = noisy(ACCURACY)

    def logits(spec: object, labels: np.ndarray) -> np.ndarray:
        found = plain(spec, labels)  # type: ignore[arg-type]
        found[:, 5] = -9
        return found

    for label, runs in specs.items():
        for spec in runs if label != NEVER else ():
            write_run(storage, spec, tables_of(spec, images=120, classes=6, logits=logits))
    write_dims(storage, "red", 120, 6)
    write_manifest_of(storage, specs)
    return storage


@pytest.fixture(scope="module")
def results(store: Storage) -> GridResults:
    return load_results(store, "made")


def call(store: Storage, out: Path, *arguments: str) -> list[dict[str, str]]:
    assert pivot.main(["--results", store.uri, "--out", str(out), *arguments]) == 0
    with (out / "made" / "pivot.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def mean(results: GridResults, label: str, column: str) -> float:
    return float(np.mean([run.trial[column] for row in results.rows if row.label == label for run in row.done]))


def test_a_cell_is_the_mean_over_its_seeds(store: Storage, results: GridResults, tmp_path: Path) -> None:
    table = call(store, tmp_path, "--rows", "model,pretrained", "--columns", "mix", "--value", "f1_macro")
    assert [(row["model"], row["pretrained"]) for row in table] == [
        (model, pretrained) for model in ("small_resnet", "small_vit") for pretrained in ("false", "true")
    ]
    expected = mean(results, "red-vit-pre-mixup", "final_f1_macro")
    assert float(table[3]["mix=mixup"]) == pytest.approx(expected, abs=1e-12)
    text = (tmp_path / "made" / "pivot.md").read_text()
    assert table[2]["mix=cutmix"] == "" and f"without a value: {NEVER}" in text
    assert "EVERY CELL IS A MEAN" not in text, "the one data set is no mean over data sets"


def test_gains_are_contrasts_with_their_interval(store: Storage, results: GridResults, tmp_path: Path) -> None:
    table = call(store, tmp_path, "--rows", "model,pretrained", "--columns", "mix", "--gain", "mix=none")
    assert "mix=none" not in table[0]
    rows = {row.label: row for row in results.rows}
    cells = {
        name: np.stack([run.final.correct for run in rows[f"red-resnet-pre-{name}"].done]) for name in ("mixup", "none")
    }
    expected = contrast({"mixup": 1.0, "none": -1.0}, cells)
    found = [float(table[1][f"mix=mixup{end}"]) for end in ("", " low", " high")]
    assert found == pytest.approx([expected.estimate, *expected.interval], abs=1e-12)
    assert table[2]["mix=cutmix"] == "" and float(table[2]["mix=mixup"]) > 0


def test_the_gain_from_pretraining_has_its_own_baseline(store: Storage, results: GridResults, tmp_path: Path) -> None:
    options = ("--rows", "model,mix", "--columns", "dataset", "--gain", "pretrained=false", "--value", "nll_nats")
    table = call(store, tmp_path, *options)
    expected = mean(results, "red-vit-pre-none", "final_nll_nats") - mean(
        results, "red-vit-scratch-none", "final_nll_nats"
    )
    assert float(table[3]["dataset=red"]) == pytest.approx(expected, abs=1e-12)
    assert (table[5]["model"], table[5]["mix"], table[5]["dataset=red"]) == ("small_vit", "cutmix", "")


def test_averages_over_axes_are_said_and_never_over_less(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A cell that lacks one of its rows has no mean: it would be of other rows than its neighbour's."""
    table = call(store, tmp_path, "--rows", "model", "--columns", "mix")
    assert "EVERY CELL IS A MEAN OF 2 ROWS that differ in dataset, pretrained" in capsys.readouterr().out
    assert table[0]["mix=cutmix"] and not table[1]["mix=cutmix"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--value", "top_1"], '--value: "top_1" is not one of top1, top5, precision_macro, '),
        (["--columns", "mixx"], '--columns: "mixx" is not one of dataset, model, pretrained, mix; did you mean mix?'),
        (["--rows", "mix", "--columns", "mix"], "--rows mix --columns mix: mix stands in both"),
        (["--gain", "mix"], "--gain mix: give AXIS=VALUE, such as mix=none; axes are dataset, model, pretrained, mix"),
        (["--gain", "mix=non"], '--gain mix: "non" is not one of none, mixup, cutmix; did you mean none?'),
        (["--gain", "dataset=red"], "--gain dataset=red: the rows have no other value of dataset"),
    ],
)
def test_a_pivot_that_cannot_be_is_refused(
    arguments: list[str], message: str, store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pivot.main(["--results", store.uri, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_run_by_class_is_scikit_learns_report(store: Storage, results: GridResults, tmp_path: Path) -> None:
    row = results.rows[1]
    run = row.done[1]
    assert run_report.main([run.run_id, "--results", store.uri, "--out", str(tmp_path)]) == 0
    stem = tmp_path / "made" / f"run-{row.label}-{run.seed}"
    with stem.with_suffix(".csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    answers = run.final.predictions
    oracle = classification_report(
        answers.labels, answers.predicted, labels=range(6), output_dict=True, zero_division=0
    )
    keys = {"precision": "precision", "recall": "recall", "f1": "f1-score", "images": "support"}
    names = [*map(str, range(6)), "macro avg", "weighted avg"]
    for line, name in zip([*table[:6], *table[7:]], names, strict=True):
        assert {key: float(line[key]) for key in keys} == pytest.approx({key: oracle[name][keys[key]] for key in keys})
    assert float(table[6]["f1"]) == pytest.approx(run.trial["final_top1"]) and table[6]["precision"] == ""
    assert table[5]["name"] == "red 5" and float(table[5]["precision"]) == 0, "never answered"
    matrix = np.loadtxt(f"{stem}-confusion.csv", delimiter=",", skiprows=1, dtype=int)[:, 1:]
    assert (matrix == confusion_matrix(answers.labels, answers.predicted, labels=range(6))).all()
    assert Path(f"{stem}-confusion-picture.png").exists()


def test_a_run_is_named_by_label_and_seed(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--results", store.uri, "--out", str(tmp_path), "--format", "md"]
    assert run_report.main(["red-resnet-scratch-none/2", "--eval", "best_on_test", *common]) == 0
    text = (tmp_path / "made" / "run-red-resnet-scratch-none-2.md").read_text()
    assert "epoch chosen on the test set itself" in text
    for asked, message in (
        ("red-resnet-scratch-none", "is 2 runs; choose one of red-resnet-scratch-none/1 (grid made), "),
        ("red-resnet-scratch-nome/2", "no run of the grids made; give a run id or LABEL/SEED; did you mean red-resnet"),
        (f"{NEVER}/1", f"{NEVER}/1: not run: not run yet"),
    ):
        assert run_report.main([asked, *common]) == 2
        assert message in capsys.readouterr().err
