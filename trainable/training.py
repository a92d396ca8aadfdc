"""`TrainingRun`: one run in progress, from its opened state to its tables. `opening.py` builds or resumes it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import nn

from datasets.store import Dataset
from datasets.subset import RunRows, first_rows
from trainable import provenance
from trainable.checkpoint import (
    Checkpoint,
    CheckpointError,
    RunFolder,
    model_state,
    pack_optimizer,
    unpack_optimizer,
)
from trainable.evaluate import Pass
from trainable.loading import ImagesOn, evaluation_loader, training_loader
from trainable.loop import EpochRow, Position, TrainingLoop, finite_logits
from trainable.models import scalars_of
from trainable.optim import build_optimizer
from trainable.spec import EvalName, ExecSpec, RunSpec
from trainable.surgery import LoadReport, State
from trainable.tables import AttemptInfo, RunResult, build_tables


class TrainingRun:
    """A run in progress. Built by `open_run`."""

    def __init__(
        self,
        spec: RunSpec,
        exec_spec: ExecSpec,
        folder: RunFolder,
        stores: Dataset,
        rows: RunRows,
        model: nn.Module,
        frozen: Sequence[nn.Module],
        on: ImagesOn,
        position: Position,
        report: LoadReport,
        notes: list[str],
    ) -> None:
        self.spec, self.exec_spec, self.folder, self.stores, self.rows = spec, exec_spec, folder, stores, rows
        self.notes = notes
        """What a person should know about how this run was opened."""
        self.report: dict[str, Any] = report.as_dict()
        device = on.device
        self.numerics = provenance.numerics(device, exec_spec.cpu_threads)
        self.numerics_changed = False
        """Whether any part of the run was computed under another numerics fingerprint."""
        self.code_sha256 = provenance.tree_sha256()
        self.resumed_under: list[dict[str, Any]] = []
        """Resumes under other numerics or code than before: the step, and what changed from what to what by name."""
        self.done = False
        evaluated = {"test": (stores.test, rows.test)}
        if rows.val is not None:
            evaluated["val"] = (stores.train, rows.val)
        if (first := spec.evaluate.train_first) is not None:
            evaluated[f"train_{first}"] = (stores.train, first_rows(rows.train, first))

        self.loop = TrainingLoop(
            spec=spec,
            model=model,
            optimizer=build_optimizer(spec.optim, model),
            train=training_loader(spec, stores.train, rows.train, on),
            evaluated={
                split: evaluation_loader(
                    spec,
                    store,
                    chosen,
                    on,
                    augmented=spec.evaluate.train_augmented and split not in ("test", "val"),
                )
                for split, (store, chosen) in evaluated.items()
            },
            labels={split: chosen.labels for split, (_, chosen) in evaluated.items()},
            num_classes=len(rows.classes),
            device=device,
            frozen=frozen,
            position=position,
        )
        self._scalars: dict[str, float] = {}
        self._logits: dict[EvalName, NDArray[np.float32]] = {}
        self._work = self._whole()
        self._saved_s = time.monotonic()
        self._complete = False
        self._torn = False

    @property
    def position(self) -> Position:
        """How far the run has come."""
        return self.loop.position

    @property
    def progress(self) -> float:
        """Share of the optimiser steps that are done, in [0, 1]."""
        return self.position.step / self.loop.total if self.loop.total else 0.0

    def advance(self, seconds: float = float("inf")) -> list[EpochRow]:
        """Trains to the next evaluation, the end, or until `seconds` have passed; saves when it is time.

        Returns:
            The rows of the evaluation that was made, or none.

        Raises:
            NonFiniteLoss: training diverged.
            StorageError: a checkpoint cannot be written.
        """
        deadline = time.monotonic() + seconds
        try:
            for rows in self._work:
                now = time.monotonic()
                if now - self._saved_s >= self.exec_spec.save_every_s:
                    self.save()
                if rows or now >= deadline:
                    break
            else:
                self.done = True
                return []
            if not rows:
                self.loop.collect()
            return rows
        except BaseException:  # also an interrupt, which may have come in the middle of a step
            self._torn = True
            raise

    def save(self) -> None:
        """Writes a checkpoint from which the run continues to the very same bits. After `advance` was interrupted it
        writes none: the former one counts.

        Raises:
            NonFiniteLoss: there is nothing worth saving any more.
            StorageError: cannot be written; the former checkpoint is intact.
        """
        if self._complete or self._torn:
            return
        self.loop.collect()
        tensors = {f"model.{name}": value for name, value in self.loop.model.state_dict().items()}
        optimizer, optimizer_meta = pack_optimizer(self.loop.optimizer)
        tensors |= optimizer
        if self.loop.average is not None:
            tensors |= {f"average.{name}": value for name, value in self.loop.average.state_dict().items()}
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.loop.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.loop.device)
        self._write(tensors, {"optimizer": optimizer_meta, "loader": self.loop.train.state_dict(), "complete": False})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts the tensors, the loader and torch's generator back to where `save` found them.

        Raises:
            CheckpointError: it is of other steps or classes than the run, or its parts contradict each other.
            KeyError, TypeError, ValueError, RuntimeError: it has not what this version wrote. (The run may then have
                taken a part of it, and cannot be used.)
        """
        meta = checkpoint.meta
        self._check(meta)
        self.report = meta["weights_report"]
        changed = provenance.differences(meta["numerics"], self.numerics)
        self.numerics_changed = meta["numerics_changed"] or bool(changed)
        if changed:
            self.notes.append(f"resumed under other numerics ({said(changed)}): bits may differ; it is marked")
        code = meta.get("code_sha256", self.code_sha256)  # older versions did not say
        if code != self.code_sha256:
            changed["code"] = [code[:12], self.code_sha256[:12]]
            self.notes.append(f"resumed with other code ({code[:12]} to {self.code_sha256[:12]}); it is marked")
        self.resumed_under = [*meta.get("resumed_under", [])]
        if changed:
            self.resumed_under.append({"step": self.position.step, "changed": changed})
        self.loop.model.load_state_dict(model_state(checkpoint))
        if self.loop.steps is not None:
            recorded = checkpoint.tensors["steps"]
            self.loop.steps[: len(recorded)] = recorded
        if meta["complete"]:
            self._is_complete()
            return
        if self.loop.average is not None:
            self.loop.average.load_state_dict(
                {
                    name.removeprefix("average."): value
                    for name, value in checkpoint.tensors.items()
                    if name.startswith("average.")
                }
            )
        self.loop.train.load_state_dict(meta["loader"])
        unpack_optimizer(self.loop.optimizer, checkpoint.tensors, meta["optimizer"])
        torch.set_rng_state(checkpoint.tensors["rng.cpu"])
        if self.loop.device.type == "cuda" and "rng.cuda" in checkpoint.tensors:
            torch.cuda.set_rng_state(checkpoint.tensors["rng.cuda"], self.loop.device)

    def finish(self, attempt: AttemptInfo) -> dict[str, pa.Table]:
        """The run's tables, for `records.commit_run`.

        Raises:
            RuntimeError: called before `done`.
        """
        if not self.done:
            raise RuntimeError("finish() before the run is done; call advance() until done")
        result = RunResult(
            spec=self.spec,
            stores=self.stores,
            rows=self.rows,
            position=self.position,
            logits=self._logits,
            num_parameters=sum(parameter.numel() for parameter in self.loop.model.parameters()),
            steps=None if self.loop.steps is None else self.loop.steps.cpu().numpy(),
            rates=[self.loop.rate(step) for step in range(self.loop.total if self.loop.steps is not None else 0)],
            steps_per_epoch=len(self.loop.train),
            scalars=self._scalars,
            weights_report=self.report,
            numerics=self.numerics,
            numerics_changed=self.numerics_changed,
            resumed_under=self.resumed_under,
            host=provenance.describe(self.loop.device),
            peak_memory_bytes=provenance.peak_memory_bytes(self.loop.device),
        )
        return build_tables(result, attempt)

    def close(self) -> None:
        """Stops the loaders' threads. What was not saved is lost."""
        self._work.close()
        self.loop.train.close()
        for loader in self.loop.evaluated.values():
            loader.close()

    def _whole(self) -> Generator[list[EpochRow], None, None]:
        """Training, then the predictions of every evaluation by name; pauses wherever the loop does."""
        yield from self.loop.run()
        yield from self._predict("final")
        self._scalars = scalars_of(self.loop.evaluated_model)
        if not self._complete:  # from here on the model holds other weights than the last step's
            tensors = {f"model.{name}": value for name, value in self.loop.evaluated_model.state_dict().items()}
            self._write(tensors, {"complete": True})
            self._is_complete()
        for name in self.spec.evaluate.select:
            yield from self._predict(name)

    def _is_complete(self) -> None:
        """The last checkpoint holds the weights that are evaluated; an average of them has been put in their place."""
        self._complete = True
        self.loop.average = None

    def _predict(self, name: EvalName) -> Generator[list[EpochRow], None, None]:
        loop = self.loop
        if name == "final" and loop.final_logits is not None:
            self._logits[name] = loop.final_logits
            return
        if name != "final":
            best = self.position.best[name]
            if best["step"] == loop.total:
                self._logits[name] = self._logits["final"]
                return
            try:
                loop.model.load_state_dict(model_state(self.folder.load(name)))
            except (FileNotFoundError, CheckpointError) as error:
                raise CheckpointError(f"{error}; lost while the run went on: the same command begins it anew") from None
        began = time.perf_counter()
        one = Pass(loop.evaluated_model, loop.evaluated["test"], loop.device, self.spec, loop.num_classes)
        for _ in one:
            yield []
        self._logits[name] = finite_logits(one.logits(), f"test split ({name})", self.position.step)
        self.position.evaluate_s += time.perf_counter() - began
        self._check_against_curve(name)

    def _check_against_curve(self, name: EvalName) -> None:
        """The stored predictions must give the top-1 that was seen at that step, or the kept weights are not those."""
        step = self.loop.total if name == "final" else self.position.best[name]["step"]
        seen = next(row["top1"] for row in self.position.rows if row["step"] == step and row["split"] == "test")
        found = float((self._logits[name].argmax(axis=1) == self.rows.test.labels).mean())
        if found != seen and not self.numerics_changed:
            aside = self.folder.set_aside()
            raise CheckpointError(
                f"{self.folder.path('checkpoint')}: the weights kept as {name} give top-1 {found:.4f} on the test "
                f"split, {seen:.4f} was seen at step {step}; set aside as {aside}, the same command begins the run anew"
            )

    def _check(self, meta: dict[str, Any]) -> None:
        """Refuses a checkpoint that would resume, but to something else."""
        position = self.position
        expected = {"total_steps": self.loop.total, "num_classes": len(self.rows.classes), "step": position.step}
        faults = [f"{key} {meta[key]}, not {value}" for key, value in expected.items() if meta.get(key, value) != value]
        batches = self.loop.total
        if not meta["complete"]:
            batches = meta["loader"]["epoch"] * len(self.loop.train) + meta["loader"]["batch"]
        if batches != position.step:
            faults.append(f"{batches} batches were read in {position.step} steps")
        if faults:
            raise CheckpointError(f"{self.folder.path('checkpoint/last')}: {'; '.join(faults)}")

    def _write(self, tensors: State, meta: dict[str, Any]) -> None:
        position = self.position
        if self.loop.steps is not None:
            tensors["steps"] = self.loop.steps[: position.step]
        self.folder.save(
            tensors,
            {
                **meta,
                "position": position.as_dict(),
                "step": position.step,
                "total_steps": self.loop.total,
                "num_classes": len(self.rows.classes),
                "numerics": self.numerics,
                "numerics_changed": self.numerics_changed,
                "code_sha256": self.code_sha256,
                "resumed_under": self.resumed_under,
                "weights_report": self.report,
            },
            self.loop.best_weights,
        )
        self.loop.best_weights = {}
        self._saved_s = time.monotonic()


def said(changed: Mapping[str, Sequence[Any]]) -> str:
    """What changed from what to what, for people."""
    return ", ".join(f"{name} {old} to {new}" for name, (old, new) in changed.items())
