"""The outputs of a grid as files, and how two makings of them differ: what a bundle holds and what is made of it again.

Tables come in every format of `frame.py`, figures as the numbers that they plot. Numbers are the same within `RELATIVE`
of their size or `ABSOLUTE`, since another processor or library version may change last digits; all that is shown (the
text of Markdown, TeX and HTML) must be the same to the letter.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from analysis.figure_inputs import Inputs, MissingInputs
from analysis.figures import FIGURES, pages_of
from analysis.frame import RENDERERS, Frame
from analysis.load import AnalysisError, load_results
from analysis.plotting import numbers_csv, style
from analysis.sweeps import is_sweep, load_sweep, sweep_frame
from analysis.tables import OF_TRIALS, TABLES, build
from trainable.storage import Storage

RELATIVE = 1e-6
"""Temperatures are fitted in 32 bits, whose exponentials differ by as much as 1e-7 between processors."""
ABSOLUTE = 1e-9
_FLOAT = re.compile(r"-?(\d+\.\d+(e[+-]?\d+)?|\d+e[+-]\d+)")
"""As `repr` writes it: never a whole number, and never a run's id."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """The outputs of one grid."""

    files: dict[str, bytes]
    """By name, such as T1.csv."""
    missing: dict[str, str]
    """Why a table or figure could not be made, by its id; empty where it was."""


def make_outputs(storage: Storage, grid: str, variant: str) -> Outputs:
    """Every table of a grid and the numbers of every figure that its store can have.

    Raises:
        AnalysisError: no such grid or variant.
        RecordError: a stored file is damaged.
    """
    if is_sweep(storage, grid):
        return Outputs(files=_rendered("T1", sweep_frame(load_sweep(storage, grid, variant))), missing={"T1": ""})
    inputs = Inputs(storage=storage, results=load_results(storage, grid, variant))
    small = inputs.results.verified
    files: dict[str, bytes] = {}
    missing = dict.fromkeys([*TABLES, *(kind.id for kind in FIGURES)], "" if small else "not made of so many runs")
    for table in TABLES if small else OF_TRIALS:
        try:
            files |= _rendered(table, build(inputs.source, table))
            missing[table] = ""
        except AnalysisError as error:
            missing[table] = str(error)
    for kind in FIGURES if small else ():
        try:
            with style():
                files |= {f"{page.name}.csv": numbers_csv(page).encode() for page in pages_of(kind, inputs)}
        except MissingInputs as error:
            missing[kind.id] = str(error)
    return Outputs(files=files, missing=missing)


def _rendered(table: str, frame: Frame) -> dict[str, bytes]:
    return {f"{table}.{kind}": render(frame).encode() for kind, render in RENDERERS.items()}


def differences(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> Iterator[str]:
    """One line for everything in which two makings of the same outputs differ, numbers first.

    Args:
        before: files by name, as they were bundled.
        after: the same as made again.
    """
    for name in sorted(before.keys() | after.keys(), key=lambda name: (not name.endswith(".csv"), name)):
        if name not in after:
            yield f"{name}: is in the bundle, and cannot be made again of its store"
        elif name not in before:
            yield f"{name}: is not in the bundle, and is made of its store"
        elif before[name] != after[name]:
            try:
                yield from (_numbers if name.endswith(".csv") else _text)(name, before[name], after[name])
            except (UnicodeDecodeError, csv.Error) as error:
                yield f"{name}: the bundle's cannot be read ({error})"


def _numbers(name: str, before: bytes, after: bytes) -> Iterator[str]:
    old, new = (list(csv.reader(io.StringIO(content.decode(), newline=""))) for content in (before, after))
    if old[:1] != new[:1]:
        yield f"{name}: columns {', '.join(next(iter(old), []))}; recomputed {', '.join(next(iter(new), []))}"
        return
    if len(old) != len(new):
        yield f"{name}: {len(old) - 1:,} rows; recomputed {len(new) - 1:,}"
    for number, (was, now) in enumerate(zip(old[1:], new[1:], strict=False), 1):
        if len(was) != len(now):
            yield f"{name}, row {number}: {len(was)} values; recomputed {len(now)}"
            continue
        for column, one, other in zip(old[0], was, now, strict=False):
            if not _same(one, other):
                row = f" ({now[0]})" if now[0] and column != old[0][0] else ""
                yield f"{name}, row {number}{row}, column {column}: {one or 'nothing'}; recomputed {other or 'nothing'}"


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    if not (_FLOAT.fullmatch(one) and _FLOAT.fullmatch(other)):
        return False
    return abs(float(one) - float(other)) <= max(ABSOLUTE, RELATIVE * abs(float(other)))


def _text(name: str, before: bytes, after: bytes) -> Iterator[str]:
    """The first line that differs: a number that does is said with its row and column already."""
    lines = itertools.zip_longest(before.decode().split("\n"), after.decode().split("\n"), fillvalue="nothing")
    differing = [(number, old, new) for number, (old, new) in enumerate(lines, 1) if old != new]
    number, old, new = differing[0]
    others = f" (and {len(differing) - 1:,} more lines)" if len(differing) > 1 else ""
    yield f"{name}, line {number}{others}: {_around(old, new)}; recomputed {_around(new, old)}"


def _around(text: str, other: str, width: int = 60) -> str:
    """The part of a line where it begins to differ from another."""
    at = next((i for i, (one, two) in enumerate(zip(text, other, strict=False)) if one != two), len(other))
    start = max(0, at - width // 2)
    return f"{'…' if start else ''}{text[start : at + width // 2]}{'…' if at + width // 2 < len(text) else ''}"
