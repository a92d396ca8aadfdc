"""F17: accuracy by what weights had been trained on before: read from runs and their parents, a mark a row, none joined."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from study_store import load_study
from synthetic import design, write_grid

from analysis import figures, pretraining
from analysis.figure_inputs import MissingInputs
from analysis.figure_lint import lint
from analysis.figures import load_inputs
from analysis.figures_transfer import ROWS_PER_PAGE, SHAPES, transfer
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


def test_the_published_grid_passes_the_lint(published_store: Storage) -> None:
    """Gated cells are hollow with a dagger, published values hollow and grey."""
    found = pages(published_store, "paper")
    assert [page.name for page in found] == ["F17-cifar100", "F17-tiny-imagenet-200"]
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
    found = origins(SimpleNamespace(done=runs), evidence)  # type: ignore[arg-type]
    told = {run_id: origin.source for run_id, origin in found.items()}
    assert told["d"] == "ImageNet-1k, then red, then blue", "an evaluation adds nothing"
    assert told["e"] == "run gone, which is not in this store"
    assert told["f"] == "random weights in place of ImageNet-1k"
    assert told["g"] == "random weights in place of ImageNet-1k, then red of other classes"
    assert told["h"] == "file mine.safetensors" and "which is not in this store" in told["i"], "a circle ends"
    assert [found[one].training for one in "abcd"] == [PROBE, PARTLY, EVALUATED, FULL]
    assert set(SHAPES) == set(pretraining.TRAININGS)
