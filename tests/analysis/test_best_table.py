"""T15 to T17: our highest and last accuracy beside the published maximum, by split; what models learnt of themselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from study_store import NUM_TEST, load_study, write_study_store

from analysis import best
from analysis.courses import quantities, read_courses
from analysis.frame import Frame
from analysis.load import AnalysisError, load_results
from analysis.scalars_table import scalars_frame
from analysis.tables import Source, build, main
from trainable import records
from trainable.records import RecordError
from trainable.storage import Storage

Stores = Callable[[str], Storage]


@pytest.fixture(scope="module")
def source(study_store: Stores) -> Source:
    store = study_store("ablations")
    return Source(store, load_results(store, "ablations"))


def lines(frame: Frame) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(frame.columns, row, strict=True)) for row in frame.rows}


def numbers(frame: Frame) -> dict[str, Mapping[str, Any]]:
    return {str(row["run"]): row for row in frame.raw}


def test_the_highest_test_accuracy_stands_beside_the_published_one(source: Source) -> None:
    frame = build(source, "T15")
    found, shown = numbers(frame), lines(frame)
    published = {run.label: run.published for run in load_study("ablations").runs}
    done = [label for label, row in found.items() if row["num_seeds"]]
    ours = [float(found[label]["best_top1"]) for label in done]
    assert ours == sorted(ours, reverse=True) and len(done) == 21 and list(found)[-1] == "resnet34"
    for label in done:
        theirs, row = published[label], found[label]
        if theirs is None:
            assert row["published_top1"] is row["difference"] is None
            continue
        assert row["best_top1"] == pytest.approx(theirs.top1, abs=0.5 / NUM_TEST)
        assert row["difference"] == pytest.approx(row["best_top1"] - theirs.top1)
        assert int(row["step_by_seed"]) == theirs.step == row["published_step"]
    (run,) = next(row.done for row in source.results.rows if row.label == "resnet18")
    assert found["resnet18"]["last_top1"] == run.trial["final_top1"] < found["resnet18"]["best_top1"]
    assert shown["resnet34"]["our maximum %"] == "—" and shown["resnet34"]["published %"] == "33.38"
    assert "neither run nor published: vit-b-8x8" in frame.notes
    assert any("50 evaluations, picked by these very images, so optimistic" in note for note in frame.notes)
    assert not any("augmentation" in note for note in frame.notes), "of the training images alone"


def test_training_images_are_a_table_of_their_own(source: Source) -> None:
    frame = build(source, "T16")
    shown = lines(frame)
    row = shown["resnet18"]
    assert (row["our maximum %"], row["its step"], row["tied"], row["published step"]) == (
        "100.00",
        "4,600",
        "5",
        "4,600",
    )
    assert shown["resnet18-gn"]["tied"] == "1"
    assert list(shown)[:2] == ["resnet18", "resnet18-wonorm"], "ties stand in the grid's order"
    assert any("Where several do, the step says nothing" in note for note in frame.notes)
    marked = {label for label, cells in shown.items() if cells["notes"]}
    assert marked == {"resnet18-aug"}
    told = numbers(frame)["resnet18-aug"]["notes"]
    assert "seen through the random augmentation" in told and "published: train_200 through the random" in told


def test_the_best_are_those_of_the_command_best(source: Source) -> None:
    """One rule for both: the first of equal values."""
    commits = records.read_commits(source.storage)
    courses = read_courses(source.storage, commits.values(), quantities()["top1"])
    for name, split in (("T15", "test"), ("T16", "train_200")):
        frame = best.best_frame(source.results, courses, "top1", split)
        theirs = {str(row["row"]): (row["best_top1"], row["step_by_seed"], row["tied_by_seed"]) for row in frame.raw}
        own = numbers(build(source, name))
        found = {
            label: tuple(row[key] for key in ("best_top1", "step_by_seed", "tied_by_seed"))
            for label, row in own.items()
        }
        assert {label: found[label] for label in theirs} == theirs


def test_seeds_are_averaged_with_their_own_bests(tmp_path_factory: pytest.TempPathFactory) -> None:
    storage = Storage(str(tmp_path_factory.mktemp("seeds")))
    labels = [run.label for run in load_study("ablations").runs]
    kept = ("resnet18", "vitn-12x256-8x8-lt")
    write_study_store(storage, "ablations", seeds=(0, 1, 2), without=[one for one in labels if one not in kept])
    source = Source(storage, load_results(storage, "ablations"))
    frame = build(source, "T15")
    row = lines(frame)["resnet18"]
    assert row["seeds"] == "3" and row["our maximum %"] == "35.50 ± 0.00" and row["its step"] == "2,400"
    assert any("several seeds: mean of each one's best" in note for note in frame.notes)
    learnt = numbers(build(source, "T17"))["vitn-12x256-8x8-lt"]
    values = [
        list(json.loads(run.trial["final_scalars_json"]).values())
        for run in source.results.done
        if run.trial["final_scalars_json"] != "{}"
    ]
    assert learnt["num_seeds"] == 3 and learnt["mean"] == pytest.approx(np.mean(values))
    assert learnt["sd"] == pytest.approx(np.mean([np.std(one, ddof=1) for one in values]))


def test_temperatures_are_means_over_blocks(source: Source) -> None:
    frame = build(source, "T17")
    found = numbers(frame)
    assert list(found) == ["vitn-12x256-8x8-lt", "vitn-12x256-8x8-ltv", "vitn-12x256-8x8-dm-lt"]
    (run,) = next(row.done for row in source.results.rows if row.label == "vitn-12x256-8x8-lt")
    values = np.array(list(json.loads(run.trial["final_scalars_json"]).values()))
    row = found["vitn-12x256-8x8-lt"]
    assert len(values) == row["num_parts"] == 12 and row["quantity"] == "temperature"
    assert row["mean"] == pytest.approx(values.mean()) and row["sd"] == pytest.approx(values.std(ddof=1))
    assert (row["lowest"], row["highest"]) == (values.min(), values.max())
    assert row["notes"] == "final temperature 0.900, standard deviation 0.0407 over the 12 blocks"
    assert found["vitn-12x256-8x8-dm-lt"]["notes"] == ""
    assert "[1] published: final temperature 0.900, standard deviation 0.0407 over the 12 blocks" in frame.notes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("T15", "no run was evaluated on its first training images"),
        ("T16", "no run was evaluated on its first training images"),
        ("T17", "no model of this grid has numbers of its own"),
    ],
)
def test_a_grid_without_them_says_why(
    name: str, message: str, study_store: Stores, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    store = study_store("tiny_stages")
    with pytest.raises(AnalysisError, match=message):
        build(Source(store, load_results(store, "tiny_stages")), name)
    given = ["--grid", "tiny_stages", "--results", store.uri, "--out", str(tmp_path), "--tables", name]
    assert main(given) == 2
    assert f"--tables {name}: grid tiny_stages: {message}" in capsys.readouterr().err


def test_no_number_is_shown_of_what_is_none(source: Source) -> None:
    row = source.results.rows[0]
    run = dataclasses.replace(
        row.done[0], trial={**row.done[0].trial, "final_scalars_json": '{"temperature.0": "warm"}'}
    )
    broken = dataclasses.replace(source.results, rows=(dataclasses.replace(row, runs=(run,)),))
    with pytest.raises(RecordError, match=r"temperature\.0: warm is no finite number; move the run's commit away"):
        scalars_frame(broken)


def test_one_part_is_a_number_without_spread(source: Source) -> None:
    row = source.results.rows[0]
    told = '{"scale": 2.0, "temperature.0": 1.0, "temperature.1": 3.0}'
    run = dataclasses.replace(row.done[0], trial={**row.done[0].trial, "final_scalars_json": told})
    row = dataclasses.replace(row, runs=(run,), published={"note": "temperature 2"})
    frame = scalars_frame(dataclasses.replace(source.results, rows=(row,)))
    assert [values["mean"] for values in frame.raw] == [2.0, 2.0]
    scale, temperature = (dict(zip(frame.columns, cells, strict=True)) for cells in frame.rows)
    assert (scale["mean ± sd"], scale["lowest"], scale["notes"]) == ("2.000", "—", "")
    assert (temperature["mean ± sd"], temperature["lowest"], temperature["notes"]) == ("2.000 ± 1.4142", "1.000", "[1]")
