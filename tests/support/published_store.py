"""The published grid as a real results store: made-up predictions with exactly the published counts.

`write_published_store` gives every row of grid `paper` its published top-1, top-5 and macro precision, recall and F1
(`best_on_test`), its published learning curve, and the last epoch's top-1 (`final`). `commit_answers` writes one run
whose answers are given image by image.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from toy import made_up_from

from trainable import metrics, records, schemas
from trainable.spec import RunSpec
from trainable.storage import Storage
from tuner.grid import Grid, Selection, load_grid
from tuner.ledger import survey, write_manifest

ROOT = Path(__file__).resolve().parents[2]
NUM_TEST = 10_000
START = datetime(2025, 7, 30, 10, 45, tzinfo=UTC)
EARLY = ("Exp-4", "Exp-6", "Exp-12", "Exp-14")
"""Rows of the first of the two CutMix data paths that the study's table mixes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one evaluation answered: arrays over test images, classes 0..C-1."""

    num_classes: int
    labels: NDArray[np.int64]
    preds: NDArray[np.int64]
    second: NDArray[np.bool_]
    """Whether the label comes second where the answer is wrong; else it ties for last."""
    confidence: NDArray[np.float64]
    """Wanted probability of the answer; what is stored is near it."""

    def logits(self) -> NDArray[np.float16]:
        """[N, C]: the answer on top, the label second where it is, all others at 0."""
        num = len(self.labels)
        logits = np.zeros((num, self.num_classes), np.float16)
        floor, ceiling = 1.5 / self.num_classes, 1 - 1e-4
        wanted = np.clip(self.confidence, floor, ceiling)
        top = np.maximum(np.round(64 * np.log((self.num_classes - 1) * wanted / (1 - wanted))) / 64, 0.5)
        rows = np.arange(num)
        seconds = self.second & (self.preds != self.labels)
        logits[rows[seconds], self.labels[seconds]] = top[seconds] / 2  # eighths of sixteenths: exact in float16
        logits[rows, self.preds] = top
        return logits

    def predictions(self) -> metrics.Arrays:
        """The columns of the predictions table, as `trainable.metrics.predictions` computes them from `logits`."""
        rows = np.arange(len(self.labels))
        scores = self.logits()
        top = scores[rows, self.preds].astype(np.float64)
        own = scores[rows, self.labels].astype(np.float64)
        right = self.preds == self.labels
        seconds = self.second & ~right
        others = self.num_classes - 1 - seconds
        total = np.exp(top) + np.where(seconds, np.exp(own), 0) + others
        p_max, p_label, p_other = np.exp(top) / total, np.exp(own) / total, 1 / total
        sum_p2 = p_max**2 + np.where(seconds, p_label**2, 0) + others * p_other**2
        entropy = np.log(total) - (p_max * top + np.where(seconds, p_label * own, 0))
        first = np.arange(metrics.TOP + 1)[None, :].repeat(len(rows), axis=0)
        listed = [self.preds[:, None], np.where(seconds, self.labels, -1)[:, None], first]
        order = np.concatenate(listed, axis=1)
        again = (order[:, 2:] == order[:, :1]) | (order[:, 2:] == order[:, 1:2])
        keep = np.concatenate([np.ones((len(rows), 1), bool), seconds[:, None], ~again], axis=1)
        place = np.argsort(~keep, axis=1, kind="stable")[:, : min(metrics.TOP, self.num_classes)]
        top5 = np.take_along_axis(order, place, axis=1)
        shares = np.full(top5.shape, 0.0) + p_other[:, None]
        shares[:, 0] = p_max
        shares[seconds, 1] = p_label[seconds]
        return {
            "label": self.labels.astype(np.int16),
            "pred": self.preds.astype(np.int16),
            "correct": right,
            "label_rank": np.where(right, 1, np.where(seconds, 2, self.num_classes)).astype(np.int16),
            "p_label": p_label.astype(np.float32),
            "p_max": p_max.astype(np.float32),
            "nll_nats": (np.log(total) - own).astype(np.float32),
            "entropy_nats": entropy.astype(np.float32),
            "sum_p2": sum_p2.astype(np.float32),
            "top5_idx": top5.astype(np.int16),
            "top5_p": shares.astype(np.float32),
        }


