"""A few real steps of a run without leaving a trace in it: what a batch looks like, what a step costs.

Nothing is written to the run's folder; the model, the loader and the loop are those of the run itself.
"""

from __future__ import annotations

import math
import tempfile
import time
from dataclasses import dataclass

import torch

from datasets.epochs import Batch
from datasets.store import Dataset
from trainable import provenance
from trainable.checkpoint import RunFolder
from trainable.evaluate import Pass
from trainable.opening import open_run
from trainable.spec import ExecSpec, InitSpec, RunSpec
from trainable.storage import Storage

STEPS = 2
MEAN_WITHIN = 0.5
"""Batch means of train and test may differ by this many standard deviations."""
RATIO_WITHIN = 2.0
"""Batch deviations of train and test may differ by this factor: mixing alone lowers one by up to 1.4."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFacts:
    """One batch as the model gets it."""

    num_images: int
    height: int
    width: int
    mean: float
    """Over pixels and channels, after normalisation."""
    std: float
    label_min: int
    label_max: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a few steps showed."""

    train: BatchFacts
    test: BatchFacts
    num_classes: int
    losses: tuple[float, ...]
    """nats, one a step."""
    findings: tuple[str, ...]
    """What is wrong or suspicious, in words; empty when nothing is."""
    notes: tuple[str, ...]
    """What the probe could not do as the run would."""
    device: str
    device_name: str
    seconds_per_step: float
    """Of the last step, data included."""
    seconds_per_evaluated_image: float
    peak_memory_bytes: int


def probe(spec: RunSpec, exec_spec: ExecSpec, stores: Dataset, parent_folder: RunFolder | None = None) -> Probe:
    """Opens the run aside, trains `STEPS` steps, evaluates one batch, and compares what train and test feed the model.

    Args:
        spec: the run.
        exec_spec: where and how.
        stores: its data.
        parent_folder: where its parent's checkpoint lies; None trains a child from random weights, and notes it.

    Raises:
        SpecError, MissingWeights, WeightsError, CheckpointError: as `open_run`.
    """
    notes = []
    opened = spec
    if spec.init.kind == "parent" and parent_folder is None:
        scratch = InitSpec(kind="scratch", source=None, sha256=None, checkpoint=None, surgery=())
        opened = spec.model_copy(update={"init": scratch})
        notes.append("its parent is not trained yet: checked with random weights")
    with tempfile.TemporaryDirectory(prefix="grid-tuner-probe-") as folder:
        aside = RunFolder(Storage(folder), spec.run_id)
        run = open_run(opened, exec_spec, aside, stores, parent_folder)
        try:
            loop, device = run.loop, run.loop.device
            train: BatchFacts | None = None
            losses: list[float] = []
            step_s = 0.0
            loop.train_mode()
            while len(losses) < STEPS:  # an epoch may be a single batch
                began = time.perf_counter()
                for batch in loop.train:
                    train = train or _facts(batch)
                    losses.append(float(loop.train_step(batch)))
                    step_s = time.perf_counter() - began
                    if len(losses) == STEPS:
                        break
                    began = time.perf_counter()
            tests = loop.evaluated["test"]
            start = tests.state_dict()
            test = _facts(next(iter(tests)))
            tests.load_state_dict(start)
            one = Pass(loop.model, tests, device, spec, loop.num_classes)
            pass_steps = iter(one)
            began = time.perf_counter()
            next(pass_steps)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            evaluate_s = (time.perf_counter() - began) / test.num_images
            pass_steps.close()
            outputs = one.logits().shape[1]
            assert train is not None
            return Probe(
                train=train,
                test=test,
                num_classes=len(run.rows.classes),
                losses=tuple(losses),
                findings=tuple(
                    findings(spec, train, test, len(run.rows.classes), outputs, losses)
                    + _unseen(set(run.rows.train.labels.tolist()), set(run.rows.test.labels.tolist()))
                ),
                notes=tuple(notes),
                device=device.type,
                device_name=provenance.device_name(device),
                seconds_per_step=step_s,
                seconds_per_evaluated_image=evaluate_s,
                peak_memory_bytes=provenance.peak_memory_bytes(device),
            )
        finally:
            run.close()


def findings(
    spec: RunSpec, train: BatchFacts, test: BatchFacts, num_classes: int, outputs: int, losses: list[float]
) -> list[str]:
    """What of a probe would make a row's numbers worthless, in words."""
    found = []
    if (train.height, train.width) != (test.height, test.width):
        found.append(
            f"train batches are {train.height}x{train.width}, test batches {test.height}x{test.width} pixels "
            f"(data.image_size {spec.data.image_size}, augment.train_crop {spec.augment.train_crop}): the model is "
            "tested on images of a size that it never saw"
        )
    elif train.height != spec.data.image_size:
        found.append(f"batches are {train.height} pixels high, data.image_size says {spec.data.image_size}")
    if abs(train.mean - test.mean) > MEAN_WITHIN * max(train.std, test.std):
        found.append(f"train batches have mean {train.mean:.2f}, test batches {test.mean:.2f}: normalised differently?")
    if max(train.std, test.std) > RATIO_WITHIN * min(train.std, test.std):
        found.append(f"train batches have deviation {train.std:.2f}, test batches {test.std:.2f}: scaled differently?")
    for split, facts in (("train", train), ("test", test)):
        if facts.label_min < 0 or facts.label_max >= num_classes:
            found.append(
                f"{split} labels run from {facts.label_min} to {facts.label_max}, the model has classes 0 to "
                f"{num_classes - 1}"
            )
    if outputs != num_classes:
        found.append(f"the model has {outputs} outputs, the data {num_classes} classes")
    if not all(math.isfinite(loss) for loss in losses):
        found.append(f"the loss of step {[math.isfinite(loss) for loss in losses].index(False)} is not a finite number")
    return found


def _unseen(train: set[int], test: set[int]) -> list[str]:
    """Classes that are tested and never trained."""
    unseen = sorted(test - train)
    if not unseen:
        return []
    shown = ", ".join(map(str, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
    return [f"{len(unseen)} classes of the test split have no training image (labels {shown})"]


def _facts(batch: Batch) -> BatchFacts:
    images = batch.images.double()
    return BatchFacts(
        num_images=len(images),
        height=images.shape[2],
        width=images.shape[3],
        mean=float(images.mean()),
        std=float(images.std()),
        label_min=int(batch.label_a.min()),
        label_max=int(batch.label_a.max()),
    )


def parent_of(spec: RunSpec, storage: Storage) -> RunFolder | None:
    """The folder of a spec's parent, if that has the checkpoint the spec wants."""
    if spec.init.kind != "parent":
        return None
    folder = RunFolder(storage, str(spec.init.source))
    return folder if storage.exists(folder.path("checkpoint/last/state.safetensors")) else None
