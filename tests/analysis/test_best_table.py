"""T15 to T17: our highest and last accuracy beside the published maximum, by split; what models learnt of themselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from study_store import NUM_TEST, load_study, write_study_store
from synthetic import spec_of, tables_of, write_manifest_of, write_run

from analysis import best
from analysis.courses import quantities, read_courses
from analysis.frame import Frame
from analysis.load import AnalysisError, load_results
from analysis.scalars_table import scalars_frame
from analysis.tables import Source, build, main
from trainable import records, schemas
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
    assert not any("what a model remembers" in note or "several seeds" in note for note in frame.notes)


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
    assert any("what a model remembers of them, and not how well it generalises" in note for note in frame.notes)
    published = {run.label: run.published for run in load_study("ablations").runs}
    for label, values in numbers(frame).items():
        theirs = published[label]
        if theirs is not None:
            assert (values["published_top1"], values["published_step"]) == (theirs.train_top1, theirs.train_step)
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


def test_names_that_end_in_no_number_are_of_different_things(source: Source) -> None:
    """A normaliser's mean and variance have no average."""
    row = source.results.rows[0]
    told = '{"norm.mean": 0.45, "norm.var": 0.07, "inner.t.0": 1.0, "inner.t.1": 2.0, "inner.t.10": 6.0}'
    run = dataclasses.replace(row.done[0], trial={**row.done[0].trial, "final_scalars_json": told})
    frame = scalars_frame(dataclasses.replace(source.results, rows=(dataclasses.replace(row, runs=(run,)),)))
    lines = [dict(zip(frame.columns, cells, strict=True)) for cells in frame.rows]
    found = {line["quantity"]: (line["parts"], line["mean ± sd"], line["highest"]) for line in lines}
    assert found == {
        "norm.mean": ("1", "0.450", "—"),
        "norm.var": ("1", "0.070", "—"),
        "inner.t": ("3", "3.000 ± 2.6458", "6.000"),
    }


