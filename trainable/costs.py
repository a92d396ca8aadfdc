"""What runs were measured to cost: one small record a finished run or probe, found by the run's shape.

`costs/<shape>--<attempt>.json`: the name carries the shape, so that a planner opens only the records it needs.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from trainable.spec import RunSpec
from trainable.storage import Storage

CUDA_CONTEXT_BYTES = 600 * 2**20
"""What a process is taken to hold on a card before its first tensor: context, cuBLAS and cuDNN kernels. Assumed on the
high side and not measured by this project: too much wastes a little, too little would starve a neighbour."""
NEWEST = 5
"""Records of one shape that a planner reads."""


class CostRecord(BaseModel):
    """One measurement."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    shape: str
    run_id: str
    attempt_id: str
    source: Literal["run", "probe"]
    device: Literal["cpu", "cuda"]
    device_name: str
    threads: int
    gpu_fraction: float
    seconds_per_step: float
    """Of training, data included."""
    seconds_per_evaluated_image: float
    setup_s: float | None
    """From the start of the attempt to its end, less training and evaluation; null for a probe and a resumed run."""
    peak_memory_bytes: int
    """On the card where there is one (reserved by torch), else resident in RAM."""


def shape_of(spec: RunSpec) -> str:
    """What runs of equal cost per step have in common, as 12 hex digits: seeds, rates and budgets do not matter."""
    parts: dict[str, Any] = {
        "model": spec.model.name,
        "dataset": spec.data.dataset,
        "classes": spec.data.classes,
        "image_size": spec.data.image_size,
        "augment": spec.augment.model_dump(mode="json", exclude={"mix_alpha"}, exclude_defaults=True),
        "optimizer": spec.optim.name,
        "precision": spec.optim.precision,
        "batch_size": spec.budget.batch_size,
        "evaluate_batch_size": spec.evaluate.batch_size,
    }
    added = {
        "model": spec.model.model_dump(mode="json", exclude={"name"}, exclude_defaults=True),
        "resize": None if spec.data.resize == "none" else [spec.data.resize, spec.data.jpeg_quality],
        "frozen": spec.optim.frozen,
        "average": spec.optim.ema_decay is not None,
    }
    parts |= {name: value for name, value in added.items() if value}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def write_cost(storage: Storage, record: CostRecord) -> None:
    """Adds a record.

    Raises:
        StorageError: cannot be written.
    """
    storage.publish(f"costs/{record.shape}--{record.attempt_id}.json", record.model_dump_json(indent=1).encode())


def read_costs(storage: Storage, shapes: Iterable[str]) -> dict[str, list[CostRecord]]:
    """The newest records of every shape, newest last. One that cannot be read is passed over: it is only a hint."""
    wanted = set(shapes)
    names: dict[str, list[str]] = {}
    for name in storage.names("costs"):
        shape = name.split("--")[0]
        if shape in wanted:
            names.setdefault(shape, []).append(name)
    found: dict[str, list[CostRecord]] = {}
    for shape, files in names.items():
        for file in files[-NEWEST:]:
            try:
                record = CostRecord.model_validate_json(storage.read(f"costs/{file}"))
            except (ValidationError, FileNotFoundError):
                continue
            found.setdefault(shape, []).append(record)
    return found


def records_of(storage: Storage, attempt_ids: Iterable[str]) -> dict[str, CostRecord]:
    """The records of attempts, by attempt, of those that left one. One that cannot be read is only a hint lost."""
    wanted = set(attempt_ids)
    files = {name.partition("--")[2].removesuffix(".json"): name for name in storage.names("costs")}
    found = {}
    for attempt, name in files.items():
        if attempt in wanted:
            with suppress(ValidationError):
                found[attempt] = CostRecord.model_validate_json(storage.read(f"costs/{name}"))
    return found


def peak_memory(storage: Storage, attempt_ids: Iterable[str]) -> dict[str, int]:
    """Peak bytes by attempt, of those that left a record."""
    return {attempt: record.peak_memory_bytes for attempt, record in records_of(storage, attempt_ids).items()}


@cache
def cpu_name() -> str:
    """The processor's model as Linux names it."""
    with suppress(OSError, IndexError):
        return Path("/proc/cpuinfo").read_text().split("model name")[1].split("\n")[0].strip(": \t")
    return platform.processor() or platform.machine()
