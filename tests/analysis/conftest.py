"""Stores that the tests of the analysis share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from published_store import commit_answers, from_correct, write_published_store
from study_store import write_study_store
from toy import made_up_from

from analysis.gates import Evidence, read_evidence
from analysis.load import GridResults, load_results
from trainable.storage import Storage
from tuner.grid import Selection, load_grid
from tuner.ledger import survey, write_manifest


@pytest.fixture(scope="session")
def published_store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Grid `paper` done with the published counts: one seed, `final` at the last epoch of the study's logs."""
    storage = Storage(str(tmp_path_factory.mktemp("published")))
    write_published_store(storage)
    return storage


@pytest.fixture(scope="session")
def published_results(published_store: Storage) -> GridResults:
    return load_results(published_store, "paper")


@pytest.fixture(scope="session")
def published_evidence(published_store: Storage, published_results: GridResults) -> dict[str, Evidence]:
    return read_evidence(published_store, published_results)


MADE = {"none": 0.60, "mixup": 0.66, "cutmix": 0.70}
"""Accuracy of the ResNet's arms in `made_store`, whatever the initial weights."""


@pytest.fixture(scope="session")
def made_store(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Storage:
    """Grid `demo` done with three seeds on 4,000 images that all runs find about equally hard. The ResNet gains 6
    points from MixUp and 10 from CutMix, the ViT 10 and 6, pretrained or not: H1 and H2 hold, H3 holds."""
    storage = Storage(str(tmp_path_factory.mktemp("made")))
    grid = load_grid(root / "experiments.yaml", "demo", Selection(seeds=(1, 2, 3)))
    shared = np.random.default_rng(0).random(4000)
    for run in grid.runs:
        mix = run.axes["mix"]
        swapped = {"none": "none", "mixup": "cutmix", "cutmix": "mixup"}[mix]
        share = MADE[mix if run.axes["model"] == "small_resnet" else swapped]
        rng = np.random.default_rng(made_up_from(run.spec))
        correct = 0.97 * shared + 0.03 * rng.random(4000) < share + rng.normal(0, 0.002)
        commit_answers(storage, run.spec, {"final": from_correct(correct, 5, rng)})
    write_manifest(storage, grid, survey(storage, grid), [], {})
    return storage


@pytest.fixture(scope="session")
def made_results(made_store: Storage) -> GridResults:
    return load_results(made_store, "demo")


@pytest.fixture(scope="session")
def made_evidence(made_store: Storage, made_results: GridResults) -> dict[str, Evidence]:
    return read_evidence(made_store, made_results)


@pytest.fixture(scope="session")
def study_store(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Storage]:
    """The stores of the other studies' grids, each written when it is first asked for. In `ablations` two rows never
    ran, a published one and one that was not."""
    found: dict[str, Storage] = {}

    def store(name: str) -> Storage:
        if name not in found:
            found[name] = Storage(str(tmp_path_factory.mktemp(name)))
            write_study_store(found[name], name, without=NEVER_RUN)
        return found[name]

    return store


NEVER_RUN = ("resnet34", "vit-b-8x8")
