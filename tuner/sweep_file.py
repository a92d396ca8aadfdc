"""The block `sweeps` of `experiments.yaml`: its form, what the command line may change of it, and its checks."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from datasets.spec import Spec
from trainable.models import nearest
from tuner.space import Space, SpaceBlock

SEARCHES = ("grid", "random", "tpe")
SCHEDULERS = ("none", "asha", "median", "pbt")
_IDENTITY = ("seed", "version", "init", "data.dataset", "data.content_sha256", "data.image_size")
_HOLD_OUT = ("data.classes", "data.val_fraction", "data.val_seed", "evaluate.select")


class SweepBlock(Spec):
    """One sweep as written."""

    help: str
    over: str = "paper"
    """The grid whose rows are swept."""
    field: str
    """The spec field that is varied, by dotted path."""
    space: SpaceBlock
    search: Literal["grid", "random", "tpe"] = "grid"
    trials: int | None = Field(default=None, ge=1)
    """Values a row; members of a population for pbt. Listed values need none: they are all tried."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    grace_epochs: int = Field(default=1, ge=1)
    """asha and median stop no trial before."""
    generations: int = Field(default=4, ge=2)
    """pbt cuts a row's budget into so many runs."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Spec fields of the trials alone: a hold-out, and checkpoints that are not chosen on the test set."""


def add_options(group: argparse._ArgumentGroup) -> None:
    """Adds what the command line may say of a sweep, see `Choices`."""
    group.add_argument("--over", metavar="GRID", help="sweep the rows of another grid")
    group.add_argument("--search", choices=SEARCHES, help="how values are proposed")
    group.add_argument("--scheduler", choices=SCHEDULERS, help="which trials are ended early")
    group.add_argument("--trials", type=int, metavar="N", help="values a row; more than before widens the sweep")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """What the command line says of a sweep; None leaves it as in the file."""

    over: str | None = None
    search: str | None = None
    scheduler: str | None = None
    trials: int | None = None

    def given(self) -> dict[str, Any]:
        """Those that were given, by option."""
        named = {"over": self.over, "search": self.search, "scheduler": self.scheduler, "trials": self.trials}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A sweep, checked as far as that is possible without its rows."""

    name: str
    help: str
    over: str
    field: str
    space: Space
    search: str
    trials: int
    scheduler: str
    grace_epochs: int
    generations: int
    set: Mapping[str, Any]
    """Spec fields of the trials by dotted path."""

    @property
    def place(self) -> str:
        """Where it stands in the file."""
        return f"sweeps.{self.name}"


def check_sweep(
    name: str, block: SweepBlock, choices: Choices, grids: Mapping[str, Any], fields: Mapping[str, Any]
) -> tuple[Sweep | None, list[tuple[str, str]]]:
    """A sweep with what the command line changes of it.

    Args:
        name: its name.
        block: as written.
        choices: from the command line.
        grids: the grids of the file, by name.
        fields: `set` of the block by dotted path.

    Returns:
        The sweep (None where there are faults), and the faults as (place, message).
    """
    place, faults = f"sweeps.{name}", []

    def add(where: str, message: str) -> None:
        faults.append((where if where.startswith("--") else f"{place}.{where}", message))

    over, search = choices.over or block.over, choices.search or block.search
    scheduler, trials = choices.scheduler or block.scheduler, choices.trials or block.trials
    at = {option: f"--{option}" if option in choices.given() else option for option in ("over", "search", "scheduler")}
    if over not in grids:
        add(at["over"], f'"{over}" is no grid of this file; grids are {", ".join(grids)}{nearest(over, grids)}')
    for path in [block.field, *fields]:
        where = "field" if path == block.field else f"set.{path}"
        if path.split(".")[0] in _IDENTITY or path in _IDENTITY:
            add(where, f'"{path}" tells which run it is, not how it is trained; make a grid of it')
    if block.field in _HOLD_OUT:
        add("field", f'"{block.field}" decides on which images trials are judged, so they could not be compared')
    if block.field in fields:
        add(f"set.{block.field}", "is the field that is varied; leave it out")
    space = _space(block.space, add)
    listed = bool(block.space.values)
    if listed and search == "tpe":
        add(at["search"], "tpe needs an interval, and space lists values; give uniform or log_uniform, or search grid")
    if not listed and trials is None:
        add("trials", "is missing; an interval needs the number of values a row")
    if scheduler != "none" and block.field in ("budget.epochs", "budget.steps"):
        add(
            at["scheduler"], f"{scheduler} compares trials of one length, and {block.field} is what is varied; use none"
        )
    if scheduler == "pbt":
        if search == "tpe" or listed:
            add(at["scheduler"], "pbt needs an interval (uniform or log_uniform) and search grid or random")
        if not block.field.startswith(("optim.", "augment.")):
            add(at["scheduler"], f'pbt varies a field of optim or augment while weights go on, not "{block.field}"')
        if trials is not None and trials < 2:
            add("trials", f"is {trials}; pbt needs a population of at least 2")
    if faults or space is None:
        return None, faults
    return (
        Sweep(
            name=name,
            help=block.help,
            over=over,
            field=block.field,
            space=space,
            search=search,
            trials=trials or len(space.values),
            scheduler=scheduler,
            grace_epochs=block.grace_epochs,
            generations=block.generations,
            set=fields,
        ),
        [],
    )


def _space(block: SpaceBlock, add: Callable[[str, str], None]) -> Space | None:
    """The space, or None after its faults were told."""
    given = [name for name in ("values", "log_uniform", "uniform") if getattr(block, name) is not None]
    if len(given) != 1:
        add("space", f"needs exactly one of values, log_uniform, uniform; got {', '.join(given) or 'none'}")
        return None
    if block.values is not None:
        if not block.values or len(set(map(repr, block.values))) != len(block.values):
            add("space.values", "must list different values, at least one")
            return None
        return Space(values=tuple(block.values))
    low, high = block.log_uniform or block.uniform or []
    if not low < high:
        add(f"space.{given[0]}", f"must rise, got [{low:g}, {high:g}]")
        return None
    if block.log_uniform and low <= 0:
        add("space.log_uniform", f"must begin above 0, got {low:g}; use uniform")
        return None
    return Space(low=low, high=high, log=block.log_uniform is not None)
