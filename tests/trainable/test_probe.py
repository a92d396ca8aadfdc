"""Two steps aside: what they show, and that each kind of fault is found."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import exec_spec, run_spec

from datasets.store import ArrayStore, Dataset
from trainable.probe import BatchFacts, findings, parent_of, probe
from trainable.spec import RunSpec
from trainable.storage import Storage

GOOD = BatchFacts(num_images=16, height=8, width=8, mean=0.0, std=1.0, label_min=0, label_max=2)


def found(train: BatchFacts = GOOD, test: BatchFacts = GOOD, outputs: int = 3, losses: Any = (1.0, 1.0)) -> list[str]:
    return findings(run_spec(), train, test, 3, outputs, list(losses))


def changed(**fields: Any) -> BatchFacts:
    return dataclasses.replace(GOOD, **fields)


def test_a_sound_row_passes(toy: Dataset, data_path: Path, toy_spec: RunSpec) -> None:
    before = threading.active_count()
    one = probe(toy_spec, exec_spec(data_path), toy)
    assert threading.active_count() == before, "its loaders' threads have ended"
    assert one.findings == () and one.notes == ()
    assert (one.train.num_images, one.train.height, one.train.width) == (16, 8, 8)
    assert one.num_classes == 3 and len(one.losses) == 2 and all(0.5 < loss < 3 for loss in one.losses)
    assert one.seconds_per_step > 0 and one.seconds_per_evaluated_image > 0 and one.peak_memory_bytes > 1e8


def test_the_studys_32_pixel_batches_in_a_64_pixel_model_are_caught(toy: Dataset, data_path: Path) -> None:
    sha = toy.manifest.content_sha256
    spec = run_spec({"model.name": "small_resnet", "augment.train_crop": 4, "data.content_sha256": sha})
    (text,) = probe(spec, exec_spec(data_path), toy).findings
    assert text.startswith("train batches are 4x4, test batches 8x8 pixels (data.image_size 8, augment.train_crop 4)")


def test_other_statistics_and_unseen_classes_are_caught(toy: Dataset, data_path: Path, toy_spec: RunSpec) -> None:
    """A test split that was scaled otherwise, and a train split that lacks a class."""
    bright = dataclasses.replace(toy.test, images=np.minimum(toy.test.images.astype(int) + 150, 255).astype(np.uint8))
    texts = probe(toy_spec, exec_spec(data_path), Dataset(train=toy.train, test=bright)).findings
    assert any("normalised differently?" in text for text in texts)
    two = ArrayStore(
        images=toy.train.images,
        labels=np.minimum(toy.train.labels, 1).astype(np.int16),
        manifest=toy.train.manifest,
    )
    texts = probe(toy_spec, exec_spec(data_path), Dataset(train=two, test=toy.test)).findings
    assert "1 classes of the test split have no training image (labels 2)" in texts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": changed(height=4, width=4)}, "tested on images of a size that it never saw"),
        ({"train": changed(height=4), "test": changed(height=4)}, "batches are 4 pixels high, data.image_size says 8"),
        ({"test": changed(mean=0.6)}, "train batches have mean 0.00, test batches 0.60: normalised differently?"),
        ({"train": changed(std=0.4)}, "train batches have deviation 0.40, test batches 1.00: scaled differently?"),
        ({"test": changed(label_max=3)}, "test labels run from 0 to 3, the model has classes 0 to 2"),
        ({"train": changed(label_min=-1)}, "train labels run from -1 to 2"),
        ({"outputs": 10}, "the model has 10 outputs, the data 3 classes"),
        ({"losses": (1.0, float("nan"))}, "the loss of step 1 is not a finite number"),
    ],
)
def test_every_fault_is_said(arguments: dict[str, Any], message: str) -> None:
    assert any(message in text for text in found(**arguments))
    assert found() == []


def test_a_child_without_its_parent_is_checked_with_random_weights(
    toy: Dataset, data_path: Path, tmp_path: Path
) -> None:
    fields = {
        "data.content_sha256": toy.manifest.content_sha256,
        "init.kind": "parent",
        "init.source": "0" * 16,
        "init.checkpoint": "last",
    }
    spec = run_spec(fields)
    assert parent_of(spec, Storage(str(tmp_path))) is None
    one = probe(spec, exec_spec(data_path), toy)
    assert one.notes == ("its parent is not trained yet: checked with random weights",) and one.findings == ()
