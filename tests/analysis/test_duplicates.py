"""Test images that are in the training split too: found, left out of one reading, and said."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic import CONTENT, write_dims

from analysis.duplicates import Duplicates, find_duplicates, known_near_duplicates
from analysis.gates import Evidence
from analysis.hypotheses import Reading, judge
from analysis.hypothesis_tables import hypothesis_frames
from analysis.load import GridResults
from analysis.registration import registration
from datasets.store import open_dataset
from trainable.storage import Storage


def test_the_published_list_is_of_the_real_test_images(cifar100_path: Path) -> None:
    data = open_dataset(cifar100_path, "cifar100")
    digests = [
        {hashlib.sha1(image.tobytes(), usedforsecurity=False).hexdigest() for image in store.images}
        for store in (data.train, data.test)
    ]
    assert len(known_near_duplicates()) == 891
    assert known_near_duplicates() <= digests[1]
    copies = digests[0] & digests[1]
    assert len(copies) == 10 and copies <= known_near_duplicates(), "people had found every copy"


def test_copies_and_listed_images_are_found(storage: Storage) -> None:
    write_dims(storage, "red", 20, 5, train=[f"{3:040x}", f"{7:040x}", "f" * 40])
    found = find_duplicates(storage, "red", CONTENT["red"])
    assert (
        found is not None and found.sample_ids.tolist() == [3, 7] and str(found) == "red: 2 copies of training images"
    )
    assert find_duplicates(storage, "red", "0" * 64) is None, "other images"
    assert find_duplicates(storage, "red", None) is None
    more = replace(found, sample_ids=np.array([3, 7, 8]))
    assert str(more).endswith("2 copies of training images, and 1 more on the list of Barz and Denzler (2020)")


@pytest.fixture
def with_duplicates(made_evidence: dict[str, Evidence]) -> dict[str, Evidence]:
    """As if the first 1,000 test images were copies."""
    known = Duplicates(dataset="digits", sample_ids=np.arange(1000), num_copies=1000)
    return {run_id: replace(one, duplicates=known) for run_id, one in made_evidence.items()}


def test_they_are_left_out_of_one_reading(made_results: GridResults, with_duplicates: dict[str, Evidence]) -> None:
    known = registration()
    without = judge(made_results, with_duplicates, known, Reading(evaluation="final", duplicates=False))
    finding = without.findings[0]
    assert finding.num_images == 3000 and finding.result is not None
    by_hand = 0.0
    for cell, weight in finding.spec.weights.items():
        row = finding.cells[cell]
        assert row is not None
        by_hand += weight * float(np.mean([run.evaluations["final"].correct[1000:].mean() for run in row.done]))
    assert finding.result.estimate == pytest.approx(by_hand, abs=1e-12)

    frame = hypothesis_frames(made_results, with_duplicates, judge(made_results, with_duplicates, known))["T5"]
    assert "without duplicates" in frame.columns
    assert any(note.endswith("or nearly so; digits: 1,000 copies of training images") for note in frame.notes)


def test_images_that_the_store_does_not_know_cannot_be_left_out(
    made_results: GridResults, made_evidence: dict[str, Evidence]
) -> None:
    known = registration()
    without = judge(made_results, made_evidence, known, Reading(evaluation="final", duplicates=False))
    registered = judge(made_results, made_evidence, known)
    reason = "the store does not know which test images are in the training split too"
    for one, other in zip(registered.findings, without.findings, strict=True):
        assert other.result is None and (one.result is None or other.reasons == (reason,))
    frame = hypothesis_frames(made_results, made_evidence, registered)["T5"]
    assert "without duplicates" not in frame.columns
    assert any("does not know the images, so none could be left out" in note for note in frame.notes)


def test_a_test_split_of_duplicates_alone_leaves_nothing_to_read(
    made_results: GridResults, made_evidence: dict[str, Evidence]
) -> None:
    known = Duplicates(dataset="digits", sample_ids=np.arange(4000), num_copies=4000)
    evidence = {run_id: replace(one, duplicates=known) for run_id, one in made_evidence.items()}
    without = judge(made_results, evidence, registration(), Reading(evaluation="final", duplicates=False))
    reason = "all test images are in the training split too, or nearly so"
    assert {other.reasons for other in without.findings if other.seeds and other.result is None} >= {(reason,)}
