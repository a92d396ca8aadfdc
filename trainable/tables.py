"""A finished run as the tables of the results store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.store import Dataset
from datasets.subset import RunRows
from trainable import metrics, schemas
from trainable.loop import STEP_COLUMNS, Position
from trainable.spec import EvalName, RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptInfo:
    """The attempt that finished the run."""

    attempt_id: str
    number: int
    """1 for the first attempt at this run."""
    history: Sequence[str]
    """Ids of the attempts before, oldest first."""
    started_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """All that is recorded of a run."""

    spec: RunSpec
    stores: Dataset
    rows: RunRows
    position: Position
    logits: dict[EvalName, NDArray[np.float32]]
    """Of the test split, [N, C] float32, by evaluation name."""
    num_parameters: int
    steps: NDArray[np.float64] | None
    """[steps, len(STEP_COLUMNS)], what was recorded of every step; None where nothing was."""
    rates: Sequence[float]
    """The learning rate of every recorded step."""
    steps_per_epoch: int
    scalars: dict[str, float]
    """Numbers of the model itself after the last step, by name."""
    weights_report: dict[str, Any]
    numerics: dict[str, Any]
    numerics_changed: bool
    resumed_under: Sequence[dict[str, Any]]
    host: dict[str, Any]
    peak_memory_bytes: int


def build_tables(result: RunResult, attempt: AttemptInfo) -> dict[str, pa.Table]:
    """The tables of `schemas.SCHEMAS`, by name; `steps` only where steps were recorded."""
    key = {"run_id": result.spec.run_id, "attempt_id": attempt.attempt_id}
    ended_at = max(datetime.now(UTC), attempt.started_at)  # a clock may have been set back
    arrays = {
        name: metrics.predictions(logits, result.rows.test.labels, result.rows.classes)
        for name, logits in result.logits.items()
    }
    tables = {
        "trials": _rows("trials", [{**key, **_trial(result, attempt, arrays), "ended_at": ended_at}]),
        "epochs": _rows("epochs", [{**key, **_parsed(row)} for row in result.position.rows]),
        "predictions": pa.concat_tables([_predictions(result, key, name, found) for name, found in arrays.items()]),
        "logits": pa.concat_tables([_logits(result, key, name) for name in result.logits]),
        "provenance": _rows("provenance", [{**key, **_provenance(result, attempt), "ended_at": ended_at}]),
    }
    if result.steps is not None:
        tables["steps"] = _steps(result, key, result.steps)
    return tables


def _steps(result: RunResult, key: dict[str, str], recorded: NDArray[np.float64]) -> pa.Table:
    number = np.arange(1, len(recorded) + 1, dtype=np.int32)
    columns: dict[str, Any] = {name: [value] * len(recorded) for name, value in key.items()}
    columns |= {"step": number, "epoch": number / result.steps_per_epoch, "lr": np.array(result.rates)}
    columns |= dict(zip(STEP_COLUMNS, recorded.T, strict=True))
    return pa.table({field.name: columns[field.name] for field in schemas.STEPS}).cast(schemas.STEPS)


def _rows(table: str, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=schemas.SCHEMAS[table])


def _parsed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "ended_at": datetime.fromisoformat(row["ended_at"])}


def _trial(result: RunResult, attempt: AttemptInfo, arrays: dict[EvalName, metrics.Arrays]) -> dict[str, Any]:
    spec, position = result.spec, result.position
    manifest = result.stores.manifest
    last = position.rows[-1]
    train_rows = [row for row in position.rows if row["split"] == "train"]
    train_s = sum(row["train_s"] for row in train_rows)
    trial: dict[str, Any] = {
        **schemas.spec_columns(spec.model_dump(mode="json")),
        "dataset_published": manifest.published,
        "classes": result.rows.classes.tolist(),
        "num_classes": len(result.rows.classes),
        "num_train": len(result.rows.train.index),
        "num_val": len(result.rows.val.index) if result.rows.val else 0,
        "num_test": len(result.rows.test.index),
        "num_parameters": result.num_parameters,
        "init_stand_in": result.weights_report.get("stand_in"),
        "final_scalars_json": json.dumps(result.scalars, sort_keys=True),
        "steps": position.step,
        "epochs": last["epoch"],
        "train_s": train_s,
        "evaluate_s": position.evaluate_s,
        "data_wait_s": sum(row["data_wait_s"] for row in train_rows),
        "train_images_per_s": sum(row["num_images"] for row in train_rows) / train_s if train_s else None,
        "peak_memory_bytes": result.peak_memory_bytes,
        "attempt_number": attempt.number,
        "attempt_numerics_changed": result.numerics_changed,
        "attempt_resumed_under_json": json.dumps(list(result.resumed_under), sort_keys=True),
    }
    for name, found in arrays.items():
        at = {"eval_index": last["eval_index"], "step": last["step"]} if name == "final" else position.best[name]
        trial[f"{name}_eval_index"], trial[f"{name}_step"] = at["eval_index"], at["step"]
        for metric, value in metrics.summarise(found, result.rows.classes).items():
            trial[f"{name}_{metric}"] = value
    return trial


def _predictions(result: RunResult, key: dict[str, str], name: EvalName, arrays: metrics.Arrays) -> pa.Table:
    columns = _keyed(result, key, name)
    for column, values in arrays.items():
        columns[column] = _top(values) if column in ("top5_idx", "top5_p") else pa.array(values)
    schema = schemas.PREDICTIONS
    return pa.table({field.name: columns[field.name] for field in schema}).cast(schema)


def _logits(result: RunResult, key: dict[str, str], name: EvalName) -> pa.Table:
    limit = np.finfo(np.float16).max
    logits = np.clip(result.logits[name], -limit, limit).astype(np.float16)
    offsets = np.arange(len(logits) + 1, dtype=np.int32) * logits.shape[1]
    columns = _keyed(result, key, name)
    columns["logits"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(logits.reshape(-1)))
    return pa.table({field.name: columns[field.name] for field in schemas.LOGITS}).cast(schemas.LOGITS)


def _keyed(result: RunResult, key: dict[str, str], name: EvalName) -> dict[str, pa.Array]:
    index = result.rows.test.index
    constant = {**key, "dataset": result.spec.data.dataset, "eval_name": name}
    columns = {column: pa.array([value] * len(index), pa.string()) for column, value in constant.items()}
    for column in ("dataset", "eval_name"):
        columns[column] = columns[column].dictionary_encode()
    columns["sample_id"] = pa.array(index, pa.int32())
    return columns


def _top(values: NDArray[Any]) -> pa.Array:
    """[N, k] as a fixed list of TOP; null beyond the last class."""
    whole = np.zeros((len(values), metrics.TOP), values.dtype)
    mask = np.ones_like(whole, dtype=bool)
    whole[:, : values.shape[1]] = values
    mask[:, : values.shape[1]] = False
    return pa.FixedSizeListArray.from_arrays(pa.array(whole.reshape(-1), mask=mask.reshape(-1)), metrics.TOP)


def _provenance(result: RunResult, attempt: AttemptInfo) -> dict[str, Any]:
    manifest = result.stores.manifest
    return {
        "spec_json": result.spec.canonical(),
        "numerics_json": json.dumps(result.numerics, sort_keys=True),
        "weights_report_json": json.dumps(result.weights_report, sort_keys=True),
        "data_source": manifest.source,
        "data_source_sha256": manifest.source_sha256,
        **result.host,
        "attempt_history_json": json.dumps(list(attempt.history)),
        "started_at": attempt.started_at,
    }
