"""The columns of the results store: names, dtypes, units. One key everywhere: `run_id` (16 hex) and `attempt_id`.

Volatile columns end in `_s`, `_per_s`, `_at` or `_bytes`, or begin with `attempt_`, `host_` or `code_`; all others are
the same bits however often a run was killed on the way. Accuracies are fractions in [0, 1].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from trainable.metrics import METRICS, TOP

SCHEMA_VERSION = 3
"""2 added trials.attempt_resumed_under_json; 3 trials.init_stand_in, trials.final_scalars_json and the table steps.
What an older version did not write is read as null."""
DICT = pa.dictionary(pa.int32(), pa.string())
_VOLATILE_ENDS = ("_s", "_per_s", "_at", "_bytes")
_VOLATILE_STARTS = ("attempt_", "host_", "code_")
EVAL_NAMES = ("final", "best_on_val", "best_on_test")


def is_volatile(column: str) -> bool:
    """Whether a column may differ between an undisturbed run and one that was killed and continued."""
    return column.endswith(_VOLATILE_ENDS) or column.startswith(_VOLATILE_STARTS)


def _field(name: str, dtype: pa.DataType, unit: str = "", nullable: bool = True) -> pa.Field:
    return pa.field(name, dtype, nullable=nullable, metadata={"unit": unit} if unit else None)


def _schema(*fields: pa.Field) -> pa.Schema:
    keys = [_field("run_id", pa.string(), nullable=False), _field("attempt_id", pa.string(), nullable=False)]
    return pa.schema([*keys, *fields], metadata={"schema_version": str(SCHEMA_VERSION)})


_METRIC_UNITS = {name: "nats" if name == "nll_nats" else "fraction" for name in METRICS}

TRIALS = _schema(
    _field("dataset", DICT),
    _field("dataset_published", pa.bool_()),
    _field("content_sha256", pa.string()),
    _field("classes", pa.list_(pa.int16())),
    _field("image_size", pa.int16(), "pixels"),
    _field("num_classes", pa.int16()),
    _field("num_train", pa.int32(), "images"),
    _field("num_val", pa.int32(), "images"),
    _field("num_test", pa.int32(), "images"),
    _field("limit_train", pa.int32(), "images"),
    _field("limit_eval", pa.int32(), "images"),
    _field("val_fraction", pa.float64(), "fraction"),
    _field("model", DICT),
    _field("num_parameters", pa.int64()),
    _field("init_kind", DICT),
    _field("init_source", pa.string()),
    _field("init_sha256", pa.string()),
    _field("init_stand_in", pa.string(), "which random weights stood in for the ones named, here or at an ancestor"),
    _field("mix", DICT),
    _field("mix_alpha", pa.float64()),
    _field("mix_prob", pa.float64(), "probability"),
    _field("mix_scope", DICT),
    _field("pad_crop", pa.int16(), "pixels"),
    _field("train_crop", pa.int16(), "pixels"),
    _field("hflip_prob", pa.float64(), "probability"),
    _field("normalize", DICT),
    _field("optimizer", DICT),
    _field("lr", pa.float64()),
    _field("weight_decay", pa.float64()),
    _field("schedule", DICT),
    _field("precision", DICT),
    _field("batch_size", pa.int32(), "images"),
    _field("steps", pa.int32()),
    _field("epochs", pa.float64()),
    _field("seed", pa.int64()),
    _field("spec_version", pa.int16()),
    *(
        field
        for name in EVAL_NAMES
        for field in (
            _field(f"{name}_eval_index", pa.int32()),
            _field(f"{name}_step", pa.int32()),
            *(_field(f"{name}_{metric}", pa.float64(), _METRIC_UNITS[metric]) for metric in METRICS),
        )
    ),
    _field("final_scalars_json", pa.string(), "numbers of the model itself after the last step, by name"),
    _field("train_s", pa.float64(), "s"),
    _field("evaluate_s", pa.float64(), "s"),
    _field("data_wait_s", pa.float64(), "s"),
    _field("train_images_per_s", pa.float64(), "images/s"),
    _field("peak_memory_bytes", pa.int64(), "bytes"),
    _field("attempt_number", pa.int32()),
    _field("attempt_numerics_changed", pa.bool_()),
    _field("attempt_resumed_under_json", pa.string()),
    _field("ended_at", pa.timestamp("us", tz="UTC")),
)

SPEC_COLUMNS = {
    "dataset": "data.dataset",
    "content_sha256": "data.content_sha256",
    "image_size": "data.image_size",
    "limit_train": "data.limit_train",
    "limit_eval": "data.limit_eval",
    "val_fraction": "data.val_fraction",
    "model": "model.name",
    "init_kind": "init.kind",
    "init_source": "init.source",
    "init_sha256": "init.sha256",
    "mix": "augment.mix",
    "mix_alpha": "augment.mix_alpha",
    "mix_prob": "augment.mix_prob",
    "mix_scope": "augment.mix_scope",
    "pad_crop": "augment.pad_crop",
    "train_crop": "augment.train_crop",
    "hflip_prob": "augment.hflip_prob",
    "normalize": "augment.normalize",
    "optimizer": "optim.name",
    "lr": "optim.lr",
    "weight_decay": "optim.weight_decay",
    "schedule": "optim.schedule",
    "precision": "optim.precision",
    "batch_size": "budget.batch_size",
    "seed": "seed",
    "spec_version": "version",
}
"""Columns of `trials` that repeat what the spec says, and where it says so."""


def spec_columns(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The values of SPEC_COLUMNS.

    Args:
        spec: as JSON has it.

    Raises:
        KeyError, TypeError: it is no spec.
    """

    def at(path: str) -> Any:
        value: Any = spec
        for part in path.split("."):
            value = value[part]
        return value

    return {column: at(path) for column, path in SPEC_COLUMNS.items()}


