"""The Tune trainable: one run in one process, in short steps, so that it reports and stops within seconds."""

from __future__ import annotations

import os
from typing import Any

from ray import tune

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


def thread_environment(threads: int) -> dict[str, str]:
    """Environment that keeps BLAS, OpenMP and numba to a trial's cores."""
    return {name: str(threads) for name in THREAD_VARIABLES}


class RunActor(tune.Trainable):
    """Trains one run; a failure of the run is a result (`failure`), so that Tune retries only lost processes."""

    def setup(self, config: dict[str, Any]) -> None:
        """Opens or resumes the run of `config`: spec and exec (JSON), results (URI), report_s."""
        self._attempt: Any = None
        self._failure: str | None = None
        self._report_s = float(config["report_s"])
        threads = int(config["cpu_threads"])
        os.environ.update(thread_environment(threads))  # an inherited value would win over Ray's own setting
        from trainable.attempt import Attempt, RunFailed, RunLocked  # imports torch: only now, with threads capped
        from trainable.spec import ExecSpec, RunSpec
        from trainable.storage import Storage, StorageError

        self._failures = (RunFailed, RunLocked, StorageError)
        try:
            self._attempt = Attempt(
                RunSpec.model_validate_json(config["spec"]),
                ExecSpec.model_validate_json(config["exec"]),
                Storage(config["results"]),
            )
        except self._failures as error:
            self._failure = str(error)
        check_threads(threads)

    def step(self) -> dict[str, Any]:
        """Trains for a few seconds, to the next evaluation or to the end."""
        rows: list[dict[str, Any]] = []
        if self._failure is None:
            try:
                rows = self._attempt.advance(self._report_s)
            except self._failures as error:
                self._failure = str(error)
        if self._failure is not None:
            return {"done": True, "committed": False, "failure": self._failure, "progress": 0.0, "rows": []}
        done = self._attempt.done
        return {
            "done": done,
            "committed": done,
            "failure": None,
            "progress": self._attempt.progress,
            "rows": rows,
        }

    def cleanup(self) -> None:
        """Called when Tune stops the trial: leaves a checkpoint behind unless the run is over."""
        if self._attempt is not None:
            self._attempt.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Tune's own checkpoints are not used; a run keeps its own."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


def check_threads(threads: int) -> None:
    """Refuses a torch that runs more threads than the trial has cores: neighbours would slow each other down."""
    import torch

    if torch.get_num_threads() > threads:
        raise RuntimeError(f"torch runs {torch.get_num_threads()} threads, the trial was given {threads} cores")
