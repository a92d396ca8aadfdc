"""A results store of grid `paper` with made-up answers: real specs, tables, commits and manifest, and no training.

    python -m benchmarks.made_store FOLDER [--seeds 5] [--images 10000] [--epochs 50]

A run's logits are noise with the right class lifted on about the share of images that its arm is given; how hard an
image is, all runs agree upon. Tables are built by `trainable.tables`, so that they are what a training would leave.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.store import ArrayStore, Dataset, Manifest
from datasets.subset import Rows, RunRows
from trainable import records
from trainable.dims import publish_dims
from trainable.loop import Position
from trainable.spec import RunSpec
from trainable.storage import Storage
from trainable.tables import AttemptInfo, RunResult, build_tables
from tuner.grid import Selection, load_grid
from tuner.ledger import survey, write_manifest

ROOT = Path(__file__).resolve().parent.parent
CLASSES = {"cifar100": 100, "tiny-imagenet-200": 200}
SHARE = {"none": 0.55, "mixup": 0.58, "cutmix": 0.60}
"""Of images that a run gets right, by its augmentation."""
START = datetime(2026, 1, 1, tzinfo=UTC)
ATTEMPT = "made"
NUM_PARAMETERS = 22_000_000
HOST = {
    "code_git_sha": "a" * 40,
    "code_git_dirty": False,
    "code_tree_sha256": "b" * 64,
    "host_name_sha256": "c" * 64,
    "host_device": "made up",
    "host_platform": "made up",
    "host_versions_json": "{}",
}


def make_store(storage: Storage, seeds: Sequence[int], *, num_images: int, num_epochs: int) -> int:
    """Writes grid `paper` as if all of its runs were done.

    Args:
        storage: an empty results root.
        seeds: of every row.
        num_images: test images of each data set, a multiple of 200.
        num_epochs: of every run.

    Returns:
        How many runs there are.
    """
    grid = load_grid(ROOT / "experiments.yaml", "paper", Selection(seeds=tuple(seeds)))
    for run in grid.runs:
        data = _data(run.spec.data.dataset, str(run.spec.data.content_sha256), num_images)
        publish_dims(storage, data)
        records.start_attempt(storage, run.run_id, ATTEMPT, {"number": 1, "host": "made", "pid": 1})
        tables = _tables(run.spec, data, num_epochs)
        records.commit_run(storage, run_id=run.run_id, attempt_id=ATTEMPT, dataset=run.spec.data.dataset, tables=tables)
        records.end_attempt(storage, run.run_id, ATTEMPT, "done", None)
    write_manifest(storage, grid, survey(storage, grid), ["python", "-m", "benchmarks.made_store"], {})
    return len(grid.runs)


@cache
def _data(name: str, content_sha256: str, num_images: int) -> Dataset:
    """A data set of images of one pixel, no two of them alike."""
    classes = CLASSES[name]
    labels = (np.arange(num_images) % classes).astype(np.int16)

    def split(kind: Any, labels: NDArray[np.int16], first: int) -> ArrayStore:
        numbers = np.arange(first, first + len(labels), dtype="<u4")
        manifest = Manifest(
            format=1,
            dataset=name,
            split=kind,
            num_images=len(labels),
            image_size=1,
            classes=tuple(f"{name} {number}" for number in range(classes)),
            mean=(0.5, 0.5, 0.5),
            std=(0.25, 0.25, 0.25),
            images_sha256="0" * 64,
            labels_sha256="0" * 64,
            content_sha256=content_sha256,
            published=True,
            source="made",
            source_sha256=None,
        )
        return ArrayStore(images=numbers.view(np.uint8).reshape(-1, 1, 1, 4)[..., :3], labels=labels, manifest=manifest)

    return Dataset(train=split("train", np.tile(labels, 5), num_images), test=split("test", labels, 0))


def _tables(spec: RunSpec, data: Dataset, num_epochs: int) -> dict[str, pa.Table]:
    logits = _logits(spec, data.test.labels)
    result = RunResult(
        spec=spec,
        stores=data,
        rows=RunRows(
            train=_rows(data.train),
            test=_rows(data.test),
            val=None,
            classes=np.arange(CLASSES[spec.data.dataset], dtype=np.int16),
        ),
        position=_position(spec, len(data.train.labels), len(data.test.labels), num_epochs),
        logits=dict.fromkeys(spec.eval_names, logits),
        num_parameters=NUM_PARAMETERS,
        steps=None,
        rates=(),
        steps_per_epoch=-(-len(data.train.labels) // spec.budget.batch_size),
        scalars={},
        weights_report={},
        numerics={"device": "cpu", "threads": 1},
        numerics_changed=False,
        resumed_under=(),
        host=HOST,
        peak_memory_bytes=1 << 30,
    )
    return build_tables(result, AttemptInfo(attempt_id=ATTEMPT, number=1, history=(), started_at=START))


def _rows(store: ArrayStore) -> Rows:
    return Rows(index=np.arange(len(store.labels), dtype=np.int32), labels=store.labels.astype(np.int64))


def _logits(spec: RunSpec, labels: NDArray[np.int16]) -> NDArray[np.float32]:
    """[N, C] float32."""
    num, classes = len(labels), CLASSES[spec.data.dataset]
    rng = np.random.default_rng(int(spec.run_id, 16))
    hardness = 0.6 * np.random.default_rng(7).random(num) + 0.4 * rng.random(num)
    wrong = (labels + rng.integers(1, classes, num)) % classes
    logits = rng.standard_normal((num, classes), np.float32)
    logits[np.arange(num), np.where(hardness < SHARE[spec.augment.mix], labels, wrong)] += 5
    return logits


def _position(spec: RunSpec, num_train: int, num_test: int, num_epochs: int) -> Position:
    """A run of rising accuracy."""
    steps = -(-num_train // spec.budget.batch_size)
    mixed = spec.augment.mix != "none"
    position = Position(step=steps * num_epochs, evaluated=steps * num_epochs, evaluate_s=2.0 * num_epochs)
    for index in range(num_epochs):
        top1 = SHARE[spec.augment.mix] * (index + 1) / num_epochs
        common = {"eval_index": index, "step": steps * (index + 1), "epoch": index + 1.0, "ended_at": START.isoformat()}
        train = {"top1": None if mixed else top1, "top1_mixed": top1 if mixed else None, "lr": 1e-3, "train_s": 30.0}
        train |= {"mix_lam_mean": 0.5 if mixed else None, "data_wait_s": 0.1, "images_per_s": num_train / 30}
        test = {"top1": top1, "top5": (1 + top1) / 2, "evaluate_s": 2.0}
        position.rows += [
            {**common, "split": "train", "num_images": num_train, "loss_nats": 3 - 2 * top1, **train},
            {**common, "split": "test", "num_images": num_test, "loss_nats": 3 - 1.5 * top1, **test},
        ]
    last = {key: position.rows[-1][key] for key in ("eval_index", "step", "top1")}
    position.best |= {str(name): last for name in spec.evaluate.select}
    return position


if __name__ == "__main__":
    cli = argparse.ArgumentParser(prog="python -m benchmarks.made_store")
    cli.add_argument("folder")
    for name, default in (("seeds", 5), ("images", 10_000), ("epochs", 50)):
        cli.add_argument(f"--{name}", type=int, default=default)
    given = cli.parse_args()
    runs = make_store(Storage(given.folder), range(given.seeds), num_images=given.images, num_epochs=given.epochs)
    print(f"{runs:,} runs in {given.folder}")
