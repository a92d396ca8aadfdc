"""What a run costs before it is run: steps, operations, memory and time.

Steps and operations are counted on the real model. Memory and time come, in this order, from runs or probes of the same
shape on the same device (`trainable/costs.py`); from the model below scaled by what other shapes of the grid were
measured to take there; from the model as it was calibrated.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from datasets.published import PUBLISHED
from datasets.store import Manifest
from trainable.costs import CostRecord, shape_of
from trainable.optim import BACKBONE, evaluation_interval, steps_per_epoch, total_steps
from trainable.spec import ModelSpec, RunSpec
from tuner.profile import profile

Basis = Literal["measured", "scaled model", "model"]

SECONDS_PER_UNIT = {
    "convolution_flops": 5.6e-12,
    "other_flops": 3.2e-12,
    "operations": 2.7e-6,
    "parameters": 1.2e-8,
    "activation_bytes": 3.1e-9,
}
"""Seconds of a training step on one CPU thread, by `step_terms`: fitted by `python -m benchmarks.calibrate` on an AMD
EPYC, 2026-11-23 (`benchmarks/results/`; predicted over measured from 0.5 to 1.2). Other processors differ by a factor,
which the first measured runs give."""
GPU_FLOPS = 9e12
"""Operations per second that a card keeps up in float32. The first study's: 24 rows of 149 PFLOP in 4 h 29 min on an
RTX 3090, up to eight at a time. `--on gpu_tflops=` says otherwise; bfloat16 is taken as twice as fast."""
GPU_LAUNCH_S = 10e-6
"""Seconds from one kernel of a step to the next where the card waits for the processor; not measured."""
SETUP_S = 2.0
"""Opening of data and model, checkpoints and tables; without the start of a process."""
START_S = 6.0
"""Start of a process with its libraries, and of CUDA. Trials on the CPU follow each other in one process."""
CPU_BASE_BYTES = 1.15e9
"""Python, torch and the other libraries, resident."""
PROBE_RAM = 1.15
"""Peak RAM of a whole run over that of its probe: 1.04 to 1.23 for 12 paper rows and 14 demo rows (2026-11-23)."""
GPU_WORKSPACE_BYTES = 0.3e9
OPTIMIZER_FLOATS = {"adam": 2, "adamw": 2, "sgd": 1}
"""Float32 numbers a parameter that the optimiser keeps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What runs are to be trained on."""

    kind: Literal["cpu", "cuda"]
    name: str | None
    """As `trainable.provenance.device_name` gives it; None where it is not known, so that any of the kind counts."""
    threads: int
    gpu_flops: float = GPU_FLOPS


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Predicted cost of one run."""

    steps: int
    num_parameters: int
    flops: float
    """Floating-point operations of training and evaluation; a multiply-add counts two."""
    evaluated_images: int
    memory_bytes: float
    """Peak: on the card, or resident in RAM."""
    seconds: float
    """Of a run that has its device for itself."""
    busy_s: float
    """Seconds of arithmetic that runs on one card cannot share; 0 on a CPU, where cores are not shared."""
    basis: Basis

    def seconds_at(self, share: float) -> float:
        """Seconds where runs with such a share fill the card."""
        return max(self.seconds, self.busy_s / share) if 0 < share < 1 else self.seconds


def step_terms(
    model: ModelSpec, num_classes: int, image_size: int, input_size: int, batch_size: int, *, passes: int = 3
) -> dict[str, float]:
    """What one training step consists of, in the units of `SECONDS_PER_UNIT`. A backward pass counts two forward;
    where the whole backbone is frozen, the forward pass is the only one (`passes` 1) and keeps nothing for another."""
    one = profile(model, num_classes, image_size, input_size)
    return {
        "convolution_flops": passes * batch_size * one.convolution_flops,
        "other_flops": passes * batch_size * one.other_flops,
        "operations": float(passes) * one.num_operations + one.num_tensors,
        "parameters": float(one.num_parameters),
        "activation_bytes": float(batch_size * one.saved_bytes) if passes > 1 else 0.0,
    }


