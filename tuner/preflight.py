"""Before a long grid: two real steps of every row, and what its train and test batches look like beside each other.

Each row is probed by a Ray task with the row's resources (`trainable/probe.py`), so that what was measured is what the
trial will take; the measurements join the store and replace the cost model's guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from rich.console import Console
from rich.table import Table

from trainable.costs import CostRecord, shape_of, write_cost
from trainable.spec import ExecSpec, RunSpec
from trainable.storage import Storage
from tuner.grid import PlannedRun
from tuner.resources import GIB, Bundle


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What the probe of one row said."""

    run: PlannedRun
    probe: Any
    """A `trainable.probe.Probe`; None where it could not be made."""
    faults: tuple[str, ...]
    """What is wrong, in words; empty when the row may be trained."""


def check_rows(
    runs: Sequence[PlannedRun],
    bundles: Mapping[str, Bundle],
    *,
    storage: Storage,
    results: str,
    exec_spec: ExecSpec,
    device: Callable[[float], str],
    say: Callable[[str], None],
) -> list[Checked]:
    """Probes runs on the connected cluster, as many at once as fit.

    Args:
        runs: one of every row.
        bundles: what each asks for, by run id.
        storage: the results root, where the measurements are added.
        results: its path or URI as the tasks are to open it.
        exec_spec: where data and weights lie; device and threads of a trial.
        device: where a trial with a given share trains.
        say: is told how far it has come.
    """
    waiting: dict[Any, PlannedRun] = {}
    for run in runs:
        bundle = bundles[run.run_id]
        executed = {"gpu_fraction": bundle.share, "device": device(bundle.share)}
        calls = 1 if bundle.share else 0  # a process keeps what it reserved on a card
        asked = ray.remote(max_calls=calls, max_retries=0)(probe_row).options(
            num_cpus=bundle.cpus,
            num_gpus=bundle.share,
            memory=bundle.memory_bytes or None,
        )
        settings = exec_spec.model_copy(update=executed).model_dump_json()
        waiting[asked.remote(run.spec.canonical(), settings, results)] = run
    checked: dict[str, Checked] = {}
    while waiting:
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        run = waiting.pop(ready)
        try:
            answer = ray.get(ready)
        except RayError as error:
            answer = f"its process died ({str(error).splitlines()[0]})"
        if isinstance(answer, str):
            checked[run.run_id] = Checked(run=run, probe=None, faults=(answer,))
        else:
            checked[run.run_id] = Checked(run=run, probe=answer, faults=answer.findings)
            _record(storage, run.spec, answer, exec_spec, bundles[run.run_id])
        say(f"preflight: {len(checked)} of {len(runs)} rows, {run.label}")
    return [checked[run.run_id] for run in runs]


def probe_row(spec: str, exec_spec: str, results: str) -> Any:
    """In a worker: a `Probe`, or why there is none."""
    from datasets.store import DataError, open_dataset
    from trainable.checkpoint import CheckpointError
    from trainable.opening import SpecError
    from trainable.probe import parent_of, probe
    from trainable.surgery import WeightsError
    from trainable.weights import MissingWeights

    row, settings = RunSpec.model_validate_json(spec), ExecSpec.model_validate_json(exec_spec)
    try:
        stores = open_dataset(Path(settings.data_path), row.data.dataset)
        return probe(row, settings, stores, parent_of(row, Storage(results)))
    except (DataError, SpecError, MissingWeights, WeightsError, CheckpointError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"


def _record(storage: Storage, spec: RunSpec, probe: Any, exec_spec: ExecSpec, bundle: Bundle) -> None:
    record = CostRecord(
        shape=shape_of(spec),
        run_id=spec.run_id,
        attempt_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-probe",
        source="probe",
        device=probe.device,
        device_name=probe.device_name,
        threads=exec_spec.cpu_threads,
        gpu_fraction=bundle.share,
        seconds_per_step=probe.seconds_per_step,
        seconds_per_evaluated_image=probe.seconds_per_evaluated_image,
        setup_s=None,
        peak_memory_bytes=probe.peak_memory_bytes,
    )
    write_cost(storage, record)


def print_checked(checked: Sequence[Checked], console: Console) -> None:
    """One line a row (batches: images x height x width, mean ± deviation, labels); what is wrong beneath it."""
    table = Table(box=None, pad_edge=False, title="preflight: two steps of every row", title_justify="left")
    for name in ("run", "train batch", "test batch", "loss", "s/step", "memory", ""):
        numeric = name in ("loss", "s/step", "memory")
        table.add_column(name, justify="right" if numeric else "left", no_wrap="batch" not in name)
    for one in checked:
        if one.probe is None:
            table.add_row(one.run.label, "", "", "", "", "", "FAULT")
            continue
        probe = one.probe
        table.add_row(
            one.run.label,
            _batch(probe.train),
            _batch(probe.test),
            " ".join(f"{loss:.2f}" for loss in probe.losses),
            f"{probe.seconds_per_step:.3g}",
            f"{probe.peak_memory_bytes / GIB:.2f} GiB",
            "FAULT" if one.faults else "ok",
        )
    console.print(table)
    lines: dict[str, list[str]] = {}
    for one in checked:
        for text in (*one.faults, *(one.probe.notes if one.probe else ())):
            lines.setdefault(text, []).append(one.run.label)
    for text, labels in lines.items():
        console.print(f"  {', '.join(labels)}: {text}", markup=False, highlight=False, soft_wrap=True)


def _batch(facts: Any) -> str:
    return (
        f"{facts.num_images} x {facts.height}x{facts.width}, {facts.mean:+.2f} ± {facts.std:.2f}, labels "
        f"{facts.label_min}-{facts.label_max}"
    )
