"""F17: accuracy by what weights had been trained on before: read from runs and their parents, a mark a row, none joined."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation
from study_store import load_study
from synthetic import design, noisy, write_grid

from analysis import figures, pretraining
from analysis.figure_inputs import Inputs, MissingInputs
from analysis.figure_lint import lint
from analysis.figures import load_inputs
from analysis.figures_transfer import BELOW, GREY, ROWS_PER_PAGE, SHAPES, transfer
from analysis.load import ResultRow, SeedRun, load_results
from analysis.plotting import Page, style
from analysis.pretraining import EVALUATED, FULL, PARTLY, PROBE, SCRATCH, origins, weights_data
from trainable.storage import Storage

Stores = Callable[[str], Storage]


def pages(storage: Storage, grid: str) -> list[Page]:
    with style():
        found = transfer(load_inputs(storage, grid))
        assert not [fault for page in found for fault in lint(page.figure)]
        return found


def by_row(page: Page) -> dict[str, dict[str, Any]]:
    return {str(row["row"]): dict(row) for row in page.numbers}


@pytest.fixture(scope="module")
def page(study_store: Stores) -> Page:
    (found,) = pages(study_store("vit_transfer"), "vit_transfer")
    return found


def test_rows_stand_by_what_their_weights_were_trained_on(page: Page) -> None:
    """Rows on the data set from which others are transferred are no part of it."""
    found = {label: (row["source"], row["training"], row["image_size"]) for label, row in by_row(page).items()}
    assert found == {
        "resnet18-cifar100-probe": ("cifar100", PROBE, 224),
        "vit-oc-cifar100-ft": ("cifar100", FULL, 32),
        "resnet18-in1k-probe": ("ImageNet-1k", PROBE, 224),
        "deit-tiny-in1k-probe": ("ImageNet-1k", PROBE, 224),
        "vit-b16-in1k-probe": ("ImageNet-1k", PROBE, 224),
    }
    assert [row["source"] for row in page.numbers] == sorted((row["source"] for row in page.numbers), key=len)
    assert {row["dataset"] for row in page.numbers} == {"cifar10"}


def test_published_values_are_hollow_beside_ours(page: Page) -> None:
    published = {run.label: run.published for run in load_study("vit_transfer").runs}
    (axes,) = page.figure.axes
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    assert len(hollow) == 5
    for label, row in by_row(page).items():
        theirs = published[label]
        assert (
            theirs is not None and row["published_top1"] == theirs.top1 and row["low"] < row["mean_top1"] < row["high"]
        )
        assert any(line.get_xdata()[0] == pytest.approx(100 * theirs.top1) for line in hollow)
        assert row["mean_top1"] == pytest.approx(theirs.top1, abs=0.002)


def test_no_line_joins_two_rows_and_every_row_has_one_mark(page: Page) -> None:
    (axes,) = page.figure.axes
    data = [line for line in axes.lines if line.get_transform() == axes.transData]
    assert data and all(len(set(np.round(line.get_ydata(), 6))) == 1 for line in data)
    filled = [line for line in data if line.get_marker() in SHAPES.values() and line.get_markerfacecolor() != "white"]
    assert len(filled) == len(page.numbers) == len({line.get_ydata()[0] for line in filled})
    shapes = {line.get_ydata()[0]: line.get_marker() for line in filled}
    assert sorted(shapes.values()) == ["D", "D", "D", "D", "o"]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert "vit-oc-cifar100-ft: 32 px, 1.51 M" in labels and "pretrained on ImageNet-1k" in labels
    assert "marks are not joined" in page.caption and "Evaluation final, after the last step" in page.caption


def test_stages_of_one_data_set_are_told_apart(study_store: Stores) -> None:
    (page,) = pages(study_store("tiny_stages"), "tiny_stages")
    found = {label: (row["source"], row["training"]) for label, row in by_row(page).items()}
    staged = "ImageNet-1k, then tiny-imagenet-200 at 224 px"
    assert found == {
        "s1a-baseline-scratch": (SCRATCH, FULL),
        "s1b-baseline-imagenet": ("ImageNet-1k", FULL),
        "s2-224-imagenet": ("ImageNet-1k", FULL),
        "s3-eval-224-on-64": (staged, EVALUATED),
        "s3-64-from-224": (staged, FULL),
        "s4-64-finetune-stem": (staged, FULL),
    }
    assert "best_on_test, whose epoch the test images chose, so optimistic" in page.caption
    assert {row["evaluation"] for row in page.numbers} == {"best_on_test"}, "as the published values"


def test_files_are_the_same_to_the_byte(study_store: Stores, tmp_path: Path) -> None:
    digests = []
    for name in ("one", "two"):
        given = ["--grid", "vit_transfer", "--results", study_store("vit_transfer").uri, "--out", str(tmp_path / name)]
        assert figures.main([*given, "--figures", "F17"]) == 0
        folder = tmp_path / name / "vit_transfer"
        digests.append({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()})
    assert digests[0] == digests[1] and set(digests[0]) == {f"F17.{kind}" for kind in ("svg", "png", "csv", "json")}
    with (tmp_path / "one" / "vit_transfer" / "F17.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["published_top1"] for row in rows] == ["0.7236", "0.65", "0.7973", "0.8733", "0.9464"]


def test_seeds_data_sets_and_pages(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "made"))
    write_grid(storage, design(24, 2), images=40, classes=5, epochs=2)
    found = pages(storage, "made")
    assert [page.name for page in found] == ["F17-red", "F17-blue"]
    assert all(len(page.numbers) == 12 and page.numbers[0]["num_seeds"] == 2 for page in found)
    assert [row["source"] for row in found[0].numbers] == [SCRATCH] * 6 + ["tag"] * 6
    assert "Small strokes: single seeds." in found[0].caption
    assert ROWS_PER_PAGE < 48
    many = Storage(str(tmp_path / "many"))
    write_grid(many, design(36, 1, datasets=("red",)), images=20, classes=5, epochs=2)
    assert [(page.name, len(page.numbers)) for page in pages(many, "made")] == [("F17-1", 30), ("F17-2", 6)]


SAID = {"red-resnet-pre-none": {"top1": 0.5}, "red-resnet-scratch-none": {"top1": 0.9}}
"""Published values of `two_seeds`."""


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A ResNet on one data set and a ViT on the other, from scratch and not, nearly always right."""
    storage = Storage(str(tmp_path_factory.mktemp("seeds")))
    chosen = {
        label: runs
        for label, runs in design(24, 2).items()
        if label.endswith("none") and label.startswith(("red-resnet", "blue-vit"))
    }
    write_grid(storage, chosen, SAID, images=40, classes=5, epochs=2, logits=noisy(0.85, 4.0))
    return storage


