"""Ray's callbacks for TensorBoard, W&B and MLflow, given our names, folders and scalars instead of Tune's.

Tune's own trial folder is a temporary one, its trial ids are random and its results hold lists and JSON, so each
callback sees a `_Shown` in place of the trial and an evaluation's scalars in place of the result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.tune.logger import TBXLoggerCallback

from trainable.storage import Storage
from tuner.loggers import Scalar, evaluations, file_name, folder, parameters


@dataclass(frozen=True, kw_only=True, eq=False)
class _Shown:
    """What a tracker sees of a trial. Equal only to itself, as Tune's trials are."""

    name: str
    trial_id: str
    config: dict[str, Scalar]
    local_path: str
    experiment_dir_name: str

    @property
    def evaluated_params(self) -> dict[str, Scalar]:
        """TensorBoard's hyperparameters."""
        return self.config

    def init_local_path(self) -> None:
        """Makes the folder that the tracker writes to."""
        Path(self.local_path).mkdir(parents=True, exist_ok=True)

    def __str__(self) -> str:
        return self.name


class _Translated:
    """Put before one of Ray's callbacks, it tells it of evaluations only, under a run's own name."""

    def show_as(self, show: Callable[[Any], _Shown]) -> None:
        """Sets how a trial is shown."""
        self._show, self._known = show, dict[str, _Shown]()

    def log_trial_start(self, trial: Any) -> None:
        super().log_trial_start(self._shown(trial))  # type: ignore[misc]

    def log_trial_result(self, iteration: int, trial: Any, result: Mapping[str, Any]) -> None:
        for scalars in evaluations(result["rows"]):
            step = int(scalars.pop("step"))
            super().log_trial_result(step, self._shown(trial), {**scalars, "training_iteration": step})  # type: ignore[misc]

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        failed = failed or (trial.last_result or {}).get("failure") is not None
        super().log_trial_end(self._shown(trial), failed=failed)  # type: ignore[misc]

    def _shown(self, trial: Any) -> _Shown:
        run_id = trial.config["run_id"]
        if run_id not in self._known:
            self._known[run_id] = self._show(trial)
            self._known[run_id].init_local_path()
        return self._known[run_id]

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles it for `Tuner.restore`, which is never used here


class _TensorBoard(_Translated, TBXLoggerCallback):
    """An event file a run."""


def build_loggers(names: tuple[str, ...], grid: str, labels: Mapping[str, str], storage: Storage) -> list[Any]:
    """Tune callbacks for the trackers of `check_loggers`.

    Args:
        names: the trackers.
        grid: the grid's name: TensorBoard's folder, the project of W&B, the experiment of MLflow.
        labels: by run id.
        storage: the results root, on this machine.
    """
    build = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
    callbacks = []
    for name in names:
        callback, place = build[name](grid, storage)
        callback.show_as(_showing(grid, labels, place))
        callbacks.append(callback)
    return callbacks


def _showing(grid: str, labels: Mapping[str, str], place: Callable[[str], Path]) -> Callable[[Any], _Shown]:
    def show(trial: Any) -> _Shown:
        run_id = trial.config["run_id"]
        return _Shown(
            name=file_name(labels[run_id], run_id),
            trial_id=run_id,
            config={"run_id": run_id, "label": labels[run_id], **parameters(json.loads(trial.config["spec"]))},
            local_path=str(place(file_name(labels[run_id], run_id))),
            experiment_dir_name=grid,
        )

    return show


_Built = tuple[Any, Callable[[str], Path]]
"""A callback, and the folder for a run's name."""


def _tensorboard(grid: str, storage: Storage) -> _Built:
    return _TensorBoard(), lambda name: folder(storage, "tensorboard") / grid / name


def _wandb(grid: str, storage: Storage) -> _Built:
    """Offline unless the person's WANDB_MODE says otherwise; `wandb sync` sends it on later."""
    from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

    class Writer(_WandbLoggingActor):
        """Ends only when W&B's own process has written everything: Ray kills both as soon as `run` returns."""

        def run(self) -> None:
            super().run()
            self._wandb.teardown()

    class Wandb(_Translated, WandbLoggerCallback):
        """A W&B run a run, written by a process of its own."""

        _logger_actor_cls = Writer

    mode = os.environ.setdefault("WANDB_MODE", "offline")
    os.environ.setdefault("WANDB_SILENT", "true")
    home = folder(storage, "wandb")
    # W&B makes a folder named wandb below `dir`.
    return Wandb(project=grid, group=grid, mode=mode, dir=str(home.parent)), lambda name: home


def _mlflow(grid: str, storage: Storage) -> _Built:
    """A file store, which no server has to run for."""
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class Mlflow(_Translated, MLflowLoggerCallback):
        """An MLflow run a run."""

    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 asks to be told that it is meant
    home = folder(storage, "mlflow")
    home.mkdir(parents=True, exist_ok=True)
    return Mlflow(tracking_uri=home.as_uri(), experiment_name=grid), lambda name: home