class Predictor:
    """Predicts the cost of runs on one device.

    Args:
        device: where they would be trained.
        records: what was measured, by shape.
    """

    def __init__(self, device: Device, records: Mapping[str, list[CostRecord]]) -> None:
        self._device = device
        self._records = {
            shape: [one for one in found if self._counts(one)] for shape, found in records.items() if found
        }
        self._static: dict[tuple[object, ...], _Static] = {}
        self._scale: tuple[float, float] | None = None

    def predict(self, specs: Mapping[str, tuple[RunSpec, Manifest | None, int | None]]) -> dict[str, Cost | None]:
        """Costs by run id.

        Args:
            specs: by run id: the spec, the prepared train split's manifest (None falls back on the published counts),
                and the number of prepared test images, likewise. None comes back where nothing is known of the data.
        """
        modelled: dict[str, Cost | None] = {}
        shapes: dict[str, tuple[str, _Static]] = {}
        for run_id, (spec, manifest, num_test) in specs.items():
            static = self._count(spec, manifest, num_test)
            modelled[run_id] = static.cost if static else None
            if static:
                shapes[run_id] = static.shape, static
        time_scale, memory_scale = self._scales(dict(shapes.values()))
        return {
            run_id: self._refined(cost, *shapes[run_id], time_scale, memory_scale) if cost else None
            for run_id, cost in modelled.items()
        }

    def _counts(self, record: CostRecord) -> bool:
        device = self._device
        same = record.device == device.kind and device.name in (None, record.device_name)
        return same and (device.kind == "cuda" or record.threads == device.threads)

    def _count(self, spec: RunSpec, manifest: Manifest | None, num_test: int | None) -> _Static | None:
        """The model's prediction; runs that differ in nothing that costs share one."""
        key = (spec.data, spec.augment, spec.model, spec.optim.name, spec.optim.precision, spec.budget, spec.evaluate)
        if key not in self._static:
            static = _static(spec, manifest, num_test, self._device)
            if static is None:
                return None
            self._static[key] = static
        return self._static[key]

    def _scales(self, shapes: Mapping[str, _Static]) -> tuple[float, float]:
        """Measured over modelled (time per step, memory), as medians over the shapes that were measured."""
        known = [(static, self._records[shape]) for shape, static in shapes.items() if self._records.get(shape)]
        if not known:
            return 1.0, 1.0
        time = [_step_s(records) / static.step_s for static, records in known]
        memory = [_peak(records) / static.cost.memory_bytes for static, records in known]
        return statistics.median(time), statistics.median(memory)

    def _refined(self, cost: Cost, shape: str, static: _Static, time_scale: float, memory_scale: float) -> Cost:
        if records := self._records.get(shape):
            setups = [one.setup_s for one in records if one.setup_s is not None]
            setup = statistics.median(setups) if setups else SETUP_S
            per_image = statistics.median([one.seconds_per_evaluated_image for one in records])
            working = _step_s(records) * cost.steps + per_image * cost.evaluated_images
            alone = all(one.gpu_fraction >= 1 for one in records)  # else neighbours were there when it was measured
            return replace(
                cost,
                memory_bytes=_peak(records),
                seconds=setup + working,
                busy_s=min(cost.busy_s, working) if alone else 0.0,
                basis="measured",
            )
        if (time_scale, memory_scale) == (1.0, 1.0):
            return cost
        return replace(
            cost,
            memory_bytes=cost.memory_bytes * memory_scale,
            seconds=SETUP_S + (cost.seconds - SETUP_S) * time_scale,
            busy_s=cost.busy_s * time_scale,
            basis="scaled model",
        )


def _step_s(records: Iterable[CostRecord]) -> float:
    """Seconds per step: of whole runs where there are any, since a probe's few steps are noisy."""
    records = list(records)
    runs = [one for one in records if one.source == "run"] or records
    return statistics.median([one.seconds_per_step for one in runs])


def _peak(records: Iterable[CostRecord]) -> float:
    """The highest peak of whole runs; a probe writes neither checkpoints nor tables, which take RAM."""
    records = list(records)
    if runs := [one for one in records if one.source == "run"]:
        return float(max(one.peak_memory_bytes for one in runs))
    return max(one.peak_memory_bytes * (PROBE_RAM if one.device == "cpu" else 1.0) for one in records)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Static:
    """What is known of a run without any measurement."""

    cost: Cost
    shape: str
    step_s: float
    """Modelled seconds of a training step."""