def test_every_number_is_drawn_where_its_row_stands(two_seeds: Storage) -> None:
    found = pages(two_seeds, "made")
    runs = {row.label: row.done for row in load_results(two_seeds, "made").rows}
    assert [page.name for page in found] == ["F17-red", "F17-blue"]
    for page in found:
        (axes,) = page.figure.axes
        data = [line for line in axes.lines if line.get_transform() == axes.transData]
        labels = [label.get_text().partition(":")[0] for label in axes.get_yticklabels()]
        numbers = by_row(page)
        assert set(page.run_ids) == {run.run_id for label in numbers for run in runs[label]}
        for label, row in numbers.items():
            own = [run.evaluations["best_on_test"].metrics["top1"] for run in runs[label]]
            assert [row["seed_1"], row["seed_2"]] == own and row["mean_top1"] == pytest.approx(np.mean(own))
            assert row["low"] < row["mean_top1"] < row["high"] <= 1
            y = labels.index(label)
            seen = {line.get_marker(): list(line.get_xdata()) for line in data if line.get_ydata()[0] == y}
            assert seen["None"] == pytest.approx([100 * row["low"], 100 * row["high"]])
            assert seen["|"] == pytest.approx([100 * one for one in own])
            assert seen["o"] == pytest.approx([100 * row["mean_top1"]])
            hollow = [list(line.get_xdata()) for line in data if line.get_ydata()[0] == y + BELOW]
            (told,) = [text.get_text() for text in axes.texts if text.get_position() == (1.02, y)]
            if label in SAID:
                assert hollow == [[pytest.approx(100 * SAID[label]["top1"])]]
                assert told == f"{100 * np.mean(own):.2f} ({100 * SAID[label]['top1']:.2f})"
            else:
                assert not hollow and told == f"{100 * np.mean(own):.2f}"
        best = max(numbers, key=lambda label: float(numbers[label]["mean_top1"]))
        assert f"the highest of {len(numbers)} rows is" in page.alt and f"({best};" in page.alt
    shown = [{text.get_text() for text in page.figure.legends[0].get_texts()} for page in found]
    assert shown == [{FULL, "small_resnet", "published"}, {FULL, "small_vit"}], "what the page has not is in no legend"


