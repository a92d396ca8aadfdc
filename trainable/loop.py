"""The training loop, top to bottom: steps, evaluations, selection of checkpoints.

`TrainingLoop.run` is a generator that pauses after every batch, so that its caller may look at the clock, save, or stop
at any batch of training and evaluation. Everything that a checkpoint must restore is in `Position` and in the tensors
of model and optimiser; an evaluation that was stopped half-way is simply made again.

Nothing inside an epoch waits for the device: sums stay there and are read at evaluations, saves and pauses.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datasets.epochs import Batch, Epochs
from trainable.evaluate import Pass, autocast
from trainable.graphs import NotTheSame, Record, RecordedStep, record_on_card
from trainable.metrics import TOP, label_ranks
from trainable.optim import evaluation_interval, learning_rate, total_steps, whole_steps
from trainable.spec import RunSpec
from trainable.surgery import State

EpochRow = dict[str, Any]
"""One split at one evaluation: the columns of the `epochs` table without the keys."""


STEP_COLUMNS = ("loss_nats", "loss_total_nats", "grad_norm", "top1")
"""Recorded of every step: loss of the (last) head, loss with those of auxiliary heads, norm of the gradients before
clipping, and hits of the batch, weighted by lam where images are mixed."""


RECORD_FROM = 100
"""Steps to go below which recording one would cost more than it saves."""


class NonFiniteLoss(Exception):
    """Training diverged: its loss, or the model's logits, is no finite number; the message names the step."""


@dataclass(kw_only=True, slots=True)
class Sums:
    """What training steps since the last evaluation added up to.

    loss, correct and lam are added up on the device, one after another and never in parts: how often somebody looks
    at them must not change their last bit.
    """

    num_images: int = 0
    loss: float = 0.0
    correct: float = 0.0
    """lam-weighted hits where images are mixed."""
    lam: float = 0.0
    train_s: float = 0.0
    data_wait_s: float = 0.0