COURSES = {
    "wide": {1: ((0.2, 0.5, 0.4), (0.6, 0.8, 0.6)), 2: ((0.3, 0.3, 0.6), (0.8, 0.8, 1.0))},
    "narrow": {1: ((0.1, 0.7, 0.7), (0.5, 0.7, 0.6))},
}
"""By row and seed: top-1 on the test images and on the first training images, by evaluation."""
FIRST = {"wide": 5, "narrow": 7, "little": 5, "much": 5, "none": 5}
SAID = {
    "wide": {"top1": 0.52, "step": 20, "train_top1": 0.95, "train_step": 30, "note": "train_5 as of the second try"},
    "little": {"top1": 0.3},
    "much": {"top1": 0.4, "train_top1": 0.8},
}


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Two rows done whose seeds and first training images are not alike, two that were published alone, and one that
    is neither."""
    storage = Storage(str(tmp_path_factory.mktemp("unlike")))
    specs = {}
    for place, (label, first) in enumerate(FIRST.items()):
        fields = {"evaluate.train_first": first, "evaluate.train_augmented": True, "optim.lr": 0.1 / (1 + place)}
        specs[label] = [spec_of("red", "small_resnet", "none", False, seed, **fields) for seed in (1, 2)]
        for spec in specs[label]:
            if (courses := COURSES.get(label, {}).get(spec.seed)) is None:
                continue
            key = {"run_id": spec.run_id, "attempt_id": "a1"}
            rows = [
                {
                    **key,
                    "eval_index": i,
                    "split": split,
                    "step": 10 * (i + 1),
                    "epoch": i + 1.0,
                    "top1": top1,
                    "loss_nats": 1.0,
                }
                for split, course in zip(("test", f"train_{first}"), courses, strict=True)
                for i, top1 in enumerate(course)
            ]
            epochs = pa.Table.from_pylist(rows, schema=schemas.EPOCHS)
            write_run(storage, spec, {**tables_of(spec, images=20, classes=5), "epochs": epochs})
    write_manifest_of(storage, specs, SAID)
    return Source(storage, load_results(storage, "made"))


def test_seeds_that_are_not_alike_are_averaged_each_with_its_own_best(unlike: Source) -> None:
    frame = build(unlike, "T15")
    shown, found = lines(frame), numbers(frame)
    assert list(shown) == ["narrow", "wide", "much", "little"], "then the published ones, the highest first"
    wide = [shown["wide"][name] for name in ("our maximum %", "its step", "tied", "our last %", "difference")]
    assert wide == ["55.00 ± 7.07", "20 to 30", "1", "50.00 ± 14.14", "+3.00"]
    assert found["wide"]["best_top1"] == pytest.approx(0.55) and found["wide"]["last_top1"] == pytest.approx(0.5)
    assert (shown["narrow"]["seeds"], shown["narrow"]["tied"], shown["narrow"]["difference"]) == ("1", "2", "—")
    assert (shown["much"]["published %"], shown["much"]["our last %"], shown["much"]["seeds"]) == ("40.00", "—", "0")
    assert any(note.startswith("difference: our maximum less published") for note in frame.notes)
    assert "neither run nor published: none" in frame.notes


def test_published_values_of_the_last_step_are_compared_with_ours_of_it(unlike: Source) -> None:
    """Of the test images: nobody published the last accuracy on training images."""
    last = Source(unlike.storage, dataclasses.replace(unlike.results, published_eval="final"))
    test, train = build(last, "T15"), build(last, "T16")
    assert numbers(test)["wide"]["difference"] == pytest.approx(0.5 - 0.52)
    assert any(note.startswith("difference: our last less published") for note in test.notes)
    assert numbers(train)["wide"]["difference"] == pytest.approx(0.9 - 0.95)
    assert any(note.startswith("difference: our maximum less published") for note in train.notes)


def test_rows_of_other_first_images_say_which(unlike: Source) -> None:
    """A remark that two rows share has one number."""
    frame = build(unlike, "T16")
    assert [cells[:2] for cells in frame.rows] == [("wide", "train_5"), ("narrow", "train_7"), ("much", "train_5")]
    assert frame.left == 2 and "the highest accuracy on train_5 or train_7" in frame.title
    assert [lines(frame)[label]["notes"] for label in ("wide", "narrow", "much")] == ["[1] [2]", "[1]", ""]
    told = [note for note in frame.notes if note.startswith("[")]
    assert [note[:16] for note in told] == ["[1] seen through", "[2] published: t"]
    assert "neither run nor published: little, none" in frame.notes
    assert "split" not in build(unlike, "T15").columns


def test_lowest_and_highest_are_means_over_seeds(source: Source) -> None:
    """Of a name's parts the last alone is dropped; every row's remark has its own number."""
    row = source.results.rows[0]
    told = (
        '{"near.scale.0": 1.0, "near.scale.1": 3.0, "far.scale.0": 5.0}',
        '{"near.scale.0": 4.0, "near.scale.1": 9.0, "far.scale.0": 7.0}',
    )
    runs = tuple(
        dataclasses.replace(row.done[0], seed=seed, trial={**row.done[0].trial, "final_scalars_json": text})
        for seed, text in enumerate(told)
    )
    one = dataclasses.replace(row, label="one", runs=runs, published={"note": "near.scale 4"})
    other = dataclasses.replace(one, label="other", published={"note": "near.scale 5"})
    frame = scalars_frame(dataclasses.replace(source.results, rows=(one, other)))
    assert [raw["quantity"] for raw in frame.raw] == ["near.scale", "far.scale"] * 2
    near, far = frame.raw[:2]
    assert (near["mean"], near["lowest"], near["highest"]) == (4.25, 2.5, 6.0)
    assert (near["num_seeds"], near["num_parts"], near["mean_by_seed"]) == (2, 2, "2.0 6.5")
    assert (far["mean"], far["sd"], far["num_parts"], far["mean_by_seed"]) == (6.0, None, 1, "5.0 7.0")
    assert [cells[frame.columns.index("notes")] for cells in frame.rows] == ["[1]", "", "[2]", ""]
    assert frame.notes[1:] == ("[1] published: near.scale 4", "[2] published: near.scale 5")
    assert "as the mean over seeds" in frame.notes[0]
    assert "as the mean over seeds" not in scalars_frame(source.results).notes[0]
