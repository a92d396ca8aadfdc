"""Curves by step and the best of each split: any quantity, any split, no run merged unseen, ties to the smaller step."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from synthetic import design, tables_of, write_manifest_of, write_run

from analysis import best, curves
from analysis.courses import Point, quantities, read_courses
from analysis.load import load_results
from analysis.plotting import style
from trainable import records, schemas
from trainable.storage import Storage

STEPS = (100, 200, 300, 400)
COURSES = {
    "red-resnet-scratch-none": {1: (0.2, 0.5, 0.5, 0.4), 2: (0.3, 0.3, 0.6, 0.5)},
    "red-resnet-scratch-mixup": {1: (0.1, 0.7, 0.6, 0.7), 2: (0.1, 0.5, 0.7, 0.7)},
    "red-resnet-scratch-cutmix": {1: (0.1, 0.1, 0.2, 0.3)},
}
"""Top-1 on the test split by evaluation, of every seed; on `train_200` twice an image in five is right throughout."""


def epochs(spec_mix: str, key: dict[str, str], course: tuple[float, ...]) -> pa.Table:
    rows = []
    for index, (step, top1) in enumerate(zip(STEPS, course, strict=True)):
        common = {**key, "eval_index": index, "step": step, "epoch": step / 100}
        clean = None if spec_mix != "none" else top1
        rows.append({**common, "split": "train", "top1": clean, "loss_nats": 2 - top1, "train_s": 10.0, "lr": 0.1})
        rows.append({**common, "split": "train_200", "top1": 0.4, "loss_nats": 1.0, "evaluate_s": 1.5})
        rows.append({**common, "split": "test", "top1": top1, "loss_nats": 3 - top1, "evaluate_s": 1.5})
    return pa.Table.from_pylist(rows, schema=schemas.EPOCHS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Three rows evaluated every 100 steps on `train_200` and `test`; one never ran with its second seed."""
    storage = Storage(str(tmp_path_factory.mktemp("results")))
    specs = design(3, 2, datasets=("red",))
    for label, runs in specs.items():
        for spec in runs:
            if (course := COURSES[label].get(spec.seed)) is None:
                continue
            tables = tables_of(spec, images=40, classes=5)
            key = {"run_id": spec.run_id, "attempt_id": "a1"}
            write_run(storage, spec, {**tables, "epochs": epochs(spec.augment.mix, key, course)})
    write_manifest_of(storage, specs)
    return storage


def call(store: Storage, out: Path, *arguments: str) -> int:
    return curves.main(["--results", store.uri, "--out", str(out), *arguments])


