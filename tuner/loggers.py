"""Experiment trackers beside the results store: which there are, where they write, and what they are given.

    python -m tuner.run --grid paper --log tensorboard,wandb,mlflow

They show curves and nothing else: a scalar at each evaluation, the spec as parameters. The results store is the record,
and a tracker's files are never read back. `logger_callbacks.py` hands both to Ray's own callbacks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainable.models import nearest
from trainable.storage import Storage

PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""What each tracker needs to be importable; its extra in pyproject.toml has the tracker's name."""
Scalar = str | int | float | bool


class LoggerError(Exception):
    """A tracker cannot be used; the message names the mend."""


def check_loggers(text: str, storage: Storage) -> tuple[str, ...]:
    """The trackers that a command line asks for, each at hand.

    Args:
        text: names with commas.
        storage: the results root, below which they write.

    Raises:
        LoggerError: no such tracker, one that is not installed, or results on an object store.
    """
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in PACKAGES:
            raise LoggerError(f'--log: "{name}" is not one of {", ".join(PACKAGES)}{nearest(name, PACKAGES)}')
        if find_spec(PACKAGES[name]) is None:
            raise LoggerError(f"--log {name}: {PACKAGES[name]} is not installed; run: pip install grid-tuner[{name}]")
    if storage.local_root is None:
        raise LoggerError(
            f"--log {text}: trackers write to a local folder, and --results {storage.uri} is not one; leave --log out, "
            "or give a local --results"
        )
    return names


def folder(storage: Storage, name: str) -> Path:
    """Where a tracker writes: `loggers/<name>` below the results root, which is local."""
    path = storage.local_path(f"loggers/{name}")
    assert path is not None
    return path


def file_name(label: str, run_id: str) -> str:
    """A run's name as a folder: its label, as far as file systems take it, and its id."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', label)}-{run_id}"


def parameters(values: Mapping[str, Any], above: str = "") -> dict[str, Scalar]:
    """A spec (JSON) as flat parameters: dotted names, lists as text, nulls as the text "null"."""
    flat: dict[str, Scalar] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= parameters(value, f"{above}{key}.")
        elif isinstance(value, (str, int, float, bool)):
            flat[above + key] = value
        else:
            flat[above + key] = "null" if value is None else str(value)
    return flat


def evaluations(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The scalars of each evaluation among the rows of a report, `step` first; what is null is left out."""
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        one = found.setdefault(row["step"], {"step": row["step"], "epoch": row["epoch"]})
        split = row["split"]
        values = {f"{split}_loss_nats": row["loss_nats"], f"{split}_top1": row["top1"]}
        if split == "train":
            values["images_per_s"] = row["images_per_s"]
        one |= {name: float(value) for name, value in values.items() if value is not None}
    return list(found.values())
