"""The command for one row, without Ray.

    python -m trainable.run --grid paper --label Exp-2

In Python, `open_run` is the way in.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from datasets.terminal import plain
from trainable.attempt import Attempt, RunFailed, RunLocked
from trainable.credentials import redacted
from trainable.loop import EpochRow
from trainable.opening import SpecError, open_run
from trainable.records import RecordError
from trainable.spec import ExecSpec, RunSpec
from trainable.storage import Storage, StorageError

LISTEN_S = 0.5
"""Longest time between two looks at whether a signal asked to stop, a batch longer than that apart."""

__all__ = ["SpecError", "open_run"]


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m trainable.run`."""
    cli = argparse.ArgumentParser(
        prog="python -m trainable.run",
        description="Train one row of a grid in this process, without Ray: for debugging. Options that are not listed "
        "here are those of tuner.run (--experiments, --epochs, --limit-train, --limit-eval, --seeds, --weights).",
    )
    cli.add_argument("--grid", required=True, metavar="NAME")
    cli.add_argument("--label", required=True, metavar="LABEL", help="the row, e.g. Exp-2")
    cli.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="prepared data (default: data)")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--weights", type=Path, metavar="DIR", help="local files of pretrained weights")
    cli.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    cli.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
    cli.add_argument("--save-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when the run is done, 1 when it failed or its parent is missing, 2 for bad input, 130 interrupted."""
    cli = parser()
    options, passed = cli.parse_known_args(argv)
    if options.threads < 1 or not options.save_every > 0:
        cli.error("--threads must be at least 1 and --save-every more than 0 seconds")
    try:
        return _run(options, passed)
    except KeyboardInterrupt:
        print("interrupted; the same command continues from what is recorded", file=sys.stderr)
        return 130
    except (RunFailed, RunLocked, StorageError, RecordError) as error:
        print(plain(f"trainable.run: {options.label}: {redacted(str(error))}"), file=sys.stderr)
    except OSError as error:
        mend = "nothing that is recorded is lost: mend the cause, then run the same command again"
        print(plain(f"trainable.run: {options.label}: {redacted(str(error))}; {mend}"), file=sys.stderr)
    return 1


def _run(options: argparse.Namespace, passed: list[str]) -> int:
    """Trains the row's runs one after another; exit code as of `main`."""
    planned = _planned_rows(options, passed)
    if planned is None:
        return 2
    exec_spec = ExecSpec(
        device=options.device,
        data_path=str(options.data),
        weights_path=str(options.weights) if options.weights else None,
        cpu_threads=options.threads,
        gpu_fraction=0.0,
        save_every_s=options.save_every,
    )
    storage = Storage(options.results)  # the planner has opened it too: it can be
    for row in planned:
        if row["state"] in ("waiting", "blocked"):
            why = row["reason"] or "its parent is not done; run the parent's label first"
            print(plain(f"trainable.run: {options.label} is {row['state']}: {why}"), file=sys.stderr)
            return 1
        attempt = Attempt(RunSpec.model_validate_json(json.dumps(row["spec"])), exec_spec, storage)
        for note in attempt.notes:
            print(plain(f"trainable.run: {options.label}: {redacted(note)}"), file=sys.stderr)
        if attempt.done:
            print(f"{options.label} (run {attempt.run_id}) is done already")
        elif not _train(attempt):
            print(f"interrupted; the same command continues run {attempt.run_id}", file=sys.stderr)
            return 130
        print(f"{options.label} (run {attempt.run_id}) done; results in {storage.uri}")
    return 0


def _train(attempt: Attempt) -> bool:
    """Trains to the end, and says so; False where SIGINT or SIGTERM asked to stop.

    The first signal is heeded after `LISTEN_S`, at the end of a batch, with a checkpoint; a second one ends it at once,
    at the checkpoint it has.
    """
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not attempt.done and not asked:
            _print_rows(attempt.advance(LISTEN_S))
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if attempt.done:
        return True
    attempt.stop()
    return False


def _planned_rows(options: argparse.Namespace, passed: list[str]) -> list[dict[str, Any]] | None:
    """Asks the planner, a program of its own, for the row: this package knows nothing of grids."""
    command = [sys.executable, "-m", "tuner.run", "--dry-run", "--json", "--grid", options.grid, *passed]
    command += ["--only", f"label={options.label}", "--data", str(options.data), "--results", options.results]
    command += ["--weights", str(options.weights)] if options.weights else []
    plan = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if plan.returncode != 0:
        return None
    rows: list[dict[str, Any]] = json.loads(plan.stdout)["runs"]
    return [row for row in rows if row["label"] == options.label]


def _print_rows(rows: list[EpochRow]) -> None:
    for row in rows:
        top1 = row["top1"] if row["top1"] is not None else row["top1_mixed"]
        print(
            f"epoch {row['epoch']:7.2f}  step {row['step']:7,}  {row['split']:5}  loss {row['loss_nats']:.4f}  "
            f"top-1 {100 * top1:.2f} %",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
