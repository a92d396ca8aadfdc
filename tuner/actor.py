"""The Tune trainable: one run in one process, in short steps, so that it reports and stops within seconds."""

from __future__ import annotations

import os
from typing import Any

import ray
from ray import tune

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "OMP_THREAD_LIMIT",
)


def thread_environment(threads: int) -> dict[str, str]:
    """Environment that keeps BLAS, OpenMP and numba to a trial's cores.

    The last of them is a limit, the others are beginnings: with it a model that asks torch for more threads gets none.
    """
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


class RunActor(tune.Trainable):
    """Trains one run; a failure of the run is a result (`failure`), so that Tune retries only lost processes."""

    def __repr__(self) -> str:
        """What Ray's dashboard shows of the process. Asked once, so a worker that is reused keeps its first run's."""
        return f"first run: {self._name}"

    def setup(self, config: dict[str, Any]) -> None:
        """Takes `config`: label, spec and exec (JSON), results (URI), report_s, driver. The run is opened by the first
        step: Tune may start a process and throw it away when another has become free, which must leave no attempt."""
        self._config = config
        self._name = config["label"]
        self._attempt: Any = None
        self._failure: str | None = None
        self._out_of_memory = self._held = False
        self._report_s = float(config["report_s"])
        os.environ.update(thread_environment(int(config["cpu_threads"])))  # an inherited value would win over Ray's own

    def _open(self) -> None:
        """Opens or resumes the run."""
        config = self._config
        from trainable.attempt import Attempt, RunLocked  # imports torch: only now, with threads capped
        from trainable.spec import ExecSpec, RunSpec
        from trainable.storage import Storage

        try:
            self._attempt = Attempt(
                RunSpec.model_validate_json(config["spec"]),
                ExecSpec.model_validate_json(config["exec"]),
                Storage(config["results"]),
                {
                    "node": ray.util.get_node_ip_address(),
                    "gpus": ray.get_runtime_context().get_accelerator_ids()["GPU"],
                    "driver": config["driver"],
                },
            )
        except RunLocked as error:
            self._held = True
            self._fail(error)
        except Exception as error:
            self._fail(error)

    def step(self) -> dict[str, Any]:
        """Trains for a few seconds, to the next evaluation or to the end."""
        rows: list[dict[str, Any]] = []
        vitals: dict[str, Any] = {}
        if self._attempt is None and self._failure is None:
            self._open()
        if self._failure is None:
            run = self._attempt.run
            try:
                hold_threads(int(self._config["cpu_threads"]))
                rows = self._attempt.advance(self._report_s)
                vitals = _vitals(run, rows)
            except Exception as error:
                self._fail(error)
        if self._failure is not None:
            return {
                "done": True,
                "committed": False,
                "failure": self._failure,
                "out_of_memory": self._out_of_memory,
                "held": self._held,
                "progress": 0.0,
                "rows": [],
            }
        done = self._attempt.done
        return {
            "done": done,
            "committed": done,
            "failure": None,
            "out_of_memory": False,
            "held": False,
            "progress": self._attempt.progress,
            "rows": rows,
            **vitals,
        }

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leaves the run that Tune stopped, if any, and opens another in this same process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Called when Tune stops the trial: leaves a checkpoint behind unless the run is over."""
        if self._attempt is not None:
            self._attempt.stop()

    def _fail(self, error: Exception) -> None:
        known = type(error).__module__.startswith("trainable.")  # these say what happened and what to do
        self._failure = str(error) if known else f"{type(error).__name__}: {error}"
        self._out_of_memory = bool(getattr(error, "out_of_memory", False))

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Tune's own checkpoints are not used; a run keeps its own."""
        return {}

    def load_checkpoint(self, checkpoint: Any) -> None:
        """See `save_checkpoint`."""


def _vitals(run: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How fast a `TrainingRun` (None where it was done before) trains since its last evaluation, and how much memory
    it has taken."""
    if run is None:
        return {}
    from trainable import provenance

    sums = run.position.sums
    speed = next((row["images_per_s"] for row in rows if row["split"] == "train"), None)
    if speed is None and sums.train_s:
        speed = sums.num_images / sums.train_s
    return {"images_per_s": speed, "peak_memory_bytes": provenance.peak_memory_bytes(run.loop.device)}


def hold_threads(threads: int) -> None:
    """Sets torch back where a model set it to other threads than the trial's: its bits depend on their number."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
