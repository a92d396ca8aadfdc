"""The figures: drawn for what a store holds, in bytes that do not change, with the numbers of the tables."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic import design, noisy, tables_of, write_dims, write_grid, write_manifest_of, write_run

from analysis import figures
from analysis.figures import FIGURES, load_inputs, main
from analysis.figures_calibration import selective_risk
from analysis.load import load_results
from analysis.per_class import class_gains
from trainable.storage import Storage

NEVER = ("red-resnet-pre-mixup", "red-vit-pre-mixup")
MANY = 40
"""Classes: more than are labelled one by one."""


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Twelve rows on one data set with two seeds; two never ran."""
    storage = Storage(str(tmp_path_factory.mktemp("results")))
    specs = design(12, 2, datasets=("red",))
    for runs in [runs for label, runs in specs.items() if label not in NEVER]:
        for spec in runs:
            made = tables_of(
                spec, images=240, classes=8, epochs=6, logits=noisy({"none": 0.5, "mixup": 0.6, "cutmix": 0.7})
            )
            write_run(storage, spec, made)
    write_dims(storage, "red", 240, 8)
    write_manifest_of(storage, specs)
    return storage


@pytest.fixture(scope="module")
def drawn(store: Storage, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all figures of the store. Every one of them passes the lint, else the exit code is 1."""
    out = tmp_path_factory.mktemp("figures")
    one_page_each = ",".join(kind.id for kind in FIGURES if kind.id not in ("F6", "F7"))
    assert main(["--results", store.uri, "--out", str(out), "--figures", one_page_each]) == 0
    return out / "made"


@pytest.fixture(scope="module")
def confusions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """F6 and F7 of two rows with many classes."""
    folder = tmp_path_factory.mktemp("many")
    storage = Storage(str(folder / "results"))
    write_grid(storage, design(2, 1), images=6 * MANY, classes=MANY, epochs=2)
    assert main(["--results", storage.uri, "--out", str(folder), "--figures", "F6,F7"]) == 0
    return folder / "made"


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_figure_has_its_picture_numbers_and_origin(drawn: Path, confusions: Path) -> None:
    found = [*drawn.glob("*.json"), *confusions.glob("*.json")]
    assert {path.stem.split("-")[0] for path in found} == {kind.id for kind in FIGURES}
    for path in found:
        facts = json.loads(path.read_text())
        numbers = path.with_suffix(".csv").read_bytes()
        assert facts["numbers_sha256"] == hashlib.sha256(numbers).hexdigest() and numbers.count(b"\n") > 1, path.stem
        assert facts["caption"] and facts["alt"] and facts["inputs_sha256"] and facts["runs"], path.stem
        assert facts["command"] == f"python -m analysis.figures --grid made --variant full --figures {facts['figure']}"
        assert b"<svg" in path.with_suffix(".svg").read_bytes()[:2000]


def test_pictures_are_fit_for_print(drawn: Path) -> None:
    from PIL import Image

    for path in drawn.glob("*.png"):
        with Image.open(path) as image:
            assert 600 < image.width <= 1400, f"{path.name} is {image.width} pixels wide, 7 inches at 200 dpi are 1400"


def test_the_same_store_gives_the_same_bytes(store: Storage, drawn: Path, tmp_path: Path) -> None:
    wanted = "F1,F2,F11"
    assert main(["--results", store.uri, "--out", str(tmp_path), "--figures", wanted, "--format", "svg,png,pdf"]) == 0
    again = hashes(tmp_path / "made")
    assert {name: digest for name, digest in hashes(drawn).items() if name in again} == {
        name: digest for name, digest in again.items() if not name.endswith(".pdf")
    }
    assert main(["--results", store.uri, "--out", str(tmp_path / "b"), "--figures", "F1", "--format", "pdf"]) == 0
    assert hashes(tmp_path / "b" / "made")["F1.pdf"] == again["F1.pdf"]


def test_gains_are_differences_of_the_rows(store: Storage, drawn: Path) -> None:
    found = {row.label: row for row in load_results(store, "made").rows}
    top1 = {label: np.mean([run.final.metrics["top1"] for run in row.done]) for label, row in found.items() if row.done}
    gains = rows(drawn / "F5.csv")
    assert len(gains) == 6
    for row in gains:
        base = row["row"].rsplit("-", 1)[0] + "-none"
        assert float(row["gain"]) == pytest.approx(top1[row["row"]] - top1[base], abs=1e-12)
        assert float(row["low"]) < float(row["gain"]) < float(row["high"])


def test_confusions_are_shares_of_the_true_class(confusions: Path) -> None:
    numbers = rows(next(confusions.glob("F6-*mixup.csv")))
    shares = np.zeros(MANY)
    for row in numbers:
        shares[int(row["true"])] += float(row["share_of_true"])
    assert shares == pytest.approx(np.ones(MANY))
    assert numbers[0]["true_name"].startswith("red ")


def test_all_answered_is_the_error(store: Storage, drawn: Path) -> None:
    found = {row.label: row for row in load_results(store, "made").rows}
    whole = [row for row in rows(drawn / "F10.csv") if float(row["coverage"]) == 1]
    assert len(whole) == 10
    for row in whole:
        top1 = np.mean([run.final.metrics["top1"] for run in found[row["row"]].done])
        assert float(row["risk"]) == pytest.approx(1 - top1)


def test_risk_is_of_the_surest_first() -> None:
    confidence = np.array([[0.2, 0.9, 0.6, 0.4], [0.9, 0.2, 0.6, 0.4]])
    correct = np.array([[False, True, True, False], [True, False, True, False]])
    risks, area = selective_risk(confidence, correct)
    assert [risks[k - 1] for k in (1, 50, 75, 100)] == [0, 0, pytest.approx(1 / 3), 0.5]
    assert area == pytest.approx((0 + 0 + 1 / 3 + 0.5) / 4)


def test_class_gains_are_those_of_the_table(store: Storage, drawn: Path) -> None:
    found = {row.label: row for row in load_results(store, "made").rows}
    gains = class_gains(found["red-vit-scratch-mixup"], found["red-vit-scratch-none"])
    path = next(path for path in drawn.glob("F8-*.csv") if "scratch" in path.name)
    shown = [row for row in rows(path) if row["row"] == "red-vit-scratch-mixup"]
    assert [float(row["shrunken"]) for row in shown] == gains.shrunken.tolist()


def test_a_row_that_never_ran_is_a_gap(drawn: Path) -> None:
    missing = NEVER[0]
    assert missing not in {row["row"] for row in rows(drawn / "F1.csv")}
    states = {row["state"] for row in rows(drawn / "F15.csv") if row["row"] == missing}
    assert states == {"not run"}
    verdicts = {(row["contrast"], row["block"]): row for row in rows(drawn / "F2.csv")}
    gamma = next(row for (name, block), row in verdicts.items() if name == "gamma_mixup" and "pretrained" in block)
    assert gamma["verdict"] == "NOT ESTIMABLE" and missing in gamma["reasons"]


def test_learning_curves_name_the_images_they_are_of(drawn: Path, tmp_path: Path) -> None:
    assert "by epoch on 240 test images, mean" in json.loads((drawn / "F4.json").read_text())["caption"]
    storage = Storage(str(tmp_path / "results"))
    for runs in design(2, 1).values():
        made = tables_of(runs[0], images=60, classes=5, epochs=2, val=True)
        made["trials"] = made["trials"].set_column(made["trials"].schema.get_field_index("num_val"), "num_val", [[30]])
        write_run(storage, runs[0], made)
    write_manifest_of(storage, design(2, 1))
    assert main(["--results", storage.uri, "--out", str(tmp_path), "--figures", "F4"]) == 0
    told = json.loads((tmp_path / "made" / "F4.json").read_text())["caption"]
    assert "by epoch on 30 images held out of the training set, mean" in told and "test" not in told


def test_one_seed_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = Storage(str(tmp_path / "results"))
    write_grid(storage, design(1, 1), images=60, classes=5, epochs=2)
    assert main(["--results", storage.uri, "--out", str(tmp_path), "--figures", "F5,F2,F14,F15"]) == 0
    said = capsys.readouterr().out
    assert 'F5   simple gains: not drawn: the grid has no axis mix with the value "none" and others beside it' in said
    assert "F2   registered contrasts and verdicts: not drawn: grid made: has the parts of no registered design" in said
    assert "F15  completeness: " in said
    assert not list((tmp_path / "made").glob("F5*"))
    assert main(["--results", storage.uri, "--out", str(tmp_path), "--figures", "F14"]) == 2


def test_gated_cells_are_marked(published_store: Storage, tmp_path: Path) -> None:
    assert main(["--results", published_store.uri, "--out", str(tmp_path), "--figures", "F1,F2"]) == 0
    forest = {(row["contrast"], row["block"]): row for row in rows(tmp_path / "paper" / "F2.csv")}
    row = forest["gamma_mixup", "tiny-imagenet-200, scratch"]
    assert row["gated"] == "1" and row["verdict"] == "NOT ESTIMABLE" and float(row["estimate"]) > 0.3
    assert forest["gamma_cutmix", "cifar100, scratch"]["verdict"] == "SUPPORTED*"
    interaction = (tmp_path / "paper" / "F1.svg").read_text()
    assert interaction.count(">†</text>") == 2  # the two collapsed rows; the words of the caption are another text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--figures", "F1,F99"], 'analysis.figures: --figures: "F99" is not one of F1, F2'),
        (["--format", "gif"], 'analysis.figures: --format: "gif" is not one of svg, png, pdf'),
        (["--grid", "none"], "analysis.figures: --grid none: "),
    ],
)
def test_bad_options_name_what_is_allowed(
    options: list[str], message: str, store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", store.uri, "--out", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out").exists()


def test_figures_of_checkpoints_name_their_command(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", store.uri, "--out", str(tmp_path), "--figures", "F12,F15"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert re.fullmatch(r"F12  attribution: drawn from checkpoints: python -m analysis\.features --grid \w+", last)
    assert main(["--results", store.uri, "--out", str(tmp_path), "--figures", "F13"]) == 2


def test_a_fault_of_the_lint_is_an_exit_code(
    store: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "lint", lambda figure: ['"x" is cut off at the edge'])
    assert main(["--results", store.uri, "--out", str(tmp_path), "--figures", "F15"]) == 1
    assert capsys.readouterr().err == 'analysis.figures: F15: "x" is cut off at the edge\n'


def test_blocks_beyond_a_page_go_on_the_next(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "results"))
    write_grid(storage, design(50, 1, datasets=("red",)), images=20, classes=5, epochs=2)
    inputs = load_inputs(storage, "made")
    assert [len(blocks) for blocks in inputs.block_pages()][:2] == [4, 4]
    assert len({(cell.block, cell.arch, cell.aug) for cell in inputs.cells}) == 50, "rows alike in all axes stand apart"
    assert main(["--results", storage.uri, "--out", str(tmp_path), "--figures", "F15"]) == 0
    assert {path.name for path in (tmp_path / "made").glob("F15*.svg")} == {"F15-1.svg", "F15-2.svg"}
