"""The grids of the other studies as real results stores: made-up predictions near the published values.

`write_study_store` finishes the rows of `tiny_stages`, `ablations` or `vit_transfer` as their specs say: their own
evaluations and splits, a run of no steps with one evaluation, the table `steps` where it is asked for, learnt
temperatures. The evaluation that the published values are of reaches them, to the nearest image.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from published_store import START, at_top1, commit_answers, from_correct
from synthetic import write_dims
from toy import made_up_from

from datasets.published import PUBLISHED
from trainable import schemas
from trainable.spec import InitSpec, RunSpec
from trainable.storage import Storage
from tuner.facts import PinnedFacts
from tuner.grid import Grid, PlannedRun, Selection, load_grid
from tuner.ledger import survey, write_manifest

ROOT = Path(__file__).resolve().parents[2]
NUM_TEST = 400
"""Test images of every run: a multiple of every data set's number of classes."""
UNPUBLISHED = 0.3
"""Top-1 of rows that nothing was published of."""
PARAMETERS = {"torchvision/resnet18": 11_181_642, "timm/deit_tiny_patch16_224": 5_526_346, "vit": 1_506_586}
TEMPERATURES = {"log": 0.900, "vanilla": 0.892}


class Facts(PinnedFacts):
    """Every data set is prepared and all weights are at hand."""

    def content_sha256(self, dataset: str) -> str | None:
        return super().content_sha256(dataset) or "3" * 64

    def weights_sha256(self, init: InitSpec) -> str | None:
        return "4" * 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """When a run is evaluated and what it reaches, by evaluation."""

    steps: Sequence[int]
    per_epoch: int
    """Steps of an epoch."""
    test: NDArray[np.float64]
    train_first: NDArray[np.float64] | None
    """On the first training images; None where the spec does not ask for them."""


def load_study(name: str, seeds: Sequence[int] | None = None) -> Grid:
    """The grid as `experiments.yaml` has it, its data and weights at hand."""
    return load_grid(ROOT / "experiments.yaml", name, Selection(seeds=tuple(seeds) if seeds else None), Facts())


def write_study_store(
    storage: Storage, name: str, *, seeds: Sequence[int] | None = None, without: Sequence[str] = ()
) -> Grid:
    """A grid with its rows done.

    Args:
        storage: the results root.
        name: of the grid.
        seeds: instead of the file's.
        without: labels of rows that were not run.
    """
    grid = load_study(name, seeds)
    evaluated = grid.header.published_eval or "final"
    for run in grid.runs:
        if run.label not in without:
            _commit(storage, run, evaluated)
    for spec in {run.spec.data.dataset: run.spec for run in grid.runs}.values():
        classes = PUBLISHED[spec.data.dataset].num_classes
        write_dims(storage, spec.data.dataset, NUM_TEST, classes, content=spec.data.content_sha256)
    write_manifest(storage, grid, survey(storage, grid), [], {})
    return grid


def _commit(storage: Storage, run: PlannedRun, evaluated: str) -> None:
    spec, classes = run.spec, PUBLISHED[run.spec.data.dataset].num_classes
    rng = np.random.default_rng([made_up_from(run.spec), 2])
    course = course_of(run, evaluated, rng)
    final, best = (round(NUM_TEST * top1) for top1 in (course.test[-1], course.test.max()))
    correct = np.zeros(NUM_TEST, bool)
    correct[rng.permutation(NUM_TEST)[:best]] = True
    answers = from_correct(correct, classes, rng)
    evaluations = {"final": at_top1(answers, final, rng), "best_on_test": answers}
    key = {"run_id": spec.run_id, "attempt_id": "a1"}
    steps = steps_table(spec, key, course, rng)
    others = {"epochs": pa.Table.from_pylist(_epochs(spec, key, course, steps), schema=schemas.EPOCHS)}
    if spec.evaluate.record_steps:
        others["steps"] = steps
    at = int(np.argmax(course.test))
    trained = spec.budget.epochs != 0
    trial = {
        "num_train": PUBLISHED[spec.data.dataset].num_train,
        "num_parameters": PARAMETERS.get(spec.model.name, 25_000_000),
        "steps": course.steps[-1],
        "epochs": course.steps[-1] / course.per_epoch,
        "train_s": 60.0 if trained else 0.0,
        "data_wait_s": 0.1 if trained else 0.0,
        "train_images_per_s": 5000.0 if trained else None,
        "final_eval_index": len(course.steps) - 1,
        "final_step": course.steps[-1],
        "best_on_test_eval_index": at,
        "best_on_test_step": course.steps[at],
        "final_scalars_json": json.dumps(_scalars(spec, rng), sort_keys=True),
    }
    commit_answers(storage, spec, evaluations, trial=trial, others=others)