def drawn(storage: Storage, change: Callable[[ResultRow], ResultRow]) -> list[Page]:
    """The pages of a grid whose rows are otherwise."""
    given = load_inputs(storage, "made")
    results = dataclasses.replace(given.results, rows=tuple(map(change, given.results.rows)))
    with style():
        return transfer(Inputs(storage=storage, results=results))


def runs_with(row: ResultRow, change: Callable[[SeedRun], SeedRun]) -> ResultRow:
    return dataclasses.replace(row, runs=tuple(map(change, row.runs)))


def test_where_a_seed_lacks_the_evaluation_it_is_that_after_the_last_step(two_seeds: Storage) -> None:
    def change(row: ResultRow) -> ResultRow:
        def only_final(run: SeedRun) -> SeedRun:
            return dataclasses.replace(run, evaluations={"final": run.final}) if run.seed == 2 else run

        return runs_with(row, only_final) if row.label == "red-resnet-pre-none" else row

    page, _ = drawn(two_seeds, change)
    told = {label: row["evaluation"] for label, row in by_row(page).items()}
    assert told == {"red-resnet-scratch-none": "best_on_test", "red-resnet-pre-none": "final"}
    assert "Evaluation best_on_test or final, whose epoch the test images chose" in page.caption


def test_rows_on_other_classes_of_a_data_set_are_a_page_of_their_own(two_seeds: Storage) -> None:
    def change(row: ResultRow) -> ResultRow:
        def fewer(run: SeedRun) -> SeedRun:
            return dataclasses.replace(run, trial={**run.trial, "classes": [0, 1]})

        return runs_with(row, fewer) if row.label == "red-resnet-pre-none" else row

    found = [[row["row"] for row in page.numbers] for page in drawn(two_seeds, change)]
    assert found == [["red-resnet-pre-none"], ["blue-vit-scratch-none", "blue-vit-pre-none"]]


def test_rows_that_are_not_done_are_named_and_parents_are_not(two_seeds: Storage) -> None:
    def change(row: ResultRow) -> ResultRow:
        if not row.label.startswith("blue"):
            return row
        return dataclasses.replace(row, runs=(), is_parent="scratch" in row.label)

    (page,) = drawn(two_seeds, change)
    assert "Not done, so not shown: blue-vit-pre-none. " in page.caption
    assert "Not done" not in pages(two_seeds, "made")[0].caption


def test_seeds_that_were_judged_on_different_images_are_refused(two_seeds: Storage, tmp_path: Path) -> None:
    other = Storage(str(tmp_path / "other"))
    write_grid(other, design(1, 1), images=20, classes=5, epochs=2)
    ((foreign,),) = (row.done for row in load_results(other, "made").rows)

    def change(row: ResultRow) -> ResultRow:
        def of_fewer_images(run: SeedRun) -> SeedRun:
            return dataclasses.replace(run, evaluations=foreign.evaluations) if run.seed == 2 else run

        return runs_with(row, of_fewer_images)

    with pytest.raises(MissingInputs, match="its seeds were judged on different images"):
        drawn(two_seeds, change)