def numbers(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_split_and_quantity_is_drawn_with_seeds_as_a_band(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(store, tmp_path, "--y", "top1,loss_nats,lr") == 0
    said = capsys.readouterr().out
    assert "  red-resnet-scratch-none: 2 runs, seeds 1, 2\n" in said
    assert "  red-resnet-scratch-cutmix: 1 run, seed 1\n" in said
    assert "  not drawn: red-resnet-scratch-cutmix seed 2 (not run)\n" in said
    found = numbers(tmp_path / "made" / "curves.csv")
    assert {(row["quantity"], row["split"]) for row in found} == {
        ("lr", "train"),
        *((y, split) for y in ("top1", "loss_nats") for split in ("test", "train", "train_200")),
    }
    line = [
        row for row in found if row["group"].endswith("none") and (row["quantity"], row["split"]) == ("top1", "test")
    ]
    assert [float(row["step"]) for row in line] == list(STEPS)
    assert [float(row["mean"]) for row in line] == pytest.approx([0.25, 0.4, 0.55, 0.45])
    assert [(float(row["low"]), float(row["high"])) for row in line][3] == (0.4, 0.5)
    facts = json.loads((tmp_path / "made" / "curves.json").read_text())
    assert "loss_nats: mean over images, of the mixed loss" in facts["caption"] and len(facts["runs"]) == 5


def test_merged_rows_are_the_mean_of_rows_and_are_said(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(store, tmp_path, "--group", "model", "--split", "test", "--x", "epoch", "--filter", "none|cutmix") == 0
    labels = "red-resnet-scratch-none, red-resnet-scratch-cutmix"
    assert f"2 rows, 3 runs ({labels}), seeds 1, 2" in capsys.readouterr().out
    found = numbers(tmp_path / "made" / "curves.csv")
    assert [float(row["epoch"]) for row in found] == [1, 2, 3, 4]
    assert float(found[3]["mean"]) == pytest.approx((0.45 + 0.3) / 2), "rows weigh the same, whatever their seeds"
    assert found[3]["low"] == "" and found[3]["num_runs"] == "3"
    assert (
        "Lines of several rows are their mean, without a band: small_resnet: 2 rows, 3 runs."
        in json.loads((tmp_path / "made" / "curves.json").read_text())["caption"]
    )


def test_wall_time_counts_an_evaluation_of_several_splits_once(store: Storage) -> None:
    results = load_results(store, "made")
    run = results.rows[0].done[0]
    commits = records.read_commits(store, [run.run_id]).values()
    found = read_courses(store, commits, quantities()["top1"], "wall_s")
    assert [point.x for point in found[run.run_id, "test"]] == pytest.approx([11.5, 23, 34.5, 46])
    assert [point.place for point in found[run.run_id, "train_200"]] == list(STEPS)


def test_steps_are_drawn_beside_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs without that table, of an older version or not asked for it, are left out of its curves."""
    storage = Storage(str(tmp_path / "results"))
    (old,), (new,) = design(2, 1).values()
    write_run(storage, old, tables_of(old, images=20, classes=5))
    rows: list[dict[str, Any]] = [
        {"run_id": new.run_id, "attempt_id": "a1", "step": step, "epoch": step / 10, "loss_nats": 1 / step,
         "grad_norm": 2.0 * step}
        for step in range(1, 31)
    ]  # fmt: skip
    steps = pa.Table.from_pylist(rows, schema=schemas.STEPS)
    write_run(storage, new, {**tables_of(new, images=20, classes=5), "steps": steps})
    write_manifest_of(storage, design(2, 1))
    assert call(storage, tmp_path, "--y", "grad_norm,steps.loss_nats") == 0
    said = capsys.readouterr().out
    assert "  nothing of it recorded: red-resnet-scratch-none\n" in said and "scratch-none: 1 run" not in said
    facts = json.loads((tmp_path / "made" / "curves.json").read_text())
    assert facts["runs"] == [new.run_id] and [*facts["inputs_sha256"]] == [f"steps/{new.run_id}--a1.parquet"]
    found = numbers(tmp_path / "made" / "curves.csv")
    assert {(row["group"], row["split"]) for row in found} == {("red-resnet-scratch-mixup", "train")}
    assert [float(row["mean"]) for row in found if row["quantity"] == "grad_norm"][-1] == 60


def test_another_table_by_step_is_found_without_a_word_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = [pa.field(name, pa.string()) for name in ("run_id", "attempt_id")] + [pa.field("step", pa.int32())]
    fields += [pa.field("loss_nats", pa.float64(), metadata={"unit": "nats"}), pa.field("sharpness", pa.float64())]
    monkeypatch.setitem(schemas.SCHEMAS, "probes", pa.schema(fields))
    found = quantities()
    assert found["sharpness"].table == "probes" and found["probes.loss_nats"].unit == "nats"


@pytest.fixture(scope="module")
def ablations(study_store: Callable[[str], Storage]) -> Storage:
    """Every step of 5,000 recorded, in 21 rows."""
    return study_store("ablations")


@pytest.mark.parametrize(
    ("pattern", "num"), [("resnet", 11), ("(resnet18|clr|aug)", 10), ("label|(resnet18|toy|vit)", 20)]
)
def test_thousands_of_steps_are_averaged_and_that_is_said(
    pattern: str, num: int, ablations: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The three pictures of the third study, of the loss of every step and of the accuracy on every split."""
    given = ["--y", "steps.loss_nats,top1", "--filter", pattern, "--grid", "ablations", "--format", "svg"]
    assert call(ablations, tmp_path, *given) == 0
    said = capsys.readouterr().out
    told = "steps.loss_nats: a point is the mean of 20 successive values"
    assert f"  {told}\n" in said and "top1: a point" not in said
    facts = json.loads((tmp_path / "ablations" / "curves.json").read_text())
    assert told in facts["caption"] and facts["averaged"] == {"steps.loss_nats": 20, "top1": 1}
    found = numbers(tmp_path / "ablations" / "curves.csv")
    assert len({row["group"] for row in found}) == num and {row["num_rows"] for row in found} == {"1"}
    assert {(row["quantity"], row["split"]) for row in found} == {
        ("steps.loss_nats", "train"),
        *(("top1", split) for split in ("train", "train_200", "test")),
    }
    run = load_results(ablations, "ablations").rows[0].done[0]
    commit = records.read_commits(ablations, [run.run_id])[run.run_id]
    losses = records.read_table(ablations, "steps", [commit], ["loss_nats"])["loss_nats"].to_numpy()
    line = [row for row in found if (row["group"], row["quantity"]) == ("resnet18", "steps.loss_nats")]
    assert [float(row["mean"]) for row in line] == pytest.approx(losses.reshape(250, 20).mean(axis=1))
    assert [float(row["step"]) for row in line[:2]] == [10.5, 30.5] and {row["averaged"] for row in line} == {"20"}


def test_how_many_are_averaged_can_be_asked(
    ablations: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--y", "steps.loss_nats", "--filter", "toy", "--grid", "ablations", "--format", "svg"]
    for average, points in (("1", 5000), ("390", 13)):
        assert call(ablations, tmp_path, *given, "--average", average) == 0
        found = numbers(tmp_path / "ablations" / "curves.csv")
        assert len(found) == points and {row["averaged"] for row in found} == {average}
    assert float(found[-1]["step"]) == np.mean(np.arange(4681, 5001)), "what is left over is the last point"
    assert "mean of 390 successive values" in capsys.readouterr().out
    assert call(ablations, tmp_path, *given, "--average", "0") == 2
    assert "--average 0: give 1 (every value) or more" in capsys.readouterr().err


def course(values: list[float]) -> list[Point]:
    return [Point(step=step, x=step, place=step, value=value) for step, value in enumerate(values, 1)]


@pytest.fixture
def uneven(store: Storage) -> tuple[list[curves.Group], dict[tuple[str, str], list[Point]]]:
    """A row of two seeds with eleven values, and a row with three."""
    long, _, short = curves.grouped(load_results(store, "made"), [])
    found = {(run.run_id, "train"): course([run.seed * 2.0**step for step in range(11)]) for run in long.runs}
    return [long, short], {**found, (short.runs[0].run_id, "train"): course([1.0, 5.0, 9.0])}


@pytest.mark.parametrize(
    ("most", "average", "width", "places"),
    [
        (4, None, 3, [2, 5, 8, 10.5]),
        (5, None, 3, [2, 5, 8, 10.5]),
        (6, None, 2, [1.5, 3.5, 5.5, 7.5, 9.5, 11]),
        (10, None, 2, [1.5, 3.5, 5.5, 7.5, 9.5, 11]),
        (11, None, 1, list(range(1, 12))),
        (1, 4, 4, [2.5, 6.5, 10]),
        (1, 10, 10, [5.5, 11]),
        (1, 5000, 11, [6]),
    ],
)
def test_points_are_as_many_as_may_be_and_no_more(
    most: int,
    average: int | None,
    width: int,
    places: list[float],
    uneven: tuple[list[curves.Group], dict[tuple[str, str], list[Point]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The longest line decides for all; a point is the mean of its own values, be they fewer."""
    groups, courses = uneven
    monkeypatch.setattr(curves, "MOST_POINTS", most)
    with style():
        page = curves.draw(
            groups, {"grad_norm": courses}, ["train"], x="step", name="curves", title="Grid", average=average
        )
    long, short = ([row for row in page.numbers if row["group"] == group.name] for group in groups)
    assert [row["step"] for row in long] == places and {row["averaged"] for row in page.numbers} == {width}
    values = [2.0**step for step in range(11)]
    means = [float(np.mean(values[start : start + width])) for start in range(0, 11, width)]
    assert [(row["low"], row["mean"], row["high"]) for row in long] == [
        (pytest.approx(mean), pytest.approx(1.5 * mean), pytest.approx(2 * mean)) for mean in means
    ], "the band is that of the seeds' means"
    assert short[0]["mean"] == pytest.approx(np.mean([1.0, 5.0, 9.0][:width]))
    told = f"grad_norm: a point is the mean of {width} successive values."
    assert (told in page.caption) == (width > 1)


def test_merged_rows_of_steps_are_said(ablations: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--y", "steps.top1", "--filter", "resnet18", "--grid", "ablations", "--group", "model", "--format", "svg"]
    assert call(ablations, tmp_path, *given) == 0
    assert "  resnet18: 10 rows, 10 runs (resnet18, resnet18-wonorm," in capsys.readouterr().out
    found = numbers(tmp_path / "ablations" / "curves.csv")
    assert {(row["num_rows"], row["low"], row["averaged"]) for row in found} == {("10", "", "20")}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--y", "tpo1"], '--y: "tpo1" is not one of num_images, lr, loss_nats, top1, .*; did you mean top1?'),
        (["--split", "train200"], '--split: "train200" is not one of test, train_200, train; did you mean train_200?'),
        (["--group", "modle"], '--group: "modle" is not one of dataset, model, pretrained, mix; did you mean model?'),
        (["--filter", "("], "--filter (: no regular expression: missing )"),
        (
            ["--filter", "swin"],
            "--filter swin: is found in none of the 3 rows, such as red-resnet-scratch-none dataset=red",
        ),
        (["--y", "top5"], "--y top5: none of these 5 runs recorded it"),
        (["--format", "gif"], '--format: "gif" is not one of svg, png, pdf'),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(
    arguments: list[str], message: str, store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(store, tmp_path, *arguments) == 2
    said = capsys.readouterr().err
    for part in message.split(".*"):
        assert part in said
    assert not list(tmp_path.iterdir())


def test_more_lines_than_can_be_told_apart_are_refused(store: Storage) -> None:
    results = load_results(store, "made")
    groups = curves.grouped(results, []) * 13
    with pytest.raises(curves.AnalysisError, match="39 lines cannot be told apart, at most 36 can; draw fewer with"):
        curves.looks(groups)
    assert len(set(map(str, curves.looks(groups[:36])))) == 36


def test_the_best_of_equal_values_is_the_first() -> None:
    course = [Point(step=step, x=step, place=step, value=value) for step, value in ((1, 0.2), (2, 0.9), (3, 0.9))]
    found = best.best_of(course, 1, lower_is_better=False)
    assert (found.point.step, found.num_tied, found.last.step) == (2, 2, 3)
    assert best.best_of(course, 1, lower_is_better=True).point.step == 1


def test_best_is_a_table_a_split_that_says_who_chose(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert best.main(["--results", store.uri, "--out", str(tmp_path)]) == 0
    test, train, train_200 = (
        (tmp_path / "made" / f"best-top1-{split}.md").read_text() for split in ("test", "train", "train_200")
    )
    assert "CHOSEN ON THE TEST SET" in test and "CHOSEN ON THE TEST SET" not in train_200 + train
    rows = numbers(tmp_path / "made" / "best-top1-test.csv")
    assert [row["row"].rsplit("-", 1)[1] for row in rows] == ["mixup", "none", "cutmix"], "the best first"
    assert float(rows[0]["best_top1"]) == pytest.approx(0.7) and float(rows[0]["last_top1"]) == pytest.approx(0.7)
    assert (rows[0]["step_by_seed"], rows[0]["tied_by_seed"]) == ("200 300", "2 2")
    assert (rows[1]["step_by_seed"], rows[1]["best_by_seed"]) == ("200 300", "0.5 0.6")
    assert numbers(tmp_path / "made" / "best-top1-train_200.csv")[0]["tied_by_seed"] == "4 4"
    assert "without this value: red-resnet-scratch-mixup, red-resnet-scratch-cutmix" in train
    assert "200 to 300" in capsys.readouterr().out
    assert best.main(["--results", store.uri, "--out", str(tmp_path), "--by", "loss_nats", "--split", "test"]) == 0
    assert float(numbers(tmp_path / "made" / "best-loss_nats-test.csv")[0]["best_loss_nats"]) == pytest.approx(2.3)
    assert best.main(["--results", store.uri, "--by", "lr"]) == 2
    assert '--by: "lr" is not one of loss_nats, top1, top5, top1_mixed' in capsys.readouterr().err
