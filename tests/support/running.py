"""Runs on the toy images: opened, trained to the end, what must be the same bits of two, checkpoints written otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toy import exec_spec, run_spec

from datasets.store import Dataset
from trainable.checkpoint import RunFolder, save_checkpoint
from trainable.run import open_run
from trainable.storage import Storage
from trainable.training import TrainingRun

MIXUP = {"augment.mix": "mixup", "augment.mix_alpha": 1.0}


def opened(
    storage: Storage, data_path: Path, toy: Dataset, fields: dict[str, Any], parent: str | None = None, **how: Any
) -> TrainingRun:
    spec = run_spec({"data.content_sha256": toy.manifest.content_sha256, **fields})
    parent_folder = RunFolder(storage, parent) if parent else None
    return open_run(spec, exec_spec(data_path, **how), RunFolder(storage, spec.run_id), toy, parent_folder)


def finished(run: TrainingRun, seconds: float = math.inf) -> TrainingRun:
    while not run.done:
        run.advance(seconds)
    return run


def outcome(run: TrainingRun) -> tuple[Any, ...]:
    """Everything that must be the same bits."""
    volatile = {"train_s", "data_wait_s", "evaluate_s", "images_per_s", "ended_at"}
    rows = [{key: value for key, value in row.items() if key not in volatile} for row in run.position.rows]
    weights = {name: value.numpy().tobytes() for name, value in run.folder.load("last").tensors.items()}
    logits = {name: value.tobytes() for name, value in run._logits.items()}
    return rows, run.position.best, weights, logits


def rewritten(run: TrainingRun, name: str, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Changes tensors or meta of a checkpoint as another version of this project would have written them: whole, with a
    digest that fits."""
    checkpoint = run.folder.load(name)
    step = checkpoint.meta["step"]
    path = "last/state" if name == "last" else f"{name}/{step}"
    tensors, meta = dict(checkpoint.tensors), dict(checkpoint.meta)
    change(tensors, meta)
    save_checkpoint(run.folder.storage, run.folder.path(f"checkpoint/{path}.safetensors"), tensors, meta)


def set_meta(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda tensors, meta: meta.__setitem__(key, value)