def test_the_published_grid_passes_the_lint(published_store: Storage) -> None:
    """Gated cells are hollow with a dagger, published values hollow and grey."""
    found = pages(published_store, "paper")
    assert [page.name for page in found] == ["F17-cifar100", "F17-tiny-imagenet-200"]
    for page in found:
        (axes,) = page.figure.axes
        daggers = {text.xy for text in axes.texts if isinstance(text, Annotation) and text.get_text() == "†"}
        own = [line for line in axes.lines if line.get_marker() in SHAPES.values() and line.get_color() != GREY]
        places = {(line.get_xdata()[0], line.get_ydata()[0]): line.get_markerfacecolor() for line in own}
        assert daggers == {place for place, face in places.items() if face == "white"}
        assert ("†" in page.caption) == bool(daggers)
    assert "†" in found[1].caption and "ImageNet-21k, then ImageNet-1k" in {row["source"] for row in found[0].numbers}


def test_without_pretraining_it_says_so(study_store: Stores) -> None:
    with pytest.raises(MissingInputs, match="no row that is done starts from weights that were trained before"):
        transfer(load_inputs(study_store("ablations"), "ablations"))


@pytest.mark.parametrize(
    ("source", "data"),
    [
        ("torchvision/ResNet18_Weights.IMAGENET1K_V1", ("ImageNet-1k",)),
        ("torchvision/ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", ("IMAGENET1K_SWAG_E2E_V1",)),
        ("resnet50.a1_in1k", ("ImageNet-1k",)),
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", ("ImageNet-21k", "ImageNet-1k")),
        ("vit_base_patch16_224.augreg_in21k", ("ImageNet-21k",)),
        ("convnext_tiny.fb_in22k_ft_in1k", ("ImageNet-22k", "ImageNet-1k")),
        ("vit_base_patch32_clip_224.laion2b_ft_in12k_in1k", ("laion2b", "ImageNet-12k", "ImageNet-1k")),
        ("resnet50.fb_ssl_yfcc100m_ft_in1k", ("fb_ssl_yfcc100m", "ImageNet-1k")),
        ("resnet18.plain1kin", ("plain1kin",)),
        ("resnet18", ("resnet18",)),
        ("resnet18.", ("resnet18.",)),
    ],
)
def test_data_of_published_weights_by_their_name(source: str, data: tuple[str, ...]) -> None:
    assert weights_data(source) == data


def run(run_id: str, kind: str, source: str | None, steps: int = 5, stand_in: str | None = None, **more: Any) -> Any:
    trial = {"init_kind": kind, "init_source": source, "init_stand_in": stand_in, "steps": steps, "dataset": "red"}
    trial |= {"image_size": 32, "classes": [0, 1], **more}
    return SimpleNamespace(run_id=run_id, trial=trial, seed=0)


def test_a_chain_of_parents_is_followed_to_its_beginning() -> None:
    runs = [
        run("a", "hub", "resnet50.a1_in1k"),
        run("b", "parent", "a", dataset="blue"),
        run("c", "parent", "b", steps=0, dataset="blue"),
        run("d", "parent", "c"),
        run("e", "parent", "gone"),
        run("f", "hub", "resnet50.a1_in1k", stand_in="seed 0"),
        run("g", "parent", "f", stand_in="seed 0", classes=[2, 3]),
        run("h", "file", "mine.safetensors"),
        run("i", "parent", "j"),
        run("j", "parent", "i"),
        run("k", "parent", "f", classes=[0, 2]),
    ]
    evidence: Any = {one.run_id: SimpleNamespace(spec={}) for one in runs}
    evidence["a"].spec = {"optim.frozen": ["backbone"]}
    evidence["b"].spec = {"optim.frozen": ["layer1"]}
    evidence["c"].spec = {"optim.frozen": ["backbone"]}
    found = origins(SimpleNamespace(done=runs), evidence)  # type: ignore[arg-type]
    told = {run_id: origin.source for run_id, origin in found.items()}
    assert told["d"] == "ImageNet-1k, then red, then blue", "an evaluation adds nothing"
    assert told["c"] == told["d"], "what is evaluated was trained on what its parent was trained on"
    assert told["e"] == "run gone, which is not in this store"
    assert told["f"] == "random weights in place of ImageNet-1k"
    assert told["g"] == "random weights in place of ImageNet-1k, then red of other classes"
    assert told["h"] == "file mine.safetensors" and "which is not in this store" in told["i"], "a circle ends"
    assert [found[one].training for one in "abcd"] == [PROBE, PARTLY, EVALUATED, FULL]
    assert set(SHAPES) == set(pretraining.TRAININGS)