def from_correct(correct: NDArray[np.bool_], num_classes: int, rng: np.random.Generator) -> Answers:
    """Answers that are right exactly where said, on balanced classes; wrong ones fall on any other class."""
    labels = np.arange(len(correct)) % num_classes
    wrong = (labels + rng.integers(1, num_classes, len(correct))) % num_classes
    return Answers(
        num_classes=num_classes,
        labels=labels,
        preds=np.where(correct, labels, wrong),
        second=rng.random(len(correct)) < 0.5,
        confidence=np.clip(correct.mean() + 0.2 * (correct - 0.5) + 0.1 * rng.normal(size=len(correct)), 0.02, 0.99),
    )


def commit_answers(
    storage: Storage,
    spec: RunSpec,
    evaluations: Mapping[str, Answers],
    *,
    curve: Mapping[str, Sequence[float]] | None = None,
    code: str = "a" * 64,
    attempt_id: str = "a1",
    trial: Mapping[str, Any] | None = None,
    others: Mapping[str, pa.Table] | None = None,
) -> None:
    """One finished run: attempt, tables, commit.

    Args:
        storage: the results root.
        spec: the run.
        evaluations: answers by evaluation name, `final` among them.
        curve: train_loss, train_top1, test_loss and test_top1 by epoch; None is a curve that rises to `final`.
        code: SHA-256 of the source that trained it.
        attempt_id: the attempt that finished it.
        trial: columns of its row of `trials` that are to be otherwise.
        others: tables that stand instead of the ones made here, or beside them.
    """
    final = float((evaluations["final"].preds == evaluations["final"].labels).mean())
    if curve is None:
        rise = np.linspace(0.5, 1, 10)
        curve = {
            "train_loss": list(2 - rise),
            "train_top1": list(final * rise),
            "test_loss": list(2.5 - rise),
            "test_top1": list(final * rise),
        }
    key = {"run_id": spec.run_id, "attempt_id": attempt_id}
    tables = {
        "trials": _one("trials", {**key, **_trial(spec, evaluations, curve), **(trial or {})}),
        "epochs": pa.Table.from_pylist(
            _epochs(key, spec, curve, len(evaluations["final"].labels)), schema=schemas.EPOCHS
        ),
        "predictions": pa.concat_tables([_predictions(key, spec, name, found) for name, found in evaluations.items()]),
        "logits": pa.concat_tables([_logits(key, spec, name, found) for name, found in evaluations.items()]),
        "provenance": _one("provenance", {**key, **_provenance(spec, code)}),
        **(others or {}),
    }
    records.start_attempt(storage, spec.run_id, attempt_id, {"number": 1, "host": "synthetic", "pid": 1})
    records.commit_run(storage, run_id=spec.run_id, attempt_id=attempt_id, dataset=spec.data.dataset, tables=tables)
    records.end_attempt(storage, spec.run_id, attempt_id, "done", None)