EPOCHS = _schema(
    _field("eval_index", pa.int32(), nullable=False),
    _field("split", DICT, nullable=False),
    _field("step", pa.int32(), nullable=False),
    _field("epoch", pa.float64(), nullable=False),
    _field("num_images", pa.int32(), "images"),
    _field("lr", pa.float64()),
    _field("loss_nats", pa.float64(), "nats, mean over images; of the mixed loss where images are mixed"),
    _field("top1", pa.float64(), "fraction; null where training images are mixed"),
    _field("top5", pa.float64(), "fraction"),
    _field("top1_mixed", pa.float64(), "fraction, weighted by lam, on mixed images; null where nothing is mixed"),
    _field("mix_lam_mean", pa.float64(), "fraction"),
    _field("train_s", pa.float64(), "s"),
    _field("evaluate_s", pa.float64(), "s"),
    _field("data_wait_s", pa.float64(), "s"),
    _field("images_per_s", pa.float64(), "images/s"),
    _field("ended_at", pa.timestamp("us", tz="UTC")),
)

STEPS = _schema(
    _field("step", pa.int32(), "optimiser steps done, this one counted", nullable=False),
    _field("epoch", pa.float64(), nullable=False),
    _field("lr", pa.float64()),
    _field("loss_nats", pa.float64(), "nats, mean over the batch; of the last head, mixed where images are mixed"),
    _field("loss_total_nats", pa.float64(), "nats, with the losses of auxiliary heads"),
    _field("grad_norm", pa.float64(), "of all gradients together, before clipping"),
    _field("top1", pa.float64(), "fraction of the batch, weighted by lam where images are mixed"),
)

PREDICTIONS = _schema(
    _field("dataset", DICT, nullable=False),
    _field("eval_name", DICT, nullable=False),
    _field("sample_id", pa.int32(), "row of the image in the test split", nullable=False),
    _field("label", pa.int16(), "the data's number of the class", nullable=False),
    _field("pred", pa.int16(), "the data's number of the class", nullable=False),
    _field("correct", pa.bool_(), nullable=False),
    _field("label_rank", pa.int16(), "1 is best; ties count against the label", nullable=False),
    _field("p_label", pa.float32(), "probability", nullable=False),
    _field("p_max", pa.float32(), "probability", nullable=False),
    _field("nll_nats", pa.float32(), "nats", nullable=False),
    _field("entropy_nats", pa.float32(), "nats", nullable=False),
    _field("sum_p2", pa.float32(), "sum of squared probabilities", nullable=False),
    _field("top5_idx", pa.list_(pa.int16(), TOP), "the data's numbers of the classes; null beyond the last class"),
    _field("top5_p", pa.list_(pa.float32(), TOP), "probability"),
)

LOGITS = _schema(
    _field("dataset", DICT, nullable=False),
    _field("eval_name", DICT, nullable=False),
    _field("sample_id", pa.int32(), "row of the image in the test split", nullable=False),
    _field("logits", pa.list_(pa.float16()), "in the order of the trial's classes", nullable=False),
)

PROVENANCE = _schema(
    _field("spec_json", pa.large_string()),
    _field("numerics_json", pa.string()),
    _field("weights_report_json", pa.large_string()),
    _field("data_source", pa.string()),
    _field("data_source_sha256", pa.string()),
    _field("code_git_sha", pa.string()),
    _field("code_git_dirty", pa.bool_()),
    _field("code_tree_sha256", pa.string()),
    _field("host_name_sha256", pa.string()),
    _field("host_device", pa.string()),
    _field("host_platform", pa.string()),
    _field("host_versions_json", pa.string()),
    _field("attempt_history_json", pa.string()),
    _field("started_at", pa.timestamp("us", tz="UTC")),
    _field("ended_at", pa.timestamp("us", tz="UTC")),
)

CLASSES = pa.schema(
    [
        _field("dataset", DICT, nullable=False),
        _field("content_sha256", pa.string(), nullable=False),
        _field("label", pa.int16(), nullable=False),
        _field("name", pa.string(), nullable=False),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

SAMPLES = pa.schema(
    [
        _field("dataset", DICT, nullable=False),
        _field("content_sha256", pa.string(), nullable=False),
        _field("split", DICT, nullable=False),
        _field("sample_id", pa.int32(), "row of the image in its split", nullable=False),
        _field("label", pa.int16(), nullable=False),
        _field("pixel_sha1", pa.string(), nullable=False),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)

SCHEMAS: dict[str, pa.Schema] = {
    "trials": TRIALS,
    "epochs": EPOCHS,
    "steps": STEPS,
    "predictions": PREDICTIONS,
    "logits": LOGITS,
    "provenance": PROVENANCE,
}
PARTITIONED = ("predictions", "logits")
"""Tables in folders `dataset=<name>`: labels and the number of classes differ between data sets."""
OPTIONAL = ("steps",)
"""Tables that a run has only where its spec asks for them."""
