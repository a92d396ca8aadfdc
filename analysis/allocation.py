"""Which seeds to run next so that a claim is decided, and whether it is: `python -m analysis.power --grid G --next H1`.

Whoever looks at the data again and again, and stops when they say something, errs more often than one look does. So
`MOST_LOOKS` are allowed, and at each everything is judged at the registered level divided by them (Bonferroni): over
all looks together a wrong verdict is no likelier than registered. `tuner.run --until-decided` counts the looks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from analysis.frame import interval, points
from analysis.gates import Evidence
from analysis.hypotheses import Finding, Judgement, judge
from analysis.load import AnalysisError, GridResults, SeedRun
from analysis.registration import Claim, Registration
from analysis.sentences import block_name, verdict_text
from analysis.stand_ins import WORDS
from trainable.costs import records_of
from trainable.models import nearest
from trainable.storage import Storage

MOST_LOOKS = 8
"""From 3 to about 10 seeds a cell, one more at every look; beyond, the images' part is most of what is left."""
LEAST_SEEDS = 3
"""A cell; before, nothing is judged."""
ATOM = 1e-9
"""Hours, of a run that took no time that was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """A run to be added."""

    label: str
    seed: int
    hours: float
    """That its row's runs took on their device, in their share of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Next:
    """Where a claim stands and what to run next."""

    claim: str
    verdict: str
    """Of the claim at the level of one look."""
    state: str
    """settled: every block is decided; open: the picks would decide more; stuck: no block that is open can be
    estimated."""
    is_pilot: bool
    """Whether no block has seeds enough to be judged at all, so that this was no look."""
    digest: str
    """Of the runs that were judged; the same runs are the same look."""
    level: float
    most_looks: int
    lines: tuple[str, ...]
    """Every block in words; before them, what stands against the runs themselves."""
    picks: tuple[Pick, ...]
    """The most worth an hour first."""
    hours: dict[str, float]
    """Device-hours of a run by label, of all rows that have one."""
    run_hours: dict[str, float]
    """Device-hours by run id, of every run that is done."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def next_seeds(
    storage: Storage,
    results: GridResults,
    evidence: Mapping[str, Evidence],
    registration: Registration,
    claim_id: str,
) -> Next:
    """Judges a claim at the level of one look and chooses the runs to add.

    Raises:
        AnalysisError: no such claim, or the grid has the parts of no registered design.
    """
    claims = {claim.id: claim for claim in registration.claims}
    if claim_id not in claims:
        raise AnalysisError(f'--next: "{claim_id}" is not one of {", ".join(claims)}{nearest(claim_id, claims)}')
    inference = registration.inference
    level = inference.alpha / MOST_LOOKS
    strict = replace(registration, inference=replace(inference, alpha=level))
    judgement = judge(results, evidence, strict, with_scales=False)
    return decide(judgement, claims[claim_id], results, device_hours(storage, results.done))


def device_hours(storage: Storage, runs: Sequence[SeedRun]) -> dict[str, float]:
    """What every run took of its device, by run id: hours of training and evaluation, times its share of a card; on a
    CPU, which nothing says the share of, its hours."""
    costs = records_of(storage, [run.trial["attempt_id"] for run in runs])
    found = {}
    for run in runs:
        cost = costs.get(run.trial["attempt_id"])
        share = cost.gpu_fraction if cost is not None and cost.device == "cuda" else 1.0
        found[run.run_id] = share * (run.trial["train_s"] + run.trial["evaluate_s"]) / 3600
    return found


def decide(judgement: Judgement, claim: Claim, results: GridResults, run_hours: Mapping[str, float]) -> Next:
    """What follows from a judgement.

    Args:
        judgement: at the level of one look.
        claim: that is to be decided.
        results: the grid, whose seeds are known from it.
        run_hours: of every run that is done.
    """
    findings = judgement.of_claim(claim)
    estimable = [one for one in findings if one.result is not None]
    open_ = [one for one in estimable if not is_decided(one)]
    rows = {row.label: row for row in results.rows}
    hours = {
        label: sum(run_hours[run.run_id] for run in row.done) / len(row.done) for label, row in rows.items() if row.done
    }
    seeds = {label: [run.seed for run in row.runs] for label, row in rows.items()}
    short = {label: LEAST_SEEDS - num for one in open_ for label, num in _seeds(one).items() if num < LEAST_SEEDS}
    labels = [label for label, few in short.items() for _ in range(few)] if short else choose(open_, hours)
    state = "open" if open_ else "settled" if len(estimable) == len(findings) else "stuck"
    level = judgement.registration.inference.alpha
    return Next(
        claim=claim.id,
        verdict=judgement.claims()[claim.id].value,
        state=state,
        is_pilot=all(min(one.seeds.values()) < LEAST_SEEDS for one in estimable),
        digest=hashlib.sha256(" ".join(sorted(run.run_id for run in results.done)).encode()).hexdigest(),
        level=level,
        most_looks=MOST_LOOKS,
        lines=(*_random(findings), *(_line(one, judgement, level) for one in findings)),
        picks=tuple(_numbered(labels, seeds, hours)),
        hours=hours,
        run_hours=dict(run_hours),
    )


def _random(findings: Sequence[Finding]) -> list[str]:
    """The rows whose runs began from random stand-ins of published weights: a decision on them is of no use."""
    return list(dict.fromkeys(mark for one in findings for mark in one.marks if WORDS in mark))


def is_decided(finding: Finding) -> bool:
    """Whether a block's verdict is for or against, with enough seeds in every cell to say so."""
    return finding.verdict.side in ("for", "against") and min(finding.seeds.values()) >= LEAST_SEEDS


