"""The registered contrasts over a grid: cells found by their axes, gates asked, tests made, verdicts drawn.

All hypotheses are tables of weights in `preregistration.toml`; `analysis.stats.contrast` computes every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from analysis.gates import Evidence, counted_twice, differences, row_health
from analysis.load import AnalysisError, GridResults, ResultRow, SeedRun
from analysis.registration import Claim, ContrastSpec, Design, Registration
from analysis.stand_ins import remark, row_mark
from analysis.stats import ContrastResult, Over, contrast, contrast_of_shares, error_removed, holm, log_odds
from analysis.verdicts import BlockVerdict, ClaimVerdict, claim_verdict, difference_verdict, direction_verdict

Scale = Literal["points", "log_odds"]
MEDIAN = "median_last"
"""In place of an evaluation's name: the median of the last epochs' top-1, from learning curves alone."""
LIFTED = "so it is what the treatment does"
PUBLISHED = "published"
"""In place of an evaluation's name: the study's own values, errors of independent proportions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How the data are read: the registered way by default, each other one a sensitivity."""

    evaluation: str
    health: bool = True
    over: Over = "both"
    scale: Scale = "points"
    without_seed: int | None = None
    duplicates: bool = True
    """Count test images that are in the training split too, or nearly so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scales:
    """One contrast on the other two scales."""

    log_odds: ContrastResult | None
    error_removed: ContrastResult | None
    """As a share of the baseline's error."""
    crosses: bool
    """Whether lines cross, so that no monotone change of scale removes the interaction."""
    removable: bool
    """Signs differ between scales, or no line crosses another: the interaction depends on the scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One contrast in one block."""

    spec: ContrastSpec
    block: dict[str, str]
    """The axes that the contrast leaves fixed, and their values."""
    cells: dict[str, ResultRow | None]
    """The row of every cell; None where the grid has none."""
    seeds: dict[str, int]
    """Seeds used by cell."""
    num_images: int
    result: ContrastResult | None
    """None: not estimable."""
    reasons: tuple[str, ...]
    """Why it is not estimable."""
    marks: tuple[str, ...]
    """What a reader must know of it."""
    scales: Scales | None
    p: float | None
    """Of the registered test: one-sided above 0, or of equivalence."""
    p_holm: float | None
    """Within its family; None where none is corrected."""
    p_either_holm: float | None
    """Two-sided, likewise: what a contradiction needs."""
    verdict: BlockVerdict
    reverses: bool | None
    """Of an equivalence: whether the two intervals that it compares lie on opposite sides of 0."""

    @property
    def single_seed(self) -> bool:
        """Whether some cell has one seed only."""
        return self.result is not None and self.result.single_seed

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of its rows, in the order of the weights."""
        return tuple(row.label for row in self.cells.values() if row is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """All contrasts of a grid under one reading, and what follows for the claims."""

    registration: Registration
    design: Design
    reading: Reading
    findings: tuple[Finding, ...]
    """By contrast, then by block, in the orders of the registration and of the grid."""
    standing: str
    """What the registration is, and how many runs had ended before it held."""

    def of(self, contrast_id: str) -> tuple[Finding, ...]:
        """The findings of one contrast, by block."""
        return tuple(found for found in self.findings if found.spec.id == contrast_id)

    def of_claim(self, claim: Claim) -> tuple[Finding, ...]:
        """The findings that a claim stands or falls with."""
        return tuple(found for name in claim.contrasts for found in self.of(name))

    def claims(self) -> dict[str, ClaimVerdict]:
        """The verdict on every claim, by its id."""
        return {
            claim.id: claim_verdict([found.verdict for found in self.of_claim(claim)])
            for claim in self.registration.claims
        }


def find_design(results: GridResults, registration: Registration) -> Design:
    """The first design all of whose parts some row of the grid plays.

    Raises:
        AnalysisError: there is none.
    """
    rows = [row for row in results.rows if not row.is_parent]
    for design in registration.designs:
        if all(any(_plays(row, axes) for row in rows) for axes in design.roles.values()):
            return design
    names = ", ".join(design.name for design in registration.designs)
    raise AnalysisError(
        f"grid {results.name}: has the parts of no registered design ({names}), so no hypothesis is stated for it; "
        "analysis/preregistration.toml tells what parts are"
    )


def _plays(row: ResultRow, axes: Mapping[str, str]) -> bool:
    return all(row.axes.get(axis) == value for axis, value in axes.items())


def blocks_of(results: GridResults, design: Design, spec: ContrastSpec) -> list[dict[str, str]]:
    """The values of all axes that a contrast's parts leave open, in the grid's order."""
    used = {axis for part in spec.parts for axis in design.roles[part]}
    found = []
    for row in results.rows:
        block = {axis: value for axis, value in row.axes.items() if axis not in used}
        if not row.is_parent and block not in found and any(_plays(row, design.roles[part]) for part in spec.parts):
            found.append(block)
    return found


def _row_of(results: GridResults, design: Design, cell: str, block: Mapping[str, str]) -> ResultRow | None:
    wanted = dict(block)
    for part in cell.split("."):
        wanted |= design.roles[part]
    return next((row for row in results.rows if not row.is_parent and row.axes == wanted), None)


def judge(
    results: GridResults,
    evidence: Mapping[str, Evidence],
    registration: Registration,
    reading: Reading | None = None,
    *,
    with_scales: bool = True,
) -> Judgement:
    """Tests every registered contrast on a grid.

    Args:
        results: the grid.
        evidence: of its runs that are done, from `gates.read_evidence`.
        registration: what is tested, and how.
        reading: how the data are read; None for the registered way.
        with_scales: compute the other two scales too.

    Raises:
        AnalysisError: the grid has not the parts of any registered design.
    """
    reading = reading or Reading(evaluation=registration.inference.evaluation)
    design = find_design(results, registration)
    found = [
        _measure(results, evidence, registration, design, reading, spec, block, with_scales)
        for spec in registration.contrasts
        for block in blocks_of(results, design, spec)
    ]
    return Judgement(
        registration=registration,
        design=design,
        reading=reading,
        findings=tuple(_decide(found, registration, on_points=reading.scale == "points")),
        standing=registration.standing([one.ended_at for one in evidence.values()]),
    )


def _measure(
    results: GridResults,
    evidence: Mapping[str, Evidence],
    registration: Registration,
    design: Design,
    reading: Reading,
    spec: ContrastSpec,
    block: dict[str, str],
    with_scales: bool,
) -> Finding:
    """A finding without its verdict."""
    cells = {cell: _row_of(results, design, cell, block) for cell in spec.weights}
    data = _Cells(cells, reading, evidence, registration)
    baselines = {cell: _baseline(cell, spec, design) for cell in spec.weights}
    scales = None
    result = data.contrast(spec.weights)
    if with_scales and result is not None and data.answers:
        more = {cell: _row_of(results, design, cell, block) for cell in baselines.values() if cell not in cells}
        scales = _scales(spec, baselines, data, _Cells({**cells, **more}, reading, evidence, registration), result)
    return Finding(
        spec=spec,
        block=block,
        cells=cells,
        seeds={cell: len(runs) for cell, runs in data.runs.items()},
        num_images=data.num_images,
        result=result,
        reasons=tuple(data.reasons),
        marks=tuple(data.marks),
        scales=scales,
        p=None,
        p_holm=None,
        p_either_holm=None,
        verdict=BlockVerdict.NOT_ESTIMABLE,
        reverses=None,
    )


def _baseline(cell: str, spec: ContrastSpec, design: Design) -> str:
    """The cell that differs in the baseline's axis alone."""
    axes = design.roles[spec.baseline].keys()
    return ".".join(spec.baseline if design.roles[part].keys() == axes else part for part in cell.split("."))


