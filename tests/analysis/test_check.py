"""A damaged store never gives a number: every damage is found by its rule, with run, column and row, and no table shows
anything of the file."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from synthetic import design, noisy, spec_of, tables_of, write_dims, write_grid, write_manifest_of, write_run

import analysis.check
import analysis.tables
from analysis.audit import Audit, audit_grid
from analysis.load import load_results
from trainable import records
from trainable.records import RecordError
from trainable.schemas import SCHEMA_VERSION
from trainable.storage import Storage

SPECS = design(rows=2, seeds=2, datasets=("red",))
SPEC = SPECS["red-resnet-scratch-none"][0]
IMAGES = 40


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """Two rows with two seeds on 40 images of 5 classes."""
    storage = Storage(str(tmp_path_factory.mktemp("clean")))
    write_grid(storage, SPECS, images=IMAGES, classes=5)
    return storage


@pytest.fixture
def store(clean: Storage, tmp_path: Path) -> Storage:
    assert clean.local_root is not None
    shutil.copytree(clean.local_root, tmp_path / "store")
    return Storage(str(tmp_path / "store"))


def commit_of(store: Storage) -> records.Commit:
    return records.read_commits(store)[SPEC.run_id]


def rewrite(store: Storage, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Commits the first run again with a table changed: hashes and sizes are as they should be."""
    commit = commit_of(store)
    tables = {file.table: records.read_table(store, file.table, [commit]) for file in commit.files}
    tables[name] = change(tables[name])
    for file in commit.files:
        store.delete(file.path)
    store.delete(f"commits/{commit.run_id}--{commit.attempt_id}.json")
    key = {"run_id": commit.run_id, "attempt_id": commit.attempt_id, "dataset": commit.dataset}
    records.commit_run(store, tables=tables, **key)


def first_wrong(predictions: pa.Table) -> int:
    return predictions["correct"].to_pylist().index(False)