@dataclass(kw_only=True, slots=True)
class Position:
    """How far a run has come; all of it JSON."""

    step: int = 0
    """Optimiser steps done."""
    evaluated: int = -1
    """The step at which the last evaluation was made; -1 before the first."""
    sums: Sums = field(default_factory=Sums)
    rows: list[EpochRow] = field(default_factory=list)
    best: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per selected name: eval_index, step and top1 of the evaluation whose weights are kept."""
    evaluate_s: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Position:
        """From a checkpoint."""
        return cls(**{**values, "sums": Sums(**values["sums"])})


class TrainingLoop:
    """Trains one model by its spec.

    Args:
        spec: what to do.
        model: on the device.
        optimizer: over the model's parameters.
        train: the training loader.
        evaluated: the evaluation loaders by split, `test` and perhaps `val` and `train_<number>`.
        labels: the labels of those splits, in the loaders' order.
        num_classes: classes of the data; further outputs of the model are not evaluated.
        device: where the model is.
        frozen: modules below it that are not trained.
        position: where to go on.
    """

    def __init__(
        self,
        *,
        spec: RunSpec,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        train: Epochs[Any],
        evaluated: Mapping[str, Epochs[Any]],
        labels: dict[str, NDArray[np.int64]],
        num_classes: int,
        device: torch.device,
        frozen: Sequence[nn.Module],
        position: Position,
    ) -> None:
        self.spec, self.model, self.optimizer, self.device = spec, model, optimizer, device
        self.train, self.evaluated, self.labels, self.num_classes = train, evaluated, labels, num_classes
        self.position = position
        self.best_weights: dict[str, State] = {}
        """Weights that became the best since the last save, on the CPU."""
        self.final_logits: NDArray[np.float32] | None = None
        """Of the test split at the last step, once that evaluation has been made in this process."""
        self.total = total_steps(spec.budget, len(train))
        self._scheduled = whole_steps(spec.budget, len(train))
        self.interval = evaluation_interval(spec.evaluate, len(train))
        self._mixed = spec.augment.mix != "none"
        self._fixed = frozen if spec.optim.frozen_batchnorm == "fixed" else ()
        self.average: AveragedModel | None = None
        """The moving average of the weights, where the spec asks for one."""
        if spec.optim.ema_decay is not None:
            follow = get_ema_multi_avg_fn(spec.optim.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=follow)
        self.steps: torch.Tensor | None = None
        """What is recorded of every step, [total, 4] float64 on the device: the columns of STEP_COLUMNS."""
        if spec.evaluate.record_steps:
            self.steps = torch.zeros(self.total, len(STEP_COLUMNS), dtype=torch.float64, device=device)
        sums = position.sums
        self._device_sums = torch.tensor([sums.loss, sums.correct, sums.lam], dtype=torch.float64, device=device)
        self._first_bad = torch.full((1,), -1, dtype=torch.int64, device=device)
        self._device_step = torch.full((1,), position.step, dtype=torch.int64, device=device)
        self._recorded: RecordedStep | None = None
        self._record: Record | None = record_on_card if device.type == "cuda" and self._may_record() else None
        self.not_recorded: str | None = None
        """Why steps are made one kernel after another on a card, where that was found out by trying."""

    def run(self) -> Iterator[list[EpochRow]]:
        """Trains to the end. Yields after every batch: the new rows after an evaluation, nothing otherwise.

        Raises:
            NonFiniteLoss: at the next evaluation or `check_finite` after the loss was not a number.
        """
        position = self.position
        while True:
            due = position.step % self.interval == 0 and position.step > 0
            if (due or position.step == self.total) and position.evaluated != position.step:
                yield from self._evaluate()
            if position.step == self.total:
                return
            self.train_mode()
            asked = time.perf_counter()
            for batch in self.train:
                position.sums.data_wait_s += time.perf_counter() - asked
                self.train_step(batch)
                position.sums.train_s += time.perf_counter() - asked
                yield []
                if position.step == self.total or position.step % self.interval == 0:
                    break
                asked = time.perf_counter()

    def _may_record(self) -> bool:
        """A step that looks at numbers of its own on the host would be recorded with what it saw the first time."""
        model = self.spec.model
        return self.average is None and model.input_norm == "none" and model.mixstyle_depth == 0

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that are evaluated, selected and kept."""
        return self.model if self.average is None else self.average.module

    def train_mode(self) -> None:
        """Puts the model into training mode, but for frozen modules that are to stay as they were loaded."""
        self.model.train()
        for module in self._fixed:
            module.eval()

    def rate(self, step: int) -> float:
        """The learning rate of step `step` (0-based); a compressed budget takes longer strides over the schedule."""
        stride = step * self._scheduled // max(1, self.total)
        return learning_rate(self.spec.optim, stride, self._scheduled, len(self.train))

    def train_step(self, batch: Batch) -> torch.Tensor:
        """One optimiser step. Returns the batch's mean loss in nats, on the device."""
        position = self.position
        lr = self.rate(position.step)
        for group in self.optimizer.param_groups:
            rate = lr * group.get("lr_scale", 1.0)
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        given = (batch.images, batch.label_a, batch.label_b, batch.lam)
        parts = tuple(part.to(self.device, non_blocking=True) for part in given)
        if self._record is not None and self.total - position.step >= RECORD_FROM:
            self._try_to_record(parts)
        recorded = self._recorded
        step = recorded if recorded is not None and recorded.num_images == len(batch.lam) else self._step
        mean_loss = step(*parts)
        position.sums.num_images += len(batch.lam)
        position.step += 1
        return mean_loss

    def _step(
        self, images: torch.Tensor, label_a: torch.Tensor, label_b: torch.Tensor, lam: torch.Tensor
    ) -> torch.Tensor:
        """Forward, backward, update and sums, nothing of which looks at the host or makes it wait."""
        spec = self.spec
        with autocast(self.device, spec.optim.precision):
            outputs = self.model(images)
        logits, *auxiliary = outputs if isinstance(outputs, tuple) else (outputs,)
        losses = [
            mixed_cross_entropy(one.float(), label_a, label_b, lam, spec.optim.label_smoothing)
            for one in (logits, *auxiliary)
        ]
        loss = sum(losses[1:], losses[0])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self._gradient_norm()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

        with torch.no_grad():
            guess = logits.argmax(dim=1)
            hits = lam * (guess == label_a) + (1 - lam) * (guess == label_b)
            mean_loss = loss.detach().double()
            self._device_sums += torch.stack([mean_loss * len(lam), hits.double().sum(), lam.double().sum()])
            bad = ~torch.isfinite(mean_loss) & (self._first_bad < 0)
            self._first_bad.copy_(torch.where(bad, self._device_step, self._first_bad))
            if self.steps is not None and norm is not None:
                share = hits.double().mean()
                found = torch.stack([losses[0].double(), mean_loss, norm.double(), share])
                self.steps.index_copy_(0, self._device_step, found[None])
            self._device_step += 1
        return mean_loss

    def _try_to_record(self, parts: tuple[torch.Tensor, ...]) -> None:
        """Records the step where one can; where not, `not_recorded` says why and steps are made plainly."""
        assert self._record is not None
        if len(parts[0]) < self.spec.budget.batch_size:
            return
        record, self._record = self._record, None
        try:
            self._recorded = RecordedStep(self._step, parts, self._changed, record)
        except (NotTheSame, RuntimeError) as error:
            self.not_recorded = f"steps are not replayed as a CUDA graph ({str(error).splitlines()[0]})"

    def _changed(self) -> list[torch.Tensor]:
        """Every tensor that a step changes; those that the optimiser makes in its first step come last."""
        found = [*self.model.parameters(), *self.model.buffers(), self._device_sums, self._first_bad, self._device_step]
        if self.steps is not None:
            found.append(self.steps)
        entries = [self.optimizer.state[parameter] for parameter in self.optimizer.state]
        return found + [value for entry in entries for value in entry.values() if isinstance(value, torch.Tensor)]

    def _gradient_norm(self) -> torch.Tensor | None:
        """Clips the gradients where the spec says so; their norm before that, where somebody wants to know it."""
        clip = self.spec.optim.clip_norm
        if clip is None and self.steps is None:
            return None
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return torch.nn.utils.clip_grad_norm_(trained, float("inf") if clip is None else clip)

    def collect(self) -> None:
        """Copies the sums from the device into `position` (waits for the device).

        Raises:
            NonFiniteLoss: the loss of some step was not a finite number.
        """
        sums = self.position.sums
        sums.loss, sums.correct, sums.lam = self._device_sums.tolist()
        if (step := int(self._first_bad)) >= 0:
            lr = self.rate(step)
            raise NonFiniteLoss(
                f"the loss was not a finite number at step {step} (epoch {step / len(self.train):.2f}, lr {lr:.3g}); "
                "lower optim.lr, add optim.warmup_steps, or look at the data"
            )

    def _evaluate(self) -> Iterator[list[EpochRow]]:
        position = self.position
        self.collect()
        began = time.perf_counter()
        passes = {
            split: Pass(self.evaluated_model, loader, self.device, self.spec, self.num_classes)
            for split, loader in self.evaluated.items()
        }
        for one in passes.values():
            for _ in one:
                yield []
        logits = {split: finite_logits(one.logits(), f"{split} split", position.step) for split, one in passes.items()}
        evaluate_s = time.perf_counter() - began
        position.evaluate_s += evaluate_s
        common = {
            "eval_index": len({row["eval_index"] for row in position.rows}),
            "step": position.step,
            "epoch": position.step / len(self.train),
            "ended_at": datetime.now(UTC).isoformat(),
        }
        rows = [{**common, **self._train_row()}] if position.sums.num_images else []
        rows += [
            {**common, **_split_row(split, logits[split], self.labels[split]), "evaluate_s": evaluate_s}
            for split in sorted(logits)
        ]
        position.rows += rows
        position.sums = Sums()
        self._device_sums.zero_()
        position.evaluated = position.step
        self._select(rows)
        if position.step == self.total:
            self.final_logits = logits["test"]
        yield rows

    def _train_row(self) -> EpochRow:
        sums, step = self.position.sums, self.position.step
        hits = sums.correct / sums.num_images
        return {
            "split": "train",
            "num_images": sums.num_images,
            "lr": self.rate(step - 1),
            "loss_nats": sums.loss / sums.num_images,
            "top1": None if self._mixed else hits,
            "top1_mixed": hits if self._mixed else None,
            "mix_lam_mean": sums.lam / sums.num_images if self._mixed else None,
            "train_s": sums.train_s,
            "data_wait_s": sums.data_wait_s,
            "images_per_s": sums.num_images / sums.train_s if sums.train_s else None,
        }

    def _select(self, rows: list[EpochRow]) -> None:
        """Keeps the weights where a selected split's top-1 is strictly the highest so far: ties keep the earlier."""
        for name in self.spec.evaluate.select:
            row = next(row for row in rows if row["split"] == name.removeprefix("best_on_"))
            known = self.position.best.get(name)
            if known is None or row["top1"] > known["top1"]:
                self.position.best[name] = {key: row[key] for key in ("eval_index", "step", "top1")}
                self.best_weights[name] = {
                    key: value.detach().cpu().clone() for key, value in self.evaluated_model.state_dict().items()
                }