class _Cells:
    """The cells of one contrast under one reading: runs, answers, and what stands against using them."""

    def __init__(
        self,
        rows: Mapping[str, ResultRow | None],
        reading: Reading,
        evidence: Mapping[str, Evidence],
        registration: Registration,
    ) -> None:
        self._reading = reading
        self.reasons: list[str] = []
        self.marks: list[str] = []
        self.runs: dict[str, tuple[SeedRun, ...]] = {}
        self.answers: dict[str, NDArray[np.bool_]] = {}
        self.shares: dict[str, list[float]] = {}
        self.num_images = 0
        present = [row for row in rows.values() if row is not None]
        for cell, row in rows.items():
            self.runs[cell] = self._usable(cell, row)
        if not self.reasons and reading.evaluation != PUBLISHED:
            self._ask_gates(present, evidence, registration)
        if not self.reasons:
            self._read(rows, evidence, registration)

    def _usable(self, cell: str, row: ResultRow | None) -> tuple[SeedRun, ...]:
        """The runs of a cell; a reason where there are none."""
        reading = self._reading
        if row is None:
            self.reasons.append(f"the grid has no row for {cell}")
            return ()
        if reading.evaluation == PUBLISHED:
            if "top1" not in row.published:
                self.reasons.append(f"{row.label}: no published value")
            return ()
        done = tuple(run for run in row.done if run.seed != reading.without_seed)
        named = [run for run in done if reading.evaluation == MEDIAN or reading.evaluation in run.evaluations]
        if not done:
            states = dict.fromkeys(run.status for run in row.runs if run.status != "done")
            self.reasons.append(f"{row.label}: {', '.join(states) or 'not run'}")
        elif len(named) < len(done):
            self.reasons.append(f"{row.label}: has no evaluation {reading.evaluation}")
        return done

    def _ask_gates(
        self, rows: Sequence[ResultRow], evidence: Mapping[str, Evidence], registration: Registration
    ) -> None:
        for row in rows:
            health = row_health(row.done, evidence, registration.health)
            failed = ", ".join(f"seed {seed}" for seed in health.failed)
            if health.gated:
                text = f"{row.label}: {', '.join(health.gated)} ({failed})"
                (self.reasons if self._reading.health else self.marks).append(text)
            if health.lifted:
                self.marks.append(f"{row.label}: {', '.join(health.lifted)} in {len(health.failed)} seeds, {LIFTED}")
            if mark := row_mark(row.done):
                self.marks.append(f"{row.label}: {remark(mark)}")
            if (twice := counted_twice(row)) is not None:
                self.reasons.append(twice)
        reasons, marks = differences(rows, evidence, registration.homogeneity)
        self.reasons += reasons
        self.marks += marks

    def _read(
        self,
        rows: Mapping[str, ResultRow | None],
        evidence: Mapping[str, Evidence],
        registration: Registration,
    ) -> None:
        name = self._reading.evaluation
        if name in (PUBLISHED, MEDIAN):
            last = registration.inference.last_epochs
            for cell, row in rows.items():
                assert row is not None
                if name == PUBLISHED:
                    self.shares[cell] = [row.published["top1"]]
                else:
                    curves = [evidence[run.run_id].test_curve for run in self.runs[cell]]
                    self.shares[cell] = [float(np.median(curve[-last:])) for curve in curves if curve]
            self.num_images = max(
                (run.trial["num_test"] for row in rows.values() if row for run in row.done), default=0
            )
            if not self.num_images or not all(self.shares.values()):
                self.reasons.append("no learning curve, or not known on how many images")
            return
        first = next(iter(self.runs))
        ids = self.runs[first][0].evaluations[name].sample_ids
        for cell, runs in self.runs.items():
            found = [run.evaluations[name] for run in runs]
            if any(not np.array_equal(one.sample_ids, ids) for one in found):
                labels = " and ".join(row.label for row in (rows[first], rows[cell]) if row is not None)
                self.reasons.append(f"{labels} were judged on different test images")
                return
            self.answers[cell] = np.stack([one.correct for one in found])
        if not self._reading.duplicates:
            known = evidence[self.runs[first][0].run_id].duplicates
            if known is None:
                self.reasons.append("the store does not know which test images are in the training split too")
                return
            kept = ~np.isin(ids, known.sample_ids)
            if kept.sum() < 2:
                self.reasons.append("all test images are in the training split too, or nearly so")
                return
            ids = ids[kept]
            self.answers = {cell: answers[:, kept] for cell, answers in self.answers.items()}
        self.num_images = len(ids)

    def contrast(self, weights: Mapping[str, float]) -> ContrastResult | None:
        """None: not estimable under this reading."""
        if self.reasons:
            return None
        if self.shares:
            return contrast_of_shares(weights, self.shares, self.num_images)
        over = self._reading.over
        if over == "seeds" and min(map(len, self.answers.values())) < 2:
            self.reasons.append("one seed tells nothing of seeds")
            return None
        if self._reading.scale == "log_odds":
            result = log_odds(weights, self.answers, over=over)
            self.reasons += [] if result else ["an accuracy of 0 or 1 has no log-odds"]
            return result
        return contrast(weights, self.answers, over=over)