def cell(column: str, row: int | None, value: Any) -> Callable[[pa.Table], pa.Table]:
    """One value of a table set to another."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        place = first_wrong(table) if row is None else row
        values[place] = value(values[place]) if callable(value) else value
        field = table.schema.field(column)
        return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def everywhere(column: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(column)
        values = pa.array([value] * len(table), field.type)
        return table.set_column(table.schema.get_field_index(column), field, values)

    return change


def faults(store: Storage) -> Audit:
    return audit_grid(store, "made")


def test_a_clean_store_passes_and_shows_its_grid(
    store: Storage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert analysis.check.main(["--results", store.uri]) == 0
    shown = capsys.readouterr().out
    assert "FAIL" not in shown and shown.count("PASS") == 17 and "4 runs, 0 faults" in shown
    assert re.search(r"red-resnet-scratch-none +done +done +2 of 2 +2 ", shown)
    assert re.search(r"---- +attempts .*\(nothing to ask\)", shown)
    assert analysis.tables.main(["--results", store.uri, "--out", str(tmp_path)]) == 0


WRONG = None
"""The first image that the run got wrong."""

DAMAGES: dict[str, tuple[str, Callable[[pa.Table], pa.Table], str, str]] = {
    "a row is missing": ("predictions", lambda table: table.slice(1), "rows", "column sample_id of final: 39 rows"),
    "a sample twice": ("predictions", cell("sample_id", 5, 4), "samples", "column sample_id of final, row 5: 4 stands"),
    "rows in another order": (
        "predictions",
        lambda table: table.take(np.r_[np.arange(39, -1, -1), np.arange(40, 80)]),
        "samples",
        "column sample_id of final, row 1: 38 stands twice or out of order (so in 39 rows)",
    ),
    "an image of no data": ("predictions", cell("sample_id", 39, 99), "samples", "row 39: 99 is no test image"),
    "another label": ("predictions", cell("label", 7, 0), "labels", "column label of final, row 7: 0 is not the label"),
    "a class of no run": ("predictions", cell("pred", 3, 9), "labels", "column pred of final, row 3: 9 is no class"),
    "another data set": ("predictions", everywhere("dataset", "blue"), "dataset", "column dataset of final: says blue"),
    "another run's rows": ("predictions", everywhere("run_id", "f" * 16), "dataset", "column run_id of final: says ff"),
    "right though wrong": (
        "predictions",
        cell("correct", WRONG, True),
        "correct",
        "column correct of final, row {wrong}",
    ),
    "first though wrong": ("predictions", cell("label_rank", WRONG, 1), "rank", "of final, row {wrong}: 1 though"),
    "a rank of no class": ("predictions", cell("label_rank", WRONG, 6), "rank", "row {wrong}: 6 is not 1..5"),
    "NaN": ("predictions", cell("p_label", 11, float("nan")), "probability", "column p_label of final, row 11: nan"),
    "infinity": ("predictions", cell("nll_nats", 11, float("inf")), "nll", "column nll_nats of final, row 11: inf"),
    "percent": ("predictions", cell("p_max", 2, 93.0), "probability", "column p_max of final, row 2: 93.0 is no"),
    "above the highest": (
        "predictions",
        cell("p_label", WRONG, 0.999),
        "probability",
        "column p_label of final, row {wrong}: 0.99",
    ),
    "another logarithm": ("predictions", cell("nll_nats", 4, lambda nll: nll + 0.01), "nll", "row 4"),
    "no such number": ("trials", cell("final_f1_macro", 0, 0.5), "recomputed", "column f1_macro of final: recomputed"),
    "a gap in the epochs": (
        "epochs",
        cell("eval_index", 2, 7),
        "epochs",
        "column eval_index, row 2: train evaluation 7",
    ),
    "an epoch twice": ("epochs", cell("step", 2, 10), "epochs", "column step, row 2: train step 10"),
    "train accuracy in percent": ("epochs", cell("top1", 0, 52.83), "fractions", "column top1, row 0: train 52.83"),
    "a loss that is none": ("epochs", cell("loss_nats", 3, float("nan")), "fractions", "column loss_nats, row 3: test"),
    "another configuration": ("trials", cell("lr", 0, 0.5), "identity", "column lr: 0.5, its spec says 0.001"),
    "another spec": (
        "provenance",
        cell("spec_json", 0, lambda spec: spec.replace('"lr":0.001', '"lr":0.002')),
        "identity",
        f"the run is {SPEC.run_id}",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_every_rule_finds_its_damage(
    name: str, store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, change, rule, message = DAMAGES[name]
    wrong = first_wrong(records.read_table(store, "predictions", [commit_of(store)]))
    rewrite(store, table, change)
    audit = faults(store)
    assert {fault.run_id for fault in audit.faults} == {SPEC.run_id}
    (fault, *_) = [fault for fault in audit.faults if fault.rule == rule]
    assert message.replace("{wrong}", str(wrong)) in fault.what
    path = commit_of(store).file("trials" if rule == "identity" else "predictions" if "final" in fault.what else table)
    assert path.path in fault.what and (fault.label, fault.seed) == ("red-resnet-scratch-none", 1)
    assert analysis.check.main(["--results", store.uri]) == 1
    assert re.search(rf"FAIL +{rule} ", capsys.readouterr().out)
    if table == "predictions" or rule == "recomputed":
        assert analysis.tables.main(["--results", store.uri, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr()
        assert commit_of(store).file("predictions").path in said.err and said.out == "", "no number of it"
        assert not (tmp_path / "out").exists()


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("table", ["trials", "epochs", "predictions", "logits", "provenance"])
@pytest.mark.parametrize("harm", ["flipped", "torn", "gone"])
def test_files_that_are_not_what_was_committed(
    table: str, harm: str, store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = commit_of(store).file(table).path
    content = store.read(path)
    store.delete(path)
    if harm != "gone":
        store.put(path, flip(content) if harm == "flipped" else content[: len(content) // 3])
    (fault,) = faults(store).faults
    assert fault.rule == "files" and path in fault.what and fault.label == "red-resnet-scratch-none"
    code = analysis.tables.main(["--results", store.uri, "--out", str(tmp_path)])
    said = capsys.readouterr()
    if harm == "flipped":
        assert code == 2 and f"{path}: its content is not what was committed" in said.err
    else:
        assert code == 0 and f"{path} is" in said.out and "it does not count: run the grid again" in said.out


def test_a_newer_versions_files_are_named_and_not_read(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    commit = commit_of(store)
    file = commit.file("predictions")
    table = records.read_table(store, "predictions", [commit])
    newer = table.replace_schema_metadata({"schema_version": str(SCHEMA_VERSION + 1)})
    content = records.to_parquet(newer)
    record = json.loads(store.read(f"commits/{commit.run_id}--{commit.attempt_id}.json"))
    for one in record["files"]:
        if one["table"] == "predictions":
            one.update(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    store.put(file.path, content)
    store.put(f"commits/{commit.run_id}--{commit.attempt_id}.json", json.dumps(record).encode())
    (fault,) = faults(store).faults
    assert fault.rule == "files" and f"{file.path}: written with schema version {SCHEMA_VERSION + 1}" in fault.what
    told = rf"predictions/.*schema version {SCHEMA_VERSION + 1}, this version reads up to {SCHEMA_VERSION}"
    with pytest.raises(RecordError, match=told):
        load_results(store, "made")
    record["schema_version"] = SCHEMA_VERSION + 1
    store.put(f"commits/{commit.run_id}--{commit.attempt_id}.json", json.dumps(record).encode())
    for main in (analysis.check.main, analysis.tables.main):
        assert main(["--results", store.uri]) == 2
        assert f"commits/{commit.run_id}--{commit.attempt_id}.json: written with" in capsys.readouterr().err


@pytest.mark.parametrize("table", ["trials", "epochs", "logits", "provenance"])
def test_another_runs_file_under_its_name_is_refused(
    table: str, store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a commit that says it is so."""
    other = records.read_commits(store)[SPECS["red-resnet-scratch-none"][1].run_id]
    theirs = records.read_table(store, table, [other])
    rewrite(store, table, lambda _: theirs)
    path = commit_of(store).file(table).path
    (fault,) = faults(store).faults
    assert path in fault.what and ("is not of run" in fault.what or "is not the one row of run" in fault.what)
    assert analysis.tables.main(["--results", store.uri, "--out", str(tmp_path / "out")]) == 2
    assert path in capsys.readouterr().err


