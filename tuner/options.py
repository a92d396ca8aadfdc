"""The command line of `python -m tuner.run`: its options, and what can be said of them before anything is looked at."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tuner.grid import Selection, list_grids
from tuner.sweep import sweep_names
from tuner.sweep_file import Choices, add_options

DEFAULT_FILE = "experiments.yaml"


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m tuner.run`. An experiment's knob belongs into the YAML, not here."""
    cli = argparse.ArgumentParser(prog="python -m tuner.run", description="Run a grid of trainings on Ray Tune.")
    cli.add_argument("--grid", metavar="NAME", help="grid of the experiment file")
    cli.add_argument("--list", action="store_true", help="list the grids and stop")
    cli.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    cli.add_argument("--on", metavar="MACHINE", help="with --dry-run: plan for e.g. gpus=2,gpu_memory_gib=24,cpus=24")
    cli.add_argument("--preflight", action="store_true", help="first two steps of every row; stop if one looks wrong")
    cli.add_argument("--json", action="store_true", help="plan or end as one JSON object; progress on standard error")
    cli.add_argument("--quiet", action="store_true", help="print failures and the end alone")
    cli.add_argument("--experiments", type=Path, default=None, metavar="FILE", help=f"default: {DEFAULT_FILE}")
    rows = cli.add_argument_group("which rows")
    rows.add_argument("--only", metavar="AXIS=VALUE,...", help="e.g. dataset=cifar100,mix=cutmix; an axis may repeat")
    rows.add_argument("--seeds", metavar="N,N,...", help="seeds instead of the file's; each repeats the grid")
    rows.add_argument("--epochs", type=int, metavar="N", help="shorten every row (under run ids of its own)")
    rows.add_argument(
        "--steps", type=int, metavar="N", help="train N steps, the schedule squeezed into them (likewise)"
    )
    rows.add_argument("--limit-train", type=int, metavar="N", help="train on a stratified subset of N images")
    rows.add_argument("--limit-eval", type=int, metavar="N", help="evaluate on a stratified subset of N images")
    deciding = cli.add_argument_group("how long; adds seeds where they decide most")
    deciding.add_argument("--until-decided", metavar="CLAIM", help="a registered claim, such as H1; see docs/grids.md")
    deciding.add_argument("--max-gpu-hours", type=float, metavar="H", help="of all added runs; on a CPU their hours")
    add_options(cli.add_argument_group("what of a sweep; the file says the rest"))
    where = cli.add_argument_group("where")
    where.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="prepared data (default: data)")
    where.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    where.add_argument("--weights", type=Path, metavar="DIR", help="local files of pretrained weights")
    where.add_argument("--address", metavar="ADDRESS", help="a running Ray cluster: auto, host:port or ray://host:port")
    where.add_argument(
        "--dashboard-host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="where the dashboard of a cluster started here listens (default: 127.0.0.1, this machine alone)",
    )
    where.add_argument("--cpus-per-trial", type=int, default=1, metavar="N", help="cores and threads (default: 1)")
    where.add_argument(
        "--gpu-share",
        default="auto",
        metavar="SHARE",
        help="of a GPU per trial: auto (from measured memory), a fraction, or a whole number (default: auto)",
    )
    where.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="auto: cuda where a trial has a share of a GPU; cpu: shares only place trials (default: auto)",
    )
    where.add_argument(
        "--save-every", type=float, default=60.0, metavar="S", help="seconds between checkpoints (default: 60)"
    )
    where.add_argument("--log", metavar="NAME,...", help="trackers beside the results: tensorboard, wandb, mlflow")
    return cli


class UsageError(Exception):
    """The command line cannot be used; the message names the option and the mend."""