def _scales(
    spec: ContrastSpec, baselines: Mapping[str, str], data: _Cells, with_baselines: _Cells, result: ContrastResult
) -> Scales:
    odds = log_odds(spec.weights, data.answers)
    removed = None if with_baselines.reasons else error_removed(spec.weights, baselines, with_baselines.answers)
    means = {cell: float(answers.mean()) for cell, answers in data.answers.items()}
    crosses = any(_crosses(spec.weights, means, pair) for pair in spec.crossing)
    signs = {np.sign(one.estimate) for one in (result, odds, removed) if one is not None}
    return Scales(log_odds=odds, error_removed=removed, crosses=crosses, removable=len(signs) > 1 or not crosses)


def _crosses(weights: Mapping[str, float], means: Mapping[str, float], pair: tuple[str, str]) -> bool:
    """Whether the contrast's two halves, one per part, pull the same way: then the line between the parts crosses."""
    halves = [sum(weight * means[cell] for cell, weight in weights.items() if part in cell.split(".")) for part in pair]
    return halves[0] * halves[1] > 0


def _decide(found: Sequence[Finding], registration: Registration, *, on_points: bool) -> list[Finding]:
    """Findings with their tests corrected and their verdicts."""
    alpha = registration.inference.alpha
    corrected: dict[int, tuple[float, float]] = {}
    for family in dict.fromkeys(one.spec.family for one in found if one.spec.test == "greater"):
        members = [i for i, one in enumerate(found) if one.spec.family == family]
        results = [found[i].result for i in members]
        above = holm([one.p_above(0) if one else 1.0 for one in results])  # what cannot be tested counts as not shown
        both = holm([one.p if one else 1.0 for one in results])
        corrected |= {i: (above[k], both[k]) for k, i in enumerate(members)}
    decided = []
    for i, one in enumerate(found):
        result = one.result
        if result is None:
            decided.append(one)
        elif one.spec.test == "greater":
            predicted, either = corrected[i]
            verdict = direction_verdict(
                result.estimate, result.interval, predicted, either, alpha=alpha, single_seed=result.single_seed
            )
            decided.append(replace(one, p=result.p_above(0), p_holm=predicted, p_either_holm=either, verdict=verdict))
        else:
            margin = registration.inference.margin if on_points else None
            verdict = difference_verdict(
                result.interval_at(1 - alpha),
                result.interval_at(1 - 2 * alpha),
                margin,
                single_seed=result.single_seed,
            )
            p = result.p_equivalent(margin) if margin is not None else None
            decided.append(replace(one, p=p, verdict=verdict, reverses=_reverses(one, found)))
    return decided


def _reverses(one: Finding, found: Sequence[Finding]) -> bool | None:
    """Whether the contrast that an equivalence compares between two parts has intervals on opposite sides of 0; None
    where it is not estimable in both."""
    sides = []
    for part in one.spec.crossing[0]:
        rows = {row.label for cell, row in one.cells.items() if row is not None and part in cell.split(".")}
        half = next((other for other in found if set(other.labels) == rows and other.result is not None), None)
        if half is None or half.result is None:
            return None
        low, high = half.result.interval
        sides.append(1 if low > 0 else -1 if high < 0 else 0)
    return sides[0] * sides[1] < 0
