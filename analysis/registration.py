"""Reads `preregistration.toml`: what is tested, in which families, by which rules, and since when."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

FILE = Path(__file__).with_name("preregistration.toml")
_IN_FORCE: ContextVar[Path] = ContextVar("preregistration in force", default=FILE)
Texts = Mapping[str, str]
"""By language: en, ko."""


class RegistrationError(Exception):
    """The file cannot be used; the message names the place and the mend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastSpec:
    """One hypothesis about a weighted sum of cells, in every block of a grid."""

    id: str
    symbol: str
    test: Literal["greater", "equivalent"]
    family: str
    baseline: str
    """The part whose error a gain is a share of."""
    crossing: tuple[tuple[str, str], ...]
    """Pairs of parts between which lines may cross."""
    weights: dict[str, float]
    """By cell: its parts, joined by dots."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Every part that a cell of this contrast plays."""
        return tuple(dict.fromkeys(part for cell in self.weights for part in cell.split(".")))


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A sentence that stands or falls with contrasts."""

    id: str
    text: Texts
    contrasts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthRule:
    """When a learning curve tells that a run is broken."""

    code: str
    peak_within: float
    final_below: float
    least_evaluations: int
    lifts_at: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """Which axis values play which part."""

    name: str
    roles: dict[str, dict[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """Levels, margins and plans; accuracies as fractions."""

    evaluation: str
    alpha: float
    margin: float
    power: float
    smallest_effect: float
    num_seeds: int
    most_seeds: int
    run_sds: tuple[float, ...]
    typical_run_sd: tuple[float, float]
    last_epochs: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Homogeneity:
    """In which fields of their specs cells may differ."""

    always: tuple[str, ...]
    code: Literal["mark", "refuse"]
    free: dict[str, tuple[str, ...]]
    """Fields, or beginnings of fields, by the axis that must differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """The file as a whole."""

    digest: str
    """SHA-256 of all but the history."""
    history: tuple[tuple[datetime, str], ...]
    """When which digest began to hold, oldest first."""
    inference: Inference
    health: tuple[HealthRule, ...]
    homogeneity: Homogeneity
    designs: tuple[Design, ...]
    names: dict[str, Texts]
    claims: tuple[Claim, ...]
    contrasts: tuple[ContrastSpec, ...]

    def name(self, part: str, lang: str) -> str:
        """What a part is called."""
        return self.names.get(part, {}).get(lang, part)

    def standing(self, ended: Sequence[datetime]) -> str:
        """One line for the foot of an output: the digest, and what had ended before it held.

        Args:
            ended: when every run of the results ended.
        """
        line = f"preregistration {self.digest[:12]}"
        if self.history[-1][1] != self.digest:
            return f"{line}, CHANGED without an entry in its history: amended after {len(ended)} runs"
        before = sum(end < self.history[-1][0] for end in ended)
        if not before:
            return f"{line}, unchanged since before the first run"
        word = "amended" if len(self.history) > 1 else "registered"
        return f"{line}, {word} after {before} of {len(ended)} runs"


def registration(path: Path | None = None) -> Registration:
    """The registration of a file, or the one in force.

    Raises:
        RegistrationError: the file is no TOML, lacks something, or its weights do not fit its parts.
    """
    return _read(path or _IN_FORCE.get())


@contextmanager
def in_force(path: Path) -> Iterator[None]:
    """Within it, another file is the registration: the one that somebody's results were made under."""
    token = _IN_FORCE.set(path)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


@cache
def _read(path: Path) -> Registration:
    try:
        return _parse(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise RegistrationError(f"{path.name}: {what}; see the file of this name in the repository") from None


def _parse(content: dict[str, Any]) -> Registration:
    history = content.pop("history")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    inference = dict(content["inference"])
    tuples = {key: tuple(inference[key]) for key in ("run_sds", "typical_run_sd")}
    found = Registration(
        digest=hashlib.sha256(text.encode()).hexdigest(),
        history=tuple((entry["at"], entry["sha256"]) for entry in history),
        inference=Inference(**{**inference, **tuples}),
        health=tuple(HealthRule(**rule) for rule in content["health"]),
        homogeneity=Homogeneity(
            always=tuple(content["homogeneity"]["always"]),
            code=content["homogeneity"]["code"],
            free={axis: tuple(fields) for axis, fields in content["homogeneity"]["free"].items()},
        ),
        designs=tuple(Design(**design) for design in content["designs"]),
        names=content["names"],
        claims=tuple(
            Claim(id=claim["id"], text={k: claim[k] for k in ("en", "ko")}, contrasts=tuple(claim["contrasts"]))
            for claim in content["claims"]
        ),
        contrasts=tuple(
            ContrastSpec(**{**one, "crossing": tuple((a, b) for a, b in one["crossing"])})
            for one in content["contrasts"]
        ),
    )
    _check(found)
    return found


def _check(found: Registration) -> None:
    if not found.history or any(not isinstance(at, datetime) or at.tzinfo is None for at, _ in found.history):
        raise ValueError("history: each entry needs a time with its zone, and one at least is needed")
    for spec in found.contrasts:
        if abs(sum(spec.weights.values())) > 1e-12:
            raise ValueError(f"weights of {spec.id} sum to {sum(spec.weights.values())}, and must to 0")
        for design in found.designs:
            if unknown := [part for part in spec.parts if part not in design.roles]:
                raise ValueError(f'{spec.id}: part "{unknown[0]}" is no role of design {design.name}')
    known = [spec.id for spec in found.contrasts]
    if unknown := [name for claim in found.claims for name in claim.contrasts if name not in known]:
        raise ValueError(f'claims name the contrast "{unknown[0]}"; known are {", ".join(known)}')