def _seeds(finding: Finding) -> dict[str, int]:
    """Seeds by label of the rows."""
    return {row.label: finding.seeds[cell] for cell, row in finding.cells.items() if row is not None}


def choose(open_: Sequence[Finding], hours: Mapping[str, float]) -> list[str]:
    """As many rows as the open contrasts have cells, each the one whose next seed then takes most of their variance an
    hour.

    With weight w, K seeds and a variance s2 of a run, the next seed takes w2 s2 (1/K - 1/(K+1)). s2 is pooled over the
    cells of a contrast: of few seeds a cell's own is a guess.

    Args:
        open_: contrasts that are estimable and not decided, with two seeds or more in every cell.
        hours: by label of the rows.
    """
    counts = {label: num for one in open_ for label, num in _seeds(one).items()}
    terms: list[tuple[str, float]] = []
    for one in open_:
        assert one.result is not None
        parts = {cell: weight**2 / one.seeds[cell] for cell, weight in one.spec.weights.items()}
        pooled = one.result.parts["seeds"] / sum(parts.values())
        terms += [
            (row.label, one.spec.weights[cell] ** 2 * pooled) for cell, row in one.cells.items() if row is not None
        ]

    def worth(label: str) -> float:
        num = counts[label]
        taken = sum(term for own, term in terms if own == label) * (1 / num - 1 / (num + 1))
        return taken / max(hours[label], ATOM)

    chosen = []
    for _ in range(len(counts)):
        best = max(counts, key=worth)  # the first of equal ones
        chosen.append(best)
        counts[best] += 1
    return chosen


def _numbered(labels: Sequence[str], seeds: Mapping[str, Sequence[int]], hours: Mapping[str, float]) -> list[Pick]:
    """Each row's next seeds: those after its highest."""
    last = {label: max(seeds[label]) for label in labels}
    picks = []
    for label in labels:
        last[label] += 1
        picks.append(Pick(label=label, seed=last[label], hours=hours[label]))
    return picks


def _line(finding: Finding, judgement: Judgement, level: float) -> str:
    where = f"{finding.spec.symbol} {block_name(finding.block, judgement)}"
    if finding.result is None:
        return f"{where}: {verdict_text(finding.verdict)}: {'; '.join(finding.reasons)}"
    counts = dict.fromkeys(map(str, (min(finding.seeds.values()), max(finding.seeds.values()))))
    told = f"{points(finding.result.estimate, 1)} {interval(*finding.result.interval_at(1 - level))}"
    decided = "decided" if is_decided(finding) else "open"
    return f"{where}: {verdict_text(finding.verdict)} {told}, {' to '.join(counts)} seeds a cell, {decided}"