def check_options(options: argparse.Namespace) -> None:
    """Refuses numbers out of range and options that contradict each other.

    Raises:
        UsageError: the first of them.
    """
    for name in ("epochs", "steps", "limit_train", "limit_eval", "cpus_per_trial", "trials"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} {value}: must be at least 1")
    if options.epochs is not None and options.steps is not None:
        raise UsageError("--epochs and --steps both say how long; give one of them")
    if not options.save_every > 0:
        raise UsageError(f"--save-every {options.save_every:g}: must be more than 0 seconds")
    if options.on and not options.dry_run:
        raise UsageError("--on describes machines that are not there; it goes with --dry-run")
    if options.on and options.address:
        raise UsageError("--on and --address both say where; give one of them")
    if options.dashboard_host != "127.0.0.1" and (options.address or options.dry_run):
        raise UsageError(
            "--dashboard-host is of a cluster that this command starts; a running one has the --dashboard-host of its "
            "`ray start`, and a --dry-run starts none"
        )
    share_of(options)
    _check_deciding(options)
    if options.preflight and options.dry_run:
        raise UsageError("--preflight trains two steps of every row, --dry-run trains nothing; give one of them")
    if options.quiet and options.dry_run:
        raise UsageError("--quiet goes with a run; a --dry-run prints its plan and nothing else")


def _check_deciding(options: argparse.Namespace) -> None:
    if (options.until_decided is None) != (options.max_gpu_hours is None):
        raise UsageError("--until-decided and --max-gpu-hours go together: --until-decided H1 --max-gpu-hours 20")
    if options.until_decided is None:
        return
    if not options.max_gpu_hours > 0:
        raise UsageError(f"--max-gpu-hours {options.max_gpu_hours:g}: must be more than 0")
    others = {
        "--seeds": options.seeds,
        "--only": options.only,
        "--over": options.over,
        "--json": options.json,
        "--on": options.on,
    }
    if given := [name for name, value in others.items() if value]:
        raise UsageError(f"{given[0]}: --until-decided itself says which rows get which seeds; leave {given[0]} out")
    if (options.address or "").startswith("ray://"):
        raise UsageError(
            "--until-decided judges here what the runs gave; give --address auto on a machine of the cluster"
        )


def experiment_file(given: Path | None) -> Path:
    """The file asked for, else experiments.yaml of the working directory, else of this checkout."""
    if given is not None:
        return given
    here = Path(DEFAULT_FILE)
    return here if here.exists() else Path(__file__).resolve().parent.parent / DEFAULT_FILE


def name_of(options: argparse.Namespace, path: Path) -> str:
    """The grid or sweep that was asked for.

    Raises:
        UsageError: none was; the message names those there are.
    """
    if options.grid is None:
        names = ", ".join([*(name for name, _, _ in list_grids(path)), *(name for name, _ in sweep_names(path))])
        raise UsageError(f"--grid NAME is missing; {path} has {names}")
    return str(options.grid)


def selection_of(options: argparse.Namespace) -> Selection:
    """Rows, seeds and fields.

    Raises:
        UsageError: a list cannot be read.
    """
    fields: dict[str, Any] = {}
    for option, field in (
        ("epochs", "budget.epochs"),
        ("steps", "budget.compress_to"),
        ("limit_train", "data.limit_train"),
        ("limit_eval", "data.limit_eval"),
    ):
        if (value := getattr(options, option)) is not None:
            fields[field] = value
    return Selection(seeds=_seeds(options.seeds), only=_only(options.only), fields=fields)


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--seeds {text}: give whole numbers with commas, such as 223,224,225") from None
    if len(set(seeds)) != len(seeds):
        raise UsageError(f"--seeds {text}: a seed is there twice, and would be the same run")
    return seeds


def _only(text: str | None) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in (text or "").split(",") if text is not None else []:
        axis, equals, value = part.partition("=")
        if not equals or not axis or not value:
            raise UsageError(f"--only {text}: give axis=value pairs with commas, such as dataset=cifar100,mix=cutmix")
        pairs.append((axis.strip(), value.strip()))
    return tuple(pairs)


def choices_of(options: argparse.Namespace) -> Choices:
    """What was said of a sweep."""
    return Choices(over=options.over, search=options.search, scheduler=options.scheduler, trials=options.trials)


def share_of(options: argparse.Namespace) -> float | None:
    """The share of a GPU for all; None for auto.

    Raises:
        UsageError: neither auto nor a share that Ray could place.
    """
    text = options.gpu_share
    if text == "auto":
        return None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not (0 <= share <= 1 or (share > 1 and share.is_integer())):
        raise UsageError(
            f"--gpu-share {text}: give auto, a fraction up to 1 or a whole number; Ray never starts others"
        )
    return share