def test_curves_specs_and_logits_that_break_a_rule_make_no_table(
    store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harms: tuple[tuple[str, Callable[[pa.Table], pa.Table], str], ...] = (
        ("trials", cell("final_top1", 0, None), "column final_top1 has no value"),
        ("trials", cell("classes", 0, None), "column classes has no value"),
        ("epochs", cell("top1", 0, 52.83), "column top1, row 0: train 52.83 is no fraction"),
        ("epochs", cell("eval_index", 2, 0), "column eval_index, row 2: train evaluation 0 where 1 belongs"),
        ("provenance", cell("spec_json", 0, None), "column spec_json: hashes to"),
        ("provenance", cell("spec_json", 0, "["), "column spec_json: hashes to"),
        (
            "logits",
            lambda table: table.set_column(5, table.schema.field(5), table["logits"].take(np.arange(80)[::-1])),
            "",
        ),
    )
    for number, (table, change, message) in enumerate(harms):
        copy = Storage(str(tmp_path / f"{table} {number}"))
        shutil.copytree(store.uri, copy.uri)
        rewrite(copy, table, change)
        assert analysis.tables.main(["--results", copy.uri, "--out", str(tmp_path / "out")]) == 2
        said = capsys.readouterr().err
        assert commit_of(copy).file(table).path in said and message in said
    assert "the predicted class has not the highest logit" in said and not (tmp_path / "out").exists()


def test_one_run_counted_twice_is_refused(store: Storage) -> None:
    """The predictions of seed 1 filed under seed 3, with everything else in order."""
    label = "red-resnet-scratch-none"
    copied = spec_of("red", "small_resnet", "none", False, 3)
    logits = noisy()
    write_run(
        store,
        copied,
        tables_of(copied, images=IMAGES, classes=5, logits=lambda _, labels: logits(SPEC, labels)),
    )
    write_manifest_of(store, {**SPECS, label: [*SPECS[label], copied]}, number=2)
    (fault,) = faults(store).faults
    assert fault.rule == "seeds" and f"the very predictions of seed 1 ({SPEC.run_id})" in fault.what
    with pytest.raises(
        RecordError, match=rf"{copied.run_id}.*of seed 1 \({SPEC.run_id}\) under seed 3 .* one run counted"
    ):
        load_results(store, "made")


def test_seeds_judged_on_other_images_are_refused(store: Storage) -> None:
    label = "red-resnet-scratch-none"
    other = spec_of("red", "small_resnet", "none", False, 3)
    write_run(store, other, tables_of(other, images=IMAGES - 5, classes=5))
    store.delete(f"dims/samples/{store.names('dims/samples')[0]}")
    write_manifest_of(store, {**SPECS, label: [*SPECS[label], other]}, number=2)
    with pytest.raises(
        RecordError, match="other test images or labels than those of seed 1 of red-resnet-scratch-none"
    ):
        load_results(store, "made")


def test_attempts_that_committed_the_same_run_must_agree(store: Storage) -> None:
    write_run(store, SPEC, tables_of(SPEC, images=IMAGES, classes=5, attempt_id="a2"), "a2")
    audit = faults(store)
    assert audit.faults == () and audit.asked["attempts"] == 1
    other = tables_of(SPEC, images=IMAGES, classes=5, attempt_id="a3", logits=noisy(0.9))
    write_run(store, SPEC, other, "a3")
    found = faults(store).faults
    assert [fault.rule for fault in found] == ["attempts", "attempts"]
    assert "attempts a2 and a3 differ in final_top1" in found[1].what


def test_what_the_store_does_not_know_is_said(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    store.delete(f"dims/samples/{store.names('dims/samples')[0]}")
    assert analysis.check.main(["--results", store.uri]) == 0
    assert "not asked of red: labels and samples: the store does not hold its test images" in capsys.readouterr().out


def test_dimension_tables_of_other_data_are_refused(store: Storage) -> None:
    (name,) = store.names("dims/samples")
    write_dims(store, "blue", IMAGES, 5)
    other = store.read(f"dims/samples/{next(one for one in store.names('dims/samples') if one != name)}")
    store.put(f"dims/samples/{name}", other)
    with pytest.raises(RecordError, match=rf"dims/samples/{name}: of other data than its name says"):
        load_results(store, "made")
    store.put(f"dims/samples/{name}", other[:100])
    with pytest.raises(RecordError, match=rf"dims/samples/{name}: cannot be read as the table samples"):
        load_results(store, "made")


def test_attempts_failures_and_broken_curves_stand_in_the_grid(
    store: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that peaked at the beginning, one that failed twice, and one that nobody started."""
    label = "red-resnet-scratch-mixup"
    collapsed, failed, missing = (spec_of("red", "small_resnet", "mixup", False, seed) for seed in (3, 4, 5))
    curve = [0.5, 0.6, 0.3, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1]
    write_run(store, collapsed, tables_of(collapsed, images=IMAGES, classes=5, curve=curve))
    for number in (1, 2):
        records.start_attempt(store, failed.run_id, f"f{number}", {"number": number})
        records.end_attempt(store, failed.run_id, f"f{number}", "failed", "out of memory")
    write_manifest_of(store, {**SPECS, label: [*SPECS[label], collapsed, failed, missing]}, number=2)
    assert analysis.check.main(["--results", store.uri]) == 0
    shown = capsys.readouterr().out
    assert "grid made (full): 5 done, 1 failed, 1 not run" in shown
    assert re.search(rf"{label} +done +done +done † +FAILED +- +3 of 5 +5 \(2 failed\) +\[1\] \[2\]", shown)
    assert "[1] health: collapsed (seed 3)" in shown and "[2] FAILED: out of memory (seed 4)" in shown
    assert "† its learning curve fails a health rule" in shown


def test_nothing_to_ask_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analysis.check.main(["--results", str(tmp_path)]) == 2
    assert "holds no grid; run one" in capsys.readouterr().err