def _static(spec: RunSpec, manifest: Manifest | None, num_test: int | None, device: Device) -> _Static | None:
    published = PUBLISHED.get(spec.data.dataset)
    if manifest is None and published is None:
        return None
    num_classes = len(manifest.classes) if manifest else published.num_classes  # type: ignore[union-attr]
    train = manifest.num_images if manifest else published.num_train  # type: ignore[union-attr]
    test = num_test if num_test is not None else (published.num_test if published else train)
    images = train + test  # they lie on a card whole
    if spec.data.classes is not None:  # data sets here are balanced to within a few images
        share = len(spec.data.classes) / num_classes
        train, test, num_classes = round(train * share), round(test * share), len(spec.data.classes)
    val = round(train * spec.data.val_fraction)
    train = min(spec.data.limit_train or train, train - val)
    test = min(spec.data.limit_eval or test, test)
    size, model = spec.data.image_size, spec.model
    input_size = spec.augment.train_crop or size
    per_epoch = max(1, steps_per_epoch(spec.budget, train))
    steps = total_steps(spec.budget, per_epoch)
    evaluations = max(1, -(-steps // evaluation_interval(spec.evaluate, per_epoch)))
    evaluated = evaluations * (test + val + (spec.evaluate.train_first or 0)) + len(spec.evaluate.select) * test
    trained = profile(model, num_classes, size, input_size)
    forward = profile(model, num_classes, size, size).flops
    batch = min(spec.budget.batch_size, train)
    passes = _passes(spec)
    stored = 3 * (manifest.image_size if manifest else size) ** 2 * images if spec.data.resize == "none" else 0
    step_s, busy_s, evaluate_s = _seconds(spec, device, num_classes, input_size, batch)
    return _Static(
        cost=Cost(
            steps=steps,
            num_parameters=trained.num_parameters,
            flops=passes * trained.flops * steps * min(batch, train / per_epoch) + forward * evaluated,
            evaluated_images=evaluated,
            memory_bytes=_memory(spec, device, trained.num_parameters, trained.saved_bytes * batch * (passes > 1))
            + (stored if device.kind == "cuda" else 0),
            seconds=SETUP_S + step_s * steps + evaluate_s * evaluated,
            busy_s=busy_s * steps + (evaluate_s * evaluated if device.kind == "cuda" else 0.0),
            basis="model",
        ),
        shape=shape_of(spec),
        step_s=step_s,
    )


def _seconds(
    spec: RunSpec, device: Device, num_classes: int, input_size: int, batch: int
) -> tuple[float, float, float]:
    """Seconds of a step, of its arithmetic on a card, and of one evaluated image."""
    passes = _passes(spec)
    terms = step_terms(spec.model, num_classes, spec.data.image_size, input_size, batch, passes=passes)
    flops = terms["convolution_flops"] + terms["other_flops"]
    if device.kind == "cuda":
        busy = flops / (device.gpu_flops * (2 if spec.optim.precision == "bfloat16" else 1))
        return GPU_LAUNCH_S * terms["operations"] + busy, busy, busy / (passes * batch)
    step = sum(SECONDS_PER_UNIT[term] * amount for term, amount in terms.items()) / device.threads
    return step, 0.0, step / (passes * batch)


def _passes(spec: RunSpec) -> int:
    """Forward passes that a training step is worth. Where single layers are frozen, as if none were: an upper bound."""
    return 1 if BACKBONE in spec.optim.frozen else 3


def _memory(spec: RunSpec, device: Device, num_parameters: int, saved_bytes: float) -> float:
    """Weights, gradients and optimiser state; activations; what a checkpoint is written from; libraries."""
    state = 4 * num_parameters * (2 + OPTIMIZER_FLOATS[spec.optim.name])
    if device.kind == "cuda":
        return state + saved_bytes * (0.6 if spec.optim.precision == "bfloat16" else 1.1) + GPU_WORKSPACE_BYTES
    checkpoint = 4 * num_parameters * (2 * (1 + OPTIMIZER_FLOATS[spec.optim.name]) - 1)
    return CPU_BASE_BYTES + state + checkpoint + 1.05 * saved_bytes