def _one(table: str, row: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([row], schema=schemas.SCHEMAS[table])


def _trial(spec: RunSpec, evaluations: Mapping[str, Answers], curve: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    final = evaluations["final"]
    classes = np.arange(final.num_classes, dtype=np.int16)
    epochs = len(curve["test_top1"])
    num_train = 5 * len(final.labels) if spec.data.dataset == "cifar100" else 10 * len(final.labels)
    steps = -(-num_train // spec.budget.batch_size)
    trial: dict[str, Any] = {
        **schemas.spec_columns(spec.model_dump(mode="json")),
        "dataset_published": True,
        "classes": classes.tolist(),
        "num_classes": final.num_classes,
        "num_train": num_train,
        "num_val": 0,
        "num_test": len(final.labels),
        "num_parameters": 23_712_932 if "resnet" in spec.model.name else 21_630_436,
        "steps": steps * epochs,
        "epochs": float(epochs),
        "train_s": 30.0 * epochs,
        "evaluate_s": 2.0 * epochs,
        "data_wait_s": 0.1 * epochs,
        "train_images_per_s": num_train / 30,
        "peak_memory_bytes": 3 << 30,
        "attempt_number": 1,
        "attempt_numerics_changed": False,
        "attempt_resumed_under_json": "[]",
        "ended_at": START + timedelta(minutes=30),
    }
    for name, found in evaluations.items():
        at = epochs - 1 if name == "final" else int(np.argmax(curve["test_top1"]))
        trial[f"{name}_eval_index"], trial[f"{name}_step"] = at, (at + 1) * steps
        for metric, value in metrics.summarise(found.predictions(), classes).items():
            trial[f"{name}_{metric}"] = value
    return trial


def _epochs(
    key: dict[str, str], spec: RunSpec, curve: Mapping[str, Sequence[float]], num_test: int
) -> list[dict[str, Any]]:
    mixed = spec.augment.mix != "none"
    rows = []
    for index, (loss, top1, test_loss, test_top1) in enumerate(
        zip(curve["train_loss"], curve["train_top1"], curve["test_loss"], curve["test_top1"], strict=True)
    ):
        num_train = 5 * NUM_TEST if spec.data.dataset == "cifar100" else 10 * NUM_TEST
        steps = -(-num_train // spec.budget.batch_size)
        common = {**key, "eval_index": index, "step": (index + 1) * steps, "epoch": index + 1.0}
        common["ended_at"] = START + timedelta(seconds=32 * (index + 1))
        train = {"top1": None if mixed else top1, "top1_mixed": top1 if mixed else None, "loss_nats": loss}
        train |= {"mix_lam_mean": 0.5 if mixed else None, "lr": 1e-3, "num_images": num_train, "train_s": 30.0}
        rows.append({**common, "split": "train", **train, "data_wait_s": 0.1, "images_per_s": num_train / 30})
        test = {"loss_nats": test_loss, "top1": test_top1, "top5": min(1.0, test_top1 + 0.2), "num_images": num_test}
        rows.append({**common, "split": "test", **test, "evaluate_s": 2.0})
    return rows


def _keyed(key: dict[str, str], spec: RunSpec, name: str, num: int) -> dict[str, pa.Array]:
    constant = {**key, "dataset": spec.data.dataset, "eval_name": name}
    columns = {column: pa.array([value] * num, pa.string()) for column, value in constant.items()}
    for column in ("dataset", "eval_name"):
        columns[column] = columns[column].dictionary_encode()
    return {**columns, "sample_id": pa.array(np.arange(num), pa.int32())}


def _predictions(key: dict[str, str], spec: RunSpec, name: str, answers: Answers) -> pa.Table:
    columns = _keyed(key, spec, name, len(answers.labels))
    for column, values in answers.predictions().items():
        if values.ndim == 2:
            whole = np.zeros((len(values), metrics.TOP), values.dtype)
            whole[:, : values.shape[1]] = values
            mask = np.arange(metrics.TOP)[None, :].repeat(len(values), axis=0) >= values.shape[1]
            flat = pa.array(whole.reshape(-1), mask=mask.reshape(-1))
            columns[column] = pa.FixedSizeListArray.from_arrays(flat, metrics.TOP)
        else:
            columns[column] = pa.array(values)
    return pa.table({field.name: columns[field.name] for field in schemas.PREDICTIONS}).cast(schemas.PREDICTIONS)


def _logits(key: dict[str, str], spec: RunSpec, name: str, answers: Answers) -> pa.Table:
    logits = answers.logits()
    offsets = np.arange(len(logits) + 1, dtype=np.int32) * logits.shape[1]
    columns = _keyed(key, spec, name, len(logits))
    columns["logits"] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(logits.reshape(-1)))
    return pa.table({field.name: columns[field.name] for field in schemas.LOGITS}).cast(schemas.LOGITS)


def _provenance(spec: RunSpec, code: str) -> dict[str, Any]:
    return {
        "spec_json": spec.canonical(),
        "numerics_json": json.dumps({"device": "cpu", "threads": 1}),
        "weights_report_json": "{}",
        "data_source": spec.data.dataset,
        "data_source_sha256": "b" * 64,
        "code_git_sha": "c" * 40,
        "code_git_dirty": False,
        "code_tree_sha256": code,
        "host_name_sha256": "d" * 64,
        "host_device": "synthetic",
        "host_platform": "synthetic",
        "host_versions_json": "{}",
        "attempt_history_json": "[]",
        "started_at": START,
        "ended_at": START + timedelta(minutes=30),
    }


@cache
def published_curves() -> dict[str, dict[str, list[float]]]:
    """The study's learning curves by row: train_loss, train_top1 (weighted by lambda where mixed), test_loss and
    test_top1 of 50 epochs; of several attempts at a row, the one whose best is the published value."""
    found: dict[str, dict[str, list[float]]] = json.loads((ROOT / "tests/data/published_curves.json").read_text())
    return found


def published_answers(published: Mapping[str, float], num_classes: int, rng: np.random.Generator) -> Answers:
    """Answers on 10,000 images with exactly the published top-1 and top-5 counts, and macro precision and F1 that
    round to the published percentages.

    Rows draw their images independently, so the error of a difference is that of independent proportions.
    """
    per_class = NUM_TEST // num_classes
    hits, given = _fit_confusion(published, num_classes, per_class, random.Random(int(rng.integers(1 << 30))))
    labels = np.arange(NUM_TEST) % num_classes
    preds = labels.copy()
    wrong = []
    for label in range(num_classes):
        images = rng.permutation(np.flatnonzero(labels == label))
        wrong.append(images[hits[label] :])
    missed = np.concatenate(wrong)
    guesses = rng.permutation(np.repeat(np.arange(num_classes), given - hits))
    while (clash := np.flatnonzero(guesses == labels[missed])).size:
        other = rng.permutation(len(guesses))[: clash.size]
        for one, two in zip(clash, other, strict=True):
            if guesses[one] != labels[missed[two]] and guesses[two] != labels[missed[one]]:
                guesses[one], guesses[two] = guesses[two], guesses[one]
    preds[missed] = guesses
    num_second = round(NUM_TEST * published["top5"]) - round(NUM_TEST * published["top1"])
    second = np.zeros(NUM_TEST, bool)
    second[rng.permutation(missed)[:num_second]] = True
    right = preds == labels
    confidence = np.clip(published["top1"] + 0.25 * (right - 0.5) + 0.12 * rng.normal(size=NUM_TEST), 0.02, 0.99)
    return Answers(num_classes=num_classes, labels=labels, preds=preds, second=second, confidence=confidence)


def _fit_confusion(
    published: Mapping[str, float], num_classes: int, per_class: int, draw: random.Random
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Hits and answers of every class, [C] each: hits sum to the top-1 count, answers to all images, and the macro
    precision and F1 are within 4e-5 of the published ones. By annealing."""
    total = round(NUM_TEST * published["top1"])
    hits = [total // num_classes + (k < total % num_classes) for k in range(num_classes)]
    given = [per_class] * num_classes
    wanted_precision, wanted_f1 = (num_classes * published[name] for name in ("precision_macro", "f1_macro"))

    def off(one: float, two: float) -> float:
        return max(abs(one_sum - wanted) for one_sum, wanted in ((one, wanted_precision), (two, wanted_f1)))

    def parts(hit: int, answers: int) -> tuple[float, float]:
        return (hit / answers if answers else 0.0), 2 * hit / (per_class + answers)

    own = [parts(hit, answers) for hit, answers in zip(hits, given, strict=True)]
    precision, f1 = (sum(part) for part in zip(*own, strict=True))

    for step in range(400_000):
        miss = off(precision, f1)
        if miss < 4e-5 * num_classes:
            return np.array(hits), np.array(given)
        one, two, kind = draw.randrange(num_classes), draw.randrange(num_classes), draw.random()
        size = draw.randint(1, 3 if miss < 0.2 else per_class // 2)
        hit1, hit2 = (hits[one] - size, hits[two] + size) if kind < 0.6 else (hits[one], hits[two])
        given1, given2 = (given[one] - size, given[two] + size) if kind > 0.3 else (given[one], given[two])
        if one == two or not 0 <= hit1 <= given1 or not hit2 <= min(given2, per_class) or given2 > NUM_TEST // 3:
            continue
        new1, new2 = parts(hit1, given1), parts(hit2, given2)
        then = precision - own[one][0] - own[two][0] + new1[0] + new2[0]
        then_f1 = f1 - own[one][1] - own[two][1] + new1[1] + new2[1]
        if (worse := off(then, then_f1) - miss) < 0 or draw.random() < math.exp(
            -worse / (0.02 * 0.9995 ** (step % 20_000) + 1e-4)
        ):
            hits[one], hits[two], given[one], given[two] = hit1, hit2, given1, given2
            own[one], own[two], precision, f1 = new1, new2, then, then_f1
    raise AssertionError(f"no confusion found for {dict(published)}: {precision / num_classes}, {f1 / num_classes}")


def at_top1(answers: Answers, hits: int, rng: np.random.Generator) -> Answers:
    """The same answers with another number of right ones: some right ones become wrong, or wrong ones right."""
    right = answers.preds == answers.labels
    surplus = int(right.sum()) - hits
    preds = answers.preds.copy()
    if surplus > 0:
        images = rng.permutation(np.flatnonzero(right))[:surplus]
        preds[images] = (answers.labels[images] + rng.integers(1, answers.num_classes, surplus)) % answers.num_classes
    else:
        images = rng.permutation(np.flatnonzero(~right))[:-surplus] if surplus else []
        preds[images] = answers.labels[images]
    return replace(answers, preds=preds)


def write_published_store(
    storage: Storage,
    *,
    seeds: Sequence[int] = (223,),
    final: str = "logged",
    run_sd: float = 0.005,
    labels: Sequence[str] | None = None,
    mixed_code: bool = True,
) -> Grid:
    """Grid `paper` with its 24 rows done.

    Args:
        storage: an empty results root.
        seeds: the first has exactly the published counts; the others' top-1 scatters around them.
        final: `logged`: evaluation `final` is at the last epoch's top-1 of the study's logs. `published`: it is the
            published evaluation itself, so that both have the same counts.
        run_sd: standard deviation over seeds of a run's top-1, a fraction.
        labels: only these rows; None for all.
        mixed_code: the rows of EARLY have another source hash than the rest, as in the study.
    """
    only = tuple(("label", label) for label in labels or ())
    grid = load_grid(ROOT / "experiments.yaml", "paper", Selection(seeds=tuple(seeds), only=only))
    for run in grid.runs:
        assert run.published is not None
        published = {key: value for key, value in run.published.model_dump().items() if isinstance(value, float)}
        number = seeds.index(run.spec.seed)
        rng = np.random.default_rng([number, made_up_from(run.spec)])
        curve = published_curves()[run.label]
        best = published_answers(published, 100 if run.axes["dataset"] == "cifar100" else 200, rng)
        logged = curve["test_top1"][-1] if final == "logged" else published["top1"]
        shift = run_sd * rng.normal() if number else 0.0
        if shift:
            factor = max(0.2, 1 + shift / published["top1"])
            curve = {**curve, "test_top1": [round(factor * top1, 4) for top1 in curve["test_top1"]]}
            best = at_top1(best, round(NUM_TEST * factor * published["top1"]), rng)
            logged = round(factor * logged, 4)
        evaluations = {"final": at_top1(best, round(NUM_TEST * logged), rng), "best_on_test": best}
        code = ("e" if mixed_code and run.label in EARLY else "a") * 64
        commit_answers(storage, run.spec, evaluations, curve=curve, code=code)
    write_manifest(storage, grid, survey(storage, grid), [], {})
    return grid