def finite_logits(logits: NDArray[np.float32], what: str, step: int) -> NDArray[np.float32]:
    """The logits of an evaluation, [N, C], as they are.

    Training may end, or BatchNorm's averages may overflow, before any loss shows it: no number of such a model counts.

    Raises:
        NonFiniteLoss: some are no finite numbers.
    """
    bad = int((~np.isfinite(logits)).any(axis=1).sum())
    if bad:
        raise NonFiniteLoss(
            f"the logits of {bad:,} of {len(logits):,} images of the {what} were not finite numbers at step {step}; "
            "lower optim.lr, add optim.warmup_steps, or look at the data"
        )
    return logits


def mixed_cross_entropy(
    logits: torch.Tensor, label_a: torch.Tensor, label_b: torch.Tensor, lam: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """Mean over the batch of lam * CE(label_a) + (1 - lam) * CE(label_b).

    Args:
        logits: [B, C] float32. label_a, label_b: [B] int64. lam: [B] float32.
        smoothing: this share of each target is spread evenly over the C outputs.
    """
    own = F.cross_entropy(logits, label_a, reduction="none", label_smoothing=smoothing)
    other = F.cross_entropy(logits, label_b, reduction="none", label_smoothing=smoothing)
    return (lam * own + (1 - lam) * other).mean()


def _split_row(split: str, logits: NDArray[np.float32], labels: NDArray[np.int64]) -> EpochRow:
    """Mean loss, top-1 and top-5 (ties count against the label) of one evaluated split."""
    scores = logits.astype(np.float64)
    top = scores.max(axis=1)
    own = scores[np.arange(len(labels)), labels]
    loss = top + np.log(np.exp(scores - top[:, None]).sum(axis=1)) - own
    return {
        "split": split,
        "num_images": len(labels),
        "loss_nats": float(loss.mean()),
        "top1": float((scores.argmax(axis=1) == labels).mean()),
        "top5": float((label_ranks(scores, labels) <= TOP).mean()),
    }
