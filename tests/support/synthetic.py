"""Grids of made-up runs in a real results store: no training, real specs, tables, commits and manifests.

python tests/support/synthetic.py FOLDER --rows 24 --seeds 5 --images 10000      # for measuring
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from toy import made_up_from, run_spec

from trainable import metrics, records, schemas
from trainable.manifests import write_manifest
from trainable.records import Commit, commit_run, to_parquet
from trainable.spec import RunSpec
from trainable.storage import Storage

CONTENT = {"red": "1" * 64, "blue": "2" * 64}
"""Content hashes of two data sets that do not exist."""
START = datetime(2026, 1, 1, tzinfo=UTC)

Logits = Callable[[RunSpec, NDArray[np.int64]], NDArray[np.float32]]
"""Logits [N, C] of a run from its spec and the positions of the right classes, [N]."""


def spec_of(dataset: str, model: str, mix: str, pretrained: bool, seed: int, **fields: Any) -> RunSpec:
    """A spec of the design: data set x model x mix x init."""
    kind = {"init.kind": "hub", "init.source": f"{model}.tag", "init.sha256": "a" * 64} if pretrained else {}
    fixed = {"data.dataset": dataset, "data.content_sha256": CONTENT[dataset], "model.name": model, "seed": seed}
    mixing = {"augment.mix": mix, "augment.mix_alpha": None if mix == "none" else 1.0}
    return run_spec({**fixed, **mixing, **kind, **fields})


def labels_of(num: int, classes: int) -> NDArray[np.int64]:
    """Positions of the right classes of the test images: balanced, in a fixed order."""
    return np.arange(num) % classes


def noisy(accuracy: Mapping[str, float] | float = 0.6, scale: float = 3.0) -> Logits:
    """Logits whose argmax is right on about that share of images; how hard an image is, all runs agree upon.

    Args:
        accuracy: of every run, or by the name of its mix.
        scale: of the margin between the best and the others: how sure the run is.
    """

    def logits(spec: RunSpec, labels: NDArray[np.int64]) -> NDArray[np.float32]:
        share = accuracy if isinstance(accuracy, float) else accuracy[spec.augment.mix]
        rng = np.random.default_rng([made_up_from(spec), 1])
        shared = np.random.default_rng(7).random(len(labels))
        classes = int(labels.max()) + 1
        right = 0.6 * shared + 0.4 * rng.random(len(labels)) < share
        found = rng.normal(size=(len(labels), classes)).astype(np.float32)
        wrong = (labels + 1 + rng.integers(0, classes - 1, len(labels))) % classes
        found[np.arange(len(labels)), np.where(right, labels, wrong)] += scale
        return found

    return logits


def tables_of(
    spec: RunSpec,
    *,
    images: int = 200,
    classes: int = 10,
    epochs: int = 3,
    curve: Sequence[float] | None = None,
    logits: Logits | None = None,
    val: bool = False,
    attempt_id: str = "a1",
    names: Sequence[str] = ("final", "best_on_test"),
) -> dict[str, pa.Table]:
    """The tables of a finished run, as `trainable.tables` would have written them.

    Args:
        spec: the run.
        images: in the test split.
        classes: of the data.
        epochs: evaluations, one an epoch.
        curve: top-1 by epoch; None rises to the final one.
        logits: of the run; None for `noisy()`.
        val: whether its epochs have a hold-out.
        attempt_id: of the attempt that finished it.
        names: the evaluations.
    """
    labels = labels_of(images, classes)
    found = (logits or noisy())(spec, labels)
    arrays = metrics.predictions(found, labels, np.arange(classes))
    numbers = metrics.summarise(arrays, np.arange(classes))
    key = {"run_id": spec.run_id, "attempt_id": attempt_id}
    epochs = epochs if curve is None else len(curve)
    curve = curve or [numbers["top1"] * (index + 1) / epochs for index in range(epochs)]
    split_rows = [
        {
            **key,
            "eval_index": index,
            "split": split,
            "step": 10 * (index + 1),
            "epoch": float(index + 1),
            "num_images": images,
            "lr": 1e-3 if split == "train" else None,
            "loss_nats": numbers["nll_nats"] + (epochs - 1 - index) / epochs,
            "top1": None if split == "train" and spec.augment.mix != "none" else curve[index],
            "top5": None if split == "train" else numbers["top5"] * (index + 1) / epochs,
            "top1_mixed": numbers["top1"] * (index + 1) / epochs
            if split == "train" and spec.augment.mix != "none"
            else None,
            "train_s": 1.0,
            "evaluate_s": 0.1,
            "data_wait_s": 0.0,
            "images_per_s": float(images),
            "ended_at": START,
        }
        for index in range(epochs)
        for split in ("train", *(("val",) if val else ()), "test")
    ]
    trial: dict[str, Any] = {
        **schemas.spec_columns(spec.model_dump(mode="json")),
        **key,
        "dataset_published": True,
        "classes": list(range(classes)),
        "num_classes": classes,
        "num_train": 5 * images,
        "num_val": images if val else 0,
        "num_test": images,
        "num_parameters": 1_000_000,
        "steps": 10 * epochs,
        "epochs": float(epochs),
        "train_s": float(epochs),
        "evaluate_s": 0.1 * epochs,
        "data_wait_s": 0.0,
        "train_images_per_s": 5.0 * images,
        "peak_memory_bytes": 1 << 30,
        "attempt_number": 1,
        "attempt_numerics_changed": False,
        "attempt_resumed_under_json": "[]",
        "ended_at": START,
    }
    for name in names:
        trial |= {f"{name}_eval_index": epochs - 1, f"{name}_step": 10 * epochs}
        trial |= {f"{name}_{metric}": value for metric, value in numbers.items()}
    provenance = {
        **key,
        "spec_json": spec.canonical(),
        "numerics_json": json.dumps({"device": "cpu", "threads": 1}),
        "weights_report_json": "{}",
        "code_git_sha": "b" * 40,
        "code_git_dirty": False,
        "code_tree_sha256": "c" * 64,
        "host_name_sha256": "d" * 64,
        "host_device": "a processor",
        "host_versions_json": "{}",
        "attempt_history_json": "[]",
        "started_at": START,
        "ended_at": START,
    }
    return {
        "trials": pa.Table.from_pylist([trial], schema=schemas.TRIALS),
        "epochs": pa.Table.from_pylist(split_rows, schema=schemas.EPOCHS),
        "predictions": pa.concat_tables([_predictions(spec, key, name, arrays, images) for name in names]),
        "logits": pa.concat_tables([_logits(spec, key, name, found) for name in names]),
        "provenance": pa.Table.from_pylist([provenance], schema=schemas.PROVENANCE),
    }


def _keyed(spec: RunSpec, key: Mapping[str, str], name: str, images: int) -> dict[str, Any]:
    constant = {**key, "dataset": spec.data.dataset, "eval_name": name}
    columns: dict[str, Any] = {column: pa.array([value] * images, pa.string()) for column, value in constant.items()}
    for column in ("dataset", "eval_name"):
        columns[column] = columns[column].dictionary_encode()
    return {**columns, "sample_id": np.arange(images, dtype=np.int32)}


def _predictions(spec: RunSpec, key: Mapping[str, str], name: str, arrays: metrics.Arrays, images: int) -> pa.Table:
    columns = _keyed(spec, key, name, images)
    for column, values in arrays.items():
        columns[column] = (
            pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), metrics.TOP) if values.ndim == 2 else values
        )
    return pa.table({field.name: columns[field.name] for field in schemas.PREDICTIONS}).cast(schemas.PREDICTIONS)


def _logits(spec: RunSpec, key: Mapping[str, str], name: str, found: NDArray[np.float32]) -> pa.Table:
    half = found.astype(np.float16)
    offsets = np.arange(len(half) + 1, dtype=np.int32) * half.shape[1]
    columns = _keyed(spec, key, name, len(half))
    columns["logits"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(half.reshape(-1)))
    return pa.table({field.name: columns[field.name] for field in schemas.LOGITS}).cast(schemas.LOGITS)


def write_run(storage: Storage, spec: RunSpec, tables: Mapping[str, pa.Table], attempt_id: str = "a1") -> Commit:
    """Commits a run as its attempt would have."""
    details = {"host": "machine", "pid": 1, "number": 1}
    records.start_attempt(storage, spec.run_id, attempt_id, details)
    commit = commit_run(storage, run_id=spec.run_id, attempt_id=attempt_id, dataset=spec.data.dataset, tables=tables)
    records.end_attempt(storage, spec.run_id, attempt_id, "done", None)
    return commit


def write_dims(
    storage: Storage, dataset: str, images: int, classes: int, *, content: str | None = None, train: Sequence[str] = ()
) -> None:
    """The samples and classes of a data set that does not exist. The test images' digests are 0, 1, 2 ... in hex; `train`
    gives those of training images, of class 0."""
    content = content or CONTENT[dataset]
    num = images + len(train)
    columns = {
        "dataset": pa.array([dataset] * num).dictionary_encode(),
        "content_sha256": [content] * num,
        "split": pa.array(["test"] * images + ["train"] * len(train)).dictionary_encode(),
        "sample_id": [*range(images), *range(len(train))],
        "label": [*labels_of(images, classes).tolist(), *([0] * len(train))],
        "pixel_sha1": [*(f"{number:040x}" for number in range(images)), *train],
    }
    samples = pa.table({field.name: columns[field.name] for field in schemas.SAMPLES}).cast(schemas.SAMPLES)
    named = {
        "dataset": pa.array([dataset] * classes).dictionary_encode(),
        "content_sha256": [content] * classes,
        "label": np.arange(classes),
        "name": [f"{dataset} {number}" for number in range(classes)],
    }
    names = pa.table({field.name: named[field.name] for field in schemas.CLASSES}).cast(schemas.CLASSES)
    for table, rows in (("samples", samples), ("classes", names)):
        storage.publish(f"dims/{table}/{dataset}--{content[:16]}.parquet", to_parquet(rows))


def write_manifest_of(
    storage: Storage,
    specs: Mapping[str, Sequence[RunSpec]],
    published: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    number: int = 1,
) -> None:
    """Records invocation `number` of the grid `made`: rows by label, each with the runs of its seeds."""
    axes = {
        label: {
            "dataset": runs[0].data.dataset,
            "model": runs[0].model.name,
            "pretrained": str(runs[0].init.kind != "scratch").lower(),
            "mix": runs[0].augment.mix,
        }
        for label, runs in specs.items()
    }
    write_manifest(
        storage,
        grid="made",
        variant="full",
        written_at=START + timedelta(minutes=number),
        header={"help": "made-up runs", "published_eval": "best_on_test", "overrides": {}, "command": []},
        rows=[
            {"label": label, "axes": axes[label], "is_parent": False, "published": (published or {}).get(label)}
            for label in specs
        ],
        runs=[
            {"label": label, "run_id": spec.run_id, "seed": spec.seed, "parents": [], "state": "done", "reason": None}
            for label, runs in specs.items()
            for spec in runs
        ],
    )


def design(
    rows: int = 24, seeds: int = 3, datasets: Sequence[str] = ("red", "blue"), **fields: Any
) -> dict[str, list[RunSpec]]:
    """The first rows of data set x init x model x mix, each with its seeds; `rows` beyond them vary the learning rate."""
    cells = [*itertools.product(datasets, (False, True), ("small_resnet", "small_vit"), ("none", "mixup", "cutmix"))]
    found = {}
    for number in range(rows):
        round_, place = divmod(number, len(cells))
        dataset, pretrained, model, mix = cells[place]
        label = f"{dataset}-{model[6:]}-{'pre' if pretrained else 'scratch'}-{mix}" + (f"-{round_}" if round_ else "")
        rate = {"optim.lr": 1e-3 / (1 + round_)}
        found[label] = [
            spec_of(dataset, model, mix, pretrained, seed, **{**rate, **fields}) for seed in range(1, seeds + 1)
        ]
    return found


def write_grid(
    storage: Storage,
    specs: Mapping[str, Sequence[RunSpec]],
    published: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> None:
    """Writes every run of a grid, its data's dimension tables and its manifest; `settings` are those of `tables_of`."""
    for runs in specs.values():
        for spec in runs:
            write_run(storage, spec, tables_of(spec, **settings))
    for dataset in dict.fromkeys(runs[0].data.dataset for runs in specs.values()):
        write_dims(storage, dataset, settings.get("images", 200), settings.get("classes", 10))
    write_manifest_of(storage, specs, published)


if __name__ == "__main__":
    cli = argparse.ArgumentParser()
    cli.add_argument("folder")
    for name, default in (("rows", 24), ("seeds", 5), ("images", 10_000), ("classes", 100), ("epochs", 50)):
        cli.add_argument(f"--{name}", type=int, default=default)
    given = cli.parse_args()
    write_grid(
        Storage(given.folder),
        design(given.rows, given.seeds),
        images=given.images,
        classes=given.classes,
        epochs=given.epochs,
    )
