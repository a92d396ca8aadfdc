"""What a report says, in its order, before it is HTML or Markdown: sections of texts, tables and pictures."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from analysis.audit import Audit, AuditedRun
from analysis.check import completeness_frame
from analysis.figure_inputs import Inputs
from analysis.frame import Frame
from analysis.gates import row_health
from analysis.hypotheses import Judgement
from analysis.literature import literature_frames
from analysis.load import AnalysisError, ResultRow
from analysis.registration import registration
from analysis.results_table import watermarks
from analysis.sentences import Card, cards, methods, rankings
from analysis.stand_ins import marked_grid, stand_in_of
from analysis.versions_table import versions_frame
from trainable import records

WORDS = Path(__file__).with_name("report_words.toml")
NAMED = 8
"""Runs and rows that are named one by one where something is the matter with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paragraph:
    """Text; `kind` is note, command or empty."""

    text: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Lines of equal rank."""

    items: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """The cards of the claims."""

    cards: tuple[Card, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table; folded where few readers need all of it."""

    id: str
    title: str
    frame: Frame
    folded: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One page of a figure as it lies in the report's folder."""

    name: str
    suffix: str
    """svg, or png of what was only painted."""
    content: bytes
    caption: str
    alt: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure with its pages."""

    id: str
    title: str
    pages: tuple[Drawing, ...]
    folded: bool


Block = Paragraph | Listing | Verdicts | Table | Picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading and what stands beneath it."""

    id: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that is said of a grid, in one language."""

    lang: str
    name: str
    help: str
    facts: str
    notices: tuple[str, ...]
    """What must be known before any number is read."""
    sections: tuple[Section, ...]
    words: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """Tables and figures by id, and why some could not be made."""

    frames: Mapping[str, Frame]
    pictures: Mapping[str, Sequence[Drawing]]
    reasons: Mapping[str, str]
    """By id."""
    features: Sequence[str]
    """What is to be said of attribution and features, which another command makes."""
    faults: Sequence[str]
    """What the lint found in the figures."""


@cache
def words(lang: str) -> dict[str, Any]:
    """The report's own words in a language."""
    found: dict[str, Any] = tomllib.loads(WORDS.read_text(encoding="utf-8"))[lang]
    return found


_FOLDED = ("F6", "F7", "F8", "F9", "T6", "T9", "T10", "T12", "versions")
_ORDER: dict[str, tuple[str, ...]] = {
    "contrasts": ("F1", "F2", "T2"),
    "pretraining": ("F3", "T4"),
    "sensitivity": ("T5", "T3", "T6", "F14"),
    "curves": ("F15", "completeness", "F4"),
    "results": ("T1", "T7", "T15", "T16", "T17", "F17", "F5"),
    "errors": ("F6", "F7", "F8", "F9", "F10", "F11", "T8", "T9", "T10"),
    "features": ("F12", "T13", "F13", "T14"),
    "cost": ("T11", "F16"),
    "literature": ("literature", "lengths"),
    "record": ("T12", "versions"),
}
"""Tables and figures by section, in the order in which they are read."""
_WHERE_MADE = ("T15", "T16", "T17", "F17")
"""Of grids of a certain kind: nobody misses them in the others."""


def report_of(inputs: Inputs, judgement: Judgement | str, made: Made, lang: str) -> Report:
    """The report of a grid.

    Args:
        inputs: the grid.
        judgement: of its hypotheses, or why there is none.
        made: its tables and figures.
        lang: en or ko.

    Raises:
        RecordError: a stored file is damaged.
    """
    said, results = words(lang), inputs.results
    own: dict[str, list[Block]] = {name: [] for name in said["sections"]}
    if isinstance(judgement, Judgement):
        own["verdicts"] = [Verdicts(cards=cards(judgement, lang))]
        own["results"] = _rankings(inputs, judgement, lang)
        own["methods"] = [Paragraph(text=_methods(inputs, judgement, lang))]
    else:
        own["verdicts"] = [Paragraph(text=said["no_hypotheses"].format(reason=judgement), kind="note")]
    reasons = made.reasons if results.done else {}  # all for want of runs, which is said once
    known = made.frames if results.done else {name: one for name, one in made.frames.items() if name == "T12"}
    made = replace(made, frames=known, reasons=reasons)
    frames = {**made.frames, **_more_frames(inputs, judgement)}
    if "literature" in frames:
        own["literature"] = [Paragraph(text=said["context"])]
    for section, ids in _ORDER.items():
        own[section] += [block for one in ids for block in _block(one, frames, made, lang)]
    if results.done:
        own["features"] += [Paragraph(text=line, kind="note") for line in made.features]
    own["record"] += _record(inputs, made, lang)
    return Report(
        lang=lang,
        name=results.name if results.variant == "full" else f"{results.name} ({results.variant})",
        help=results.help.strip(),
        facts=_facts(inputs, said),
        notices=tuple(_notices(inputs, judgement, said)),
        sections=tuple(
            Section(id=name, title=said["sections"][name], blocks=tuple(blocks))
            for name, blocks in own.items()
            if blocks
        ),
        words=said,
    )


def _more_frames(inputs: Inputs, judgement: Judgement | str) -> dict[str, Frame]:
    """Tables that a report alone shows."""
    found = {"completeness": _completeness(inputs)}
    if isinstance(judgement, Judgement):
        found |= {name: marked_grid(one, inputs.results) for name, one in literature_frames(judgement).items()}
    if inputs.results.done:
        found["versions"] = versions_frame(inputs.storage, inputs.results, registration())
    return found


