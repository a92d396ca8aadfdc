"""The values that a sweep may try: listed ones, or an interval; drawn as a function of position, rounded, perturbed."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

from pydantic import Field

from datasets.spec import Spec

SIGNIFICANT = 3
"""Digits that a value keeps, so that it reads well and the same value is the same run."""
Value = float | int | str | bool


class SpaceBlock(Spec):
    """The `space` of a sweep as written: exactly one of the three."""

    values: list[Value] | None = None
    log_uniform: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """[lowest, highest], at equal distances of the logarithm."""
    uniform: list[float] | None = Field(default=None, min_length=2, max_length=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """A checked space."""

    values: tuple[Value, ...] = ()
    """The listed values; empty for an interval."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    """Whether the field holds whole numbers."""

    def grid(self, num: int) -> list[Value]:
        """All listed values; of an interval `num` values at equal distances, its ends included."""
        if self.values:
            return list(self.values)
        shares = [index / (num - 1) for index in range(num)] if num > 1 else [0.5]
        return list(dict.fromkeys(self.at(share) for share in shares))

    def draw(self, num: int, *position: object) -> list[Value]:
        """The first `num` random values at a position: value i depends on the position and i alone, so that a longer
        draw begins with the shorter one. Listed values are drawn without repeats."""
        if self.values:
            return sorted(self.values, key=lambda value: fraction(*position, "order", value))[:num]
        return list(dict.fromkeys(self.at(fraction(*position, index)) for index in range(num)))

    def at(self, share: float) -> Value:
        """The value at a share in [0, 1] of an interval."""
        if self.log:
            return self.rounded(math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low))))
        return self.rounded(self.low + share * (self.high - self.low))

    def rounded(self, value: float) -> Value:
        """A value inside of the interval with few digits."""
        inside = min(self.high, max(self.low, float(f"{value:.{SIGNIFICANT}g}")))
        return round(inside) if self.integer else inside

    def holds(self, value: Value) -> bool:
        """Whether a value belongs to the space."""
        if self.values:
            return value in self.values
        return isinstance(value, float | int) and self.low <= value <= self.high


def fraction(*position: object) -> float:
    """A number in [0, 1) that is a function of a position: no generator, no order of calls."""
    digest = hashlib.sha256("\0".join(map(str, position)).encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64