def course_of(run: PlannedRun, evaluated: str, rng: np.random.Generator) -> Course:
    """A course that reaches the published values where they were published: at their step, else as the evaluation says
    that they are of. Tied at the top exactly where that is 100 %."""
    spec, published = run.spec, run.published
    per_epoch = PUBLISHED[spec.data.dataset].num_train // spec.budget.batch_size
    total = spec.budget.steps if spec.budget.epochs is None else spec.budget.epochs * per_epoch
    every = spec.evaluate.every_steps or (spec.evaluate.every_epochs or 1) * per_epoch
    steps = list(range(every, (total or 0) + 1, every)) or [0]
    top1 = published.top1 if published and published.top1 is not None else UNPUBLISHED
    at = len(steps) - 1 if evaluated == "final" else 2 * len(steps) // 3
    if published and published.step is not None:
        at = steps.index(published.step)
    first = None
    if spec.evaluate.train_first is not None:
        known = published is not None and published.train_step is not None
        train_at = steps.index(published.train_step) if known else len(steps) - 1
        first = _peaked(len(steps), train_at, published.train_top1 if known else 0.5, 200, rng)
    return Course(
        steps=steps, per_epoch=per_epoch, test=_peaked(len(steps), at, top1, NUM_TEST, rng), train_first=first
    )


def _peaked(num: int, at: int, top: float, images: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """[num] shares of images: the highest at `at` alone, or there and later where all images are right."""
    hits = round(images * top)
    rise = np.floor(hits * (0.2 + 0.8 * (np.arange(num) + 1) / (at + 1)) - 2 - rng.integers(0, 3, num))
    later = hits - 1 - rng.integers(0, 4, num) if top < 1 else np.full(num, hits)
    found = np.where(np.arange(num) < at, np.minimum(rise, hits - 1), later)
    found[at] = hits
    return np.clip(found, 0, images) / images


def _epochs(spec: RunSpec, key: dict[str, str], course: Course, steps: pa.Table) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    losses, rates = steps["loss_total_nats"].to_numpy(), steps["lr"].to_numpy()
    before = 0
    for index, (step, top1) in enumerate(zip(course.steps, course.test.tolist(), strict=True)):
        common = {**key, "eval_index": index, "step": step, "epoch": step / course.per_epoch}
        common["ended_at"] = START + timedelta(seconds=index)
        if step:
            train = {"loss_nats": float(losses[before:step].mean()), "lr": float(rates[step - 1])}
            train |= {"top1": min(1.0, top1 + 0.05), "num_images": 1000, "train_s": 1.0, "data_wait_s": 0.0}
            rows.append({**common, "split": "train", **train})
        before = step
        evaluated = {"test": (top1, NUM_TEST)}
        if course.train_first is not None:
            evaluated[f"train_{spec.evaluate.train_first}"] = (float(course.train_first[index]), 200)
        for split, (value, images) in sorted(evaluated.items()):
            numbers = {"loss_nats": 3 - value, "top1": value, "top5": min(1.0, value + 0.2), "evaluate_s": 0.1}
            rows.append({**common, "split": split, "num_images": images, **numbers})
    return rows


def steps_table(spec: RunSpec, key: dict[str, str], course: Course, rng: np.random.Generator) -> pa.Table:
    """What is recorded of every step, as noisy as single batches are; the loss falls at the beginning of every epoch, as
    memorised images come again."""
    step = np.arange(1, course.steps[-1] + 1)
    loss = 4.5 * 0.85 ** np.minimum(step // course.per_epoch, 20) * np.exp(rng.normal(0, 0.08, len(step)))
    columns = {name: [value] * len(step) for name, value in key.items()} | {
        "step": step,
        "epoch": step / course.per_epoch,
        "lr": spec.optim.lr * (1 - step / (2 * len(step) + 1)),
        "loss_nats": loss,
        "loss_total_nats": loss * (3 if spec.model.vit is not None and spec.model.vit.aux_depths else 1),
        "grad_norm": rng.gamma(4, 0.5, len(step)),
        "top1": np.clip(1 - loss / 5 + rng.normal(0, 0.03, len(step)), 0, 1),
    }
    return pa.table({field.name: columns[field.name] for field in schemas.STEPS}).cast(schemas.STEPS)


def _scalars(spec: RunSpec, rng: np.random.Generator) -> dict[str, float]:
    if spec.model.vit is None or spec.model.vit.temperature == "none":
        return {}
    middle = TEMPERATURES[spec.model.vit.temperature]
    return {f"temperature.{block}": float(middle + rng.normal(0, 0.04)) for block in range(spec.model.vit.depth)}