def _completeness(inputs: Inputs) -> Frame:
    """`analysis.check`'s rows-by-seeds grid, from what is loaded."""
    results = inputs.results
    attempts: dict[str, list[str]] = {}
    for record in records.read_attempts(inputs.storage, [run.run_id for row in results.rows for run in row.runs]):
        attempts.setdefault(record.run_id, []).append(record.outcome or "killed")
    health = inputs.source.health or {}
    return completeness_frame(
        Audit(
            grid=results.name,
            variant=results.variant,
            help=results.help,
            labels=tuple(row.label for row in results.rows),
            runs=tuple(
                AuditedRun(
                    label=row.label,
                    seed=run.seed,
                    run_id=run.run_id,
                    status=run.status,
                    reason=run.reason,
                    attempts=tuple(attempts.get(run.run_id, ())),
                    health=health.get(run.run_id, ()),
                    stand_in=stand_in_of(run),
                )
                for row in results.rows
                for run in row.runs
            ),
            asked={},
            faults=(),
            unknown=(),
        )
    )


def _block(one: str, frames: Mapping[str, Frame], made: Made, lang: str) -> list[Block]:
    said = words(lang)
    title, folded = said["titles"][one], one in _FOLDED
    if one in frames:
        return [Table(id=one, title=title, frame=frames[one], folded=folded)]
    if made.pictures.get(one):
        return [Picture(id=one, title=title, pages=tuple(made.pictures[one]), folded=folded)]
    if one in made.reasons and one not in _WHERE_MADE:
        return [Paragraph(text=said["none_made"].format(id=f"{one} ({title})", reason=made.reasons[one]), kind="note")]
    return []


def _rankings(inputs: Inputs, judgement: Judgement, lang: str) -> list[Block]:
    lines = rankings(inputs.results, judgement, lang)
    return [Paragraph(text=words(lang)["rankings"]), Listing(items=lines)] if lines else []


def _methods(inputs: Inputs, judgement: Judgement, lang: str) -> str:
    rows = [row for row in inputs.results.rows if not row.is_parent]
    images = [run.trial["num_test"] for row in rows for run in row.done]
    return methods(judgement, images or [0], [len(row.done) for row in rows if row.done] or [0], lang)


def _record(inputs: Inputs, made: Made, lang: str) -> list[Block]:
    said = words(lang)
    ended = [run.trial["ended_at"] for run in inputs.results.done]
    lines = [said["standing"].format(standing=registration().standing(ended)), said["outputs"], said["english"]]
    if made.faults:
        lines.append(said["lint"].format(faults="; ".join(made.faults)))
    return [Paragraph(text=line) for line in lines if line]


def _facts(inputs: Inputs, said: Mapping[str, Any]) -> str:
    results = inputs.results
    counts = sorted({len(row.done) for row in results.rows if row.done and not row.is_parent})
    seeds = said["no_seed"] if not counts else said["one_seed"]
    if counts and counts != [1]:
        span = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]}–{counts[-1]}"
        seeds = said["several_seeds"].format(seeds=span)
    images = ", ".join(f"{num:,}" for num in sorted({run.trial["num_test"] for run in results.done}))
    return str(
        said["facts"].format(
            done=f"{len(results.done):,}",
            planned=f"{sum(len(row.runs) for row in results.rows):,}",
            rows=f"{len(results.rows):,}",
            seeds=seeds,
            images=images or "0",
            evaluation=said["final"],
        )
    )


def _notices(inputs: Inputs, judgement: Judgement | str, said: Mapping[str, Any]) -> Iterable[str]:
    results = inputs.results
    yield from watermarks(results)
    if not results.done:
        yield said["nothing"].format(name=results.name)
    if not results.verified:
        yield said["large"].format(runs=f"{len(results.done):,}")
    runs = [(row, run) for row in results.rows for run in row.runs]
    missing = [
        f"{row.label} seed {run.seed} ({_state(run.status, run.reason)})" for row, run in runs if run.status != "done"
    ]
    if missing:
        yield said["not_done"].format(count=f"{len(missing):,}", planned=f"{len(runs):,}", runs=_some(missing, said))
    if never := [row.label for row in results.rows if not row.runs]:
        yield said["never"].format(count=f"{len(never):,}", rows=_some(never, said))
    rows = [row for row in results.rows if row.done and not row.is_parent]
    alone = [row.label for row in rows if len(row.done) == 1]
    if alone and len(alone) == len(rows):
        yield said["single"]
    elif alone:
        yield said["uneven"].format(rows=_some(alone, said))
    if results.verified:
        for row in results.rows:
            yield from _health(inputs, row, said)
        codes = {one.code for one in inputs.evidence.values()}
        if isinstance(judgement, Judgement) and len(codes) > 1:
            yield said["mixed_code"].format(count=len(codes))


def _health(inputs: Inputs, row: ResultRow, said: Mapping[str, Any]) -> Iterable[str]:
    found = row_health(row.done, inputs.evidence, registration().health)
    seeds = ", ".join(map(str, found.failed))
    for name, rules in (("gated", found.gated), ("lifted", found.lifted)):
        if rules:
            yield said[name].format(row=row.label, rules=", ".join(rules), seeds=seeds)


def _state(status: str, reason: str) -> str:
    return f"{status}: {reason}" if status in ("failed", "blocked") and reason else status


def _some(names: Sequence[str], said: Mapping[str, Any]) -> str:
    rest = len(names) - NAMED
    return "; ".join([*names[:NAMED], *([said["more"].format(count=f"{rest:,}")] if rest > 0 else [])])


def judged(inputs: Inputs) -> Judgement | str:
    """The grid's hypotheses, or why there are none."""
    if not inputs.results.done:
        return "no run is done"
    if not inputs.results.verified:
        return "too many runs are done"
    try:
        return inputs.source.judgement
    except AnalysisError as error:
        return str(error)
