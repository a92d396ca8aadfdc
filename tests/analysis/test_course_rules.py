"""What a run recorded along its training is what its spec asked for: every damage is found, with column and row."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from study_store import load_study, write_study_store
from synthetic import write_manifest_of
from toy import VIT, exec_spec, run_spec

from analysis import curves
from analysis.audit import audit_grid
from analysis.course_rules import scalar_faults, scalars_in, split_faults, step_faults
from analysis.load import load_results
from analysis.rules import epoch_faults
from analysis.tables import Source, build
from datasets.store import Dataset
from trainable import records
from trainable.attempt import Attempt
from trainable.storage import Storage

LABEL = "vitn-12x256-8x8-lt"
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """One row of `ablations`: 5,000 steps, each recorded."""
    storage = Storage(str(tmp_path_factory.mktemp("clean")))
    write_study_store(
        storage, "ablations", without=[one.label for one in load_study("ablations").runs if one.label != LABEL]
    )
    return storage


@pytest.fixture
def store(clean: Storage, tmp_path: Path) -> Storage:
    assert clean.local_root is not None
    shutil.copytree(clean.local_root, tmp_path / "store")
    return Storage(str(tmp_path / "store"))


def commit_again(store: Storage, change: Callable[[dict[str, pa.Table]], None]) -> None:
    """The run with its tables changed: hashes and sizes are as they should be."""
    (commit,) = records.read_commits(store).values()
    tables = {file.table: records.read_table(store, file.table, [commit]) for file in commit.files}
    change(tables)
    for path in (*(file.path for file in commit.files), f"commits/{commit.run_id}--{commit.attempt_id}.json"):
        store.delete(path)
    key = {"run_id": commit.run_id, "attempt_id": commit.attempt_id, "dataset": commit.dataset}
    records.commit_run(store, tables=tables, **key)


def cell(table: str, column: str, row: int, value: Any) -> Callable[[dict[str, pa.Table]], None]:
    def change(tables: dict[str, pa.Table]) -> None:
        own = tables[table]
        values = own[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        field = own.schema.field(column)
        tables[table] = own.set_column(own.schema.get_field_index(column), field, pa.array(values, field.type))

    return change


def without_last_step(tables: dict[str, pa.Table]) -> None:
    tables["steps"] = tables["steps"].slice(0, 4999)


def without_split(tables: dict[str, pa.Table]) -> None:
    kept = [split != "train_200" for split in tables["epochs"]["split"].to_pylist()]
    tables["epochs"] = tables["epochs"].filter(pa.array(kept))


DAMAGES: dict[str, tuple[Callable[[dict[str, pa.Table]], Any], str, str]] = {
    "no table": (lambda tables: tables.pop("steps"), "steps", "column step: the table is missing, and the spec asks"),
    "a step too few": (without_last_step, "steps", "column step: 4,999 rows, the run has 5,000 steps"),
    "a step twice": (cell("steps", "step", 40, 40), "steps", "column step, row 40: 40 is not one above the row before"),
    "a step of no number": (cell("steps", "loss_nats", 7, None), "steps", "column loss_nats, row 7: nan is no finite"),
    "an infinite norm": (cell("steps", "grad_norm", 9, float("inf")), "steps", "column grad_norm, row 9: inf is no"),
    "percent": (cell("steps", "top1", 3, 45.0), "steps", "column top1, row 3: 45.0 is no fraction"),
    "time turned back": (cell("steps", "epoch", 12, 0.001), "steps", "column epoch, row 12: 0.001 is not above"),
    "another rate": (cell("steps", "lr", 99, 1.0), "steps", "column lr, row 99: 1.0, epochs says"),
    "another training": (
        cell("epochs", "loss_nats", 3, 0.001),
        "steps",
        "in steps 101 to 200, epochs says 0.001",
    ),
    "a split too few": (
        without_split,
        "splits",
        "column split: has test, train, its spec asks for test, train, train_200",
    ),
    "other images": (cell("epochs", "num_images", 1, 399), "splits", "column num_images, row 1: 399 of split test"),
    "no number": (
        cell("trials", "final_scalars_json", 0, '{"temperature.0": NaN}'),
        "scalars",
        "column final_scalars_json: temperature.0: nan is no finite number",
    ),
    "no object": (cell("trials", "final_scalars_json", 0, "[1"), "scalars", "final_scalars_json: is no JSON object"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_found_by_its_rule(damage: str, store: Storage) -> None:
    change, rule, message = DAMAGES[damage]
    assert not audit_grid(store, "ablations").faults
    commit_again(store, change)
    faults = audit_grid(store, "ablations").faults
    assert [fault.rule for fault in faults] == [rule], [str(fault) for fault in faults]
    assert message in str(faults[0]) and LABEL in str(faults[0])


def test_a_damaged_file_of_steps_is_a_fault_like_any_other(store: Storage) -> None:
    (commit,) = records.read_commits(store).values()
    path = commit.file("steps").path
    content = store.read(path)
    store.put(path, content[:-9] + b"x" + content[-8:])
    (fault,) = audit_grid(store, "ablations").faults
    assert fault.rule == "files" and path in str(fault) and "its content is not what was committed" in str(fault)


def test_attempts_must_agree_in_every_step(store: Storage) -> None:
    """Two attempts at one run of which one is of an older version agree in what both know."""
    (commit,) = records.read_commits(store).values()
    tables = {file.table: records.read_table(store, file.table, [commit]) for file in commit.files}

    def attempt(name: str) -> None:
        named = {
            key: table.set_column(
                table.schema.get_field_index("attempt_id"),
                table.schema.field("attempt_id"),
                pa.array([name] * len(table)),
            )
            for key, table in tables.items()
        }
        records.commit_run(store, run_id=commit.run_id, attempt_id=name, dataset=commit.dataset, tables=named)

    attempt("a2")
    audit = audit_grid(store, "ablations")
    assert not audit.faults and audit.asked["attempts"] == 1
    cell("steps", "grad_norm", 17, 9.0)(tables)
    attempt("a3")
    audit = audit_grid(store, "ablations")
    assert {fault.rule for fault in audit.faults} == {"attempts"}
    assert "differ in steps grad_norm" in str(audit.faults[0])


SPEC = {"evaluate": {"record_steps": True, "train_first": 5}}
TRIAL = {"steps": 2, "num_test": 10, "num_val": 0, "final_scalars_json": None}


def rows(*splits: str, steps: tuple[int, ...] = (2,)) -> list[dict[str, Any]]:
    images = {"test": 10, "train_5": 5}
    one = {"top1": 0.5, "top5": 0.5, "top1_mixed": None, "mix_lam_mean": None, "loss_nats": 1.0, "lr": 0.1}
    return [
        {"split": split, "eval_index": index, "step": step, "num_images": images.get(split, 100), **one}
        for index, step in enumerate(steps)
        for split in splits
    ]


def test_a_table_that_nobody_asked_for_is_a_fault() -> None:
    steps = {"step": np.array([1, 2])}
    assert "asks for no such table" in step_faults(steps, rows("train"), {"evaluate": {}}, TRIAL)[0].what
    assert not step_faults(None, rows("train"), {"evaluate": {}}, TRIAL)
    assert not step_faults(None, rows("train"), {"evaluate": 7}, TRIAL), "a spec that is none has its own rule"


def test_only_a_run_that_was_not_trained_has_no_training_rows() -> None:
    assert not split_faults(rows("test", "train", "train_5"), SPEC, TRIAL)
    assert split_faults(rows("test", "train_5"), SPEC, TRIAL)[0].what.endswith("asks for test, train, train_5")
    assert not split_faults(rows("test", "train_5", steps=(0,)), SPEC, {**TRIAL, "steps": 0})
    assert split_faults(rows("test", "train", "train_5"), SPEC, {**TRIAL, "num_val": 3})


def test_first_training_images_are_as_many_as_were_asked_for() -> None:
    fewer = [{**row, "num_images": 4} if row["split"] == "train_5" else row for row in rows("test", "train", "train_5")]
    (fault,) = split_faults(fewer, SPEC, TRIAL)
    assert (fault.column, fault.row, fault.what) == ("num_images", 2, "4 of split train_5, which has 5")
    held = [
        {**row, "num_images": 9} if row["split"] == "val" else row for row in rows("test", "train", "train_5", "val")
    ]
    (fault,) = split_faults(held, SPEC, {**TRIAL, "num_val": 3})
    assert fault.what == "9 of split val, which has 3"


STEPS = {
    "step": [1, 2, 3, 4],
    "epoch": [0.1, 0.2, 0.3, 0.4],
    "lr": [0.4, 0.3, 0.2, 0.1],
    "loss_nats": [2.0, 1.5, 1.2, 1.0],
    "loss_total_nats": [2.0, 1.5, 1.2, 1.0],
    "grad_norm": [1.0, 1.0, 1.0, 0.0],
    "top1": [0.0, 0.5, 0.5, 1.0],
}


@pytest.mark.parametrize(
    ("column", "values", "row", "message"),
    [
        ("epoch", [0.1, 0.2, 0.2, 0.4], 2, "0.2 is not above the row before"),
        ("epoch", [0.0, 0.2, 0.3, 0.4], 0, "0.0 is not above the row before"),
        ("epoch", [0.1, math.nan, 0.3, 0.4], 1, "nan is not above the row before"),
        ("epoch", [0.1, 0.2, 0.3, math.inf], 3, "inf is not above the row before"),
        ("epoch", [0.1, 0.2, math.inf, math.inf], 2, "inf is not above the row before (so in 2 rows)"),
        ("lr", [0.4, -0.3, 0.2, 0.1], 1, "-0.3 is no finite number from 0 on"),
        ("lr", [0.4, 0.3, 0.2, 0.10001], 3, "0.10001, epochs says 0.1 at this step"),
        ("loss_nats", [-2.0, 1.5, 1.2, 1.0], 0, "-2.0 is no finite number from 0 on"),
        ("loss_total_nats", [2.0, 1.5, 1.2, math.nan], 3, "nan is no finite number from 0 on"),
        ("loss_total_nats", [2.0, 1.5, 0.9, 0.8], 2, "0.799999 to 0.900001 in steps 3 to 4, epochs says 1.1"),
        ("loss_total_nats", [2.0, 1.5, 1.3, 1.2], 2, "1.2 to 1.3 in steps 3 to 4, epochs says 1.1"),
        ("grad_norm", [1.0, -1.0, -1.0, 0.0], 1, "-1.0 is no finite number from 0 on (so in 2 rows)"),
        ("top1", [-0.1, 0.5, 0.5, 1.0], 0, "-0.1 is no fraction"),
    ],
)
def test_every_column_of_steps_has_its_bounds(column: str, values: list[float], row: int, message: str) -> None:
    train = [
        {"split": "train", "step": step, "lr": rate, "loss_nats": loss}
        for step, rate, loss in ((2, 0.3, 1.7), (4, 0.1, 1.1))
    ]
    spec, trial = {"evaluate": {"record_steps": True}}, {"steps": 4}
    own = {name: np.array(numbers) for name, numbers in STEPS.items()}
    assert not step_faults(own, train, spec, trial)
    (fault,) = step_faults({**own, column: np.array(values)}, train, spec, trial)
    assert (fault.rule, fault.column, fault.row) == ("steps", column, row)
    assert fault.what.startswith(message)


@pytest.mark.parametrize("steps", [(2, 2), (4, 2), (2, 5), (0, 4)])
def test_learning_curves_are_of_steps_that_there_are(steps: tuple[int, ...]) -> None:
    train = [{"split": "train", "step": step, "lr": None, "loss_nats": None} for step in steps]
    own = {name: np.array(numbers) for name, numbers in STEPS.items()}
    (fault,) = step_faults(own, train, {"evaluate": {"record_steps": True}}, {"steps": 4})
    assert fault.what == f"epochs has an evaluation at step {0 if 0 in steps else steps[1]}, which it has not"


def test_step_0_is_of_a_run_that_goes_no_further() -> None:
    assert not epoch_faults(rows("test", "train_5", steps=(0,)))
    for steps in ((0, 0), (0, 2), (-1,)):
        (fault,) = epoch_faults(rows("test", steps=steps))
        assert fault.rule == "epochs" and fault.column == "step", steps


def test_numbers_of_the_model_itself() -> None:
    assert not scalar_faults(TRIAL), "an older version recorded none"
    assert scalars_in(json.dumps({"temperature.0": 1})) == {"temperature.0": 1.0}
    beyond = '{"a": 1' + "0" * 400 + "}"
    for bad in ("[]", "{", '{"a": "1"}', '{"a": true}', '{"a": Infinity}', '{"a": null}', beyond):
        with pytest.raises(ValueError, match=r"is no (JSON object|finite number)"):
            scalars_in(bad)


def test_what_real_runs_record_breaks_no_rule(storage: Storage, data_path: Path, toy: Dataset, tmp_path: Path) -> None:
    """Mixed images, an unequal last batch, surplus outputs, auxiliary heads; and a row that is only evaluated."""
    vit = {**VIT, "depth": 3, "aux_depths": [1], "temperature": "log"}
    fields: dict[str, Any] = {"data.content_sha256": toy.manifest.content_sha256}
    fields |= {"model.name": "vit", "model.vit": vit, "model.num_outputs": 10, "optim.label_smoothing": 0.1}
    watched = {"evaluate.record_steps": True, "evaluate.train_first": 7, "optim.clip_norm": 0.5}
    by_steps = {"budget.epochs": None, "budget.steps": 11, "evaluate.every_epochs": None, "evaluate.every_steps": 3}
    mixed = {"augment.mix": "mixup", "augment.mix_alpha": 0.4}
    trained = run_spec({**fields, **watched, **by_steps, **mixed})
    parent = {"init.kind": "parent", "init.source": trained.run_id, "init.checkpoint": "last", "budget.epochs": 0}
    specs = {
        "trained": trained,
        "clean": run_spec({**fields, **watched, "evaluate.train_augmented": True, "data.val_fraction": 0.2}),
        "evaluated": run_spec({**fields, **parent, "evaluate.train_first": 7}),
    }
    for spec in specs.values():
        attempt = Attempt(spec, exec_spec(data_path), storage)
        while not attempt.done:
            attempt.advance()
    write_manifest_of(storage, {label: [spec] for label, spec in specs.items()})
    audit = audit_grid(storage, "made")
    assert not audit.faults and audit.num_done == 3
    assert (audit.asked["splits"], audit.asked["scalars"], audit.asked["steps"]) == (3, 3, 2)
    source = Source(storage, load_results(storage, "made"))
    looks, scalars = build(source, "T16"), build(source, "T17")
    assert {str(row["run"]): row["split"] for row in looks.raw} == dict.fromkeys(specs, "train_7")
    assert {str(row["run"]): row["num_parts"] for row in scalars.raw} == dict.fromkeys(specs, 3)
    given = ["--results", storage.uri, "--out", str(tmp_path), "--format", "svg"]
    assert curves.main([*given, "--y", "steps.loss_nats,loss_total_nats,grad_norm"]) == 0
