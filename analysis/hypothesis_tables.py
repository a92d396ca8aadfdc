"""T3 to T6: the registered hypotheses of a grid, what their verdicts hang on, and what more runs could show.

judgement = judge(results, evidence, registration())
frames = hypothesis_frames(results, evidence, judgement)     # {"T3": Frame, "T4": ..., "T5": ..., "T6": ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.frame import GAP, Frame, Raw, interval, number, p_value, points
from analysis.gates import Evidence
from analysis.hypotheses import MEDIAN, Finding, Judgement, Reading, judge
from analysis.load import GridResults
from analysis.power import power_frame
from analysis.sentences import block_name
from analysis.stats import ContrastResult
from analysis.verdicts import BlockVerdict, ClaimVerdict

_SHORT: dict[BlockVerdict | ClaimVerdict, str] = {
    BlockVerdict.NOT_ESTIMABLE: "n.e.",
    BlockVerdict.NEGLIGIBLE: "NEGLIGIBLE",
}
_WITHOUT = "without duplicates"
_READINGS = {
    "final": "final",
    "best_on_val": "best on hold-out",
    "best_on_test": "best on test",
    MEDIAN: "median of last",
}


def hypothesis_frames(results: GridResults, evidence: Mapping[str, Evidence], judgement: Judgement) -> dict[str, Frame]:
    """T3, T4, T5 and T6 by name.

    Args:
        results: the grid.
        evidence: of its runs, from `gates.read_evidence`.
        judgement: from `hypotheses.judge`, with its scales.
    """
    return {
        "T3": tests_frame(results, judgement),
        "T4": equivalence_frame(results, judgement),
        "T5": sensitivity_frame(results, evidence, judgement),
        "T6": power_frame(results, judgement),
    }


class _Footnotes:
    """Remarks that share a number where they are equal."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def marks(self, remarks: Sequence[str]) -> str:
        """The numbers of some remarks."""
        self.lines += [remark for remark in dict.fromkeys(remarks) if remark not in self.lines]
        return " ".join(f"[{self.lines.index(remark) + 1}]" for remark in dict.fromkeys(remarks))

    def notes(self) -> tuple[str, ...]:
        """The notes, numbered."""
        return tuple(f"[{i}] {line}" for i, line in enumerate(self.lines, 1))


def tests_frame(results: GridResults, judgement: Judgement) -> Frame:
    """T3: every registered contrast in every block, its test and its verdict; then the claims."""
    footnotes = _Footnotes()
    lines = [_test_line(one, judgement, footnotes) for one in judgement.findings]
    lines += [_claim_line(name, verdict, judgement) for name, verdict in judgement.claims().items()]
    columns = tuple(lines[0][0])
    plan = judgement.registration.inference
    notes = [
        *_reading_notes(judgement),
        "95 % CI: two-way over images and seeds; p: one-sided above 0 (γ, κ), or of equivalence within "
        f"{points(plan.margin, 1)} pp (δ), with several seeds; Holm p: corrected within {{γ_C, γ_M}} and "
        "within {κ}, what cannot be estimated counting as not shown; contradicted: the two-sided test, corrected so",
        "removed: the same contrast of gains as shares of the baseline's error, in points; scale: whether a monotone "
        "change of scale could remove the interaction (crossing: it could not)",
        "σ*: standard deviation between runs, beyond the error, at which the CI would reach 0, in points",
        "the claims: supported where every contrast supports it, contradicted where some contradicts and none supports",
    ]
    if any(one.single_seed for one in judgement.findings):
        notes.append("*: one seed a cell; the CI speaks of these checkpoints, seed variance is unknown")
    return Frame(
        title=f"T3, grid {results.name}: hypothesis tests",
        notes=(*notes, *footnotes.notes()),
        columns=columns,
        left=3,
        narrow=("claim", "contrast", "block", "estimate pp", "95 % CI", "Holm p", "verdict", "notes"),
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


def _reading_notes(judgement: Judgement) -> list[str]:
    name = judgement.reading.evaluation
    known = {
        "best_on_test": "best_on_test, chosen on the test set itself, so optimistic",
        "final": "final, the last step",
    }
    return [f"evaluation: {known.get(name, name)}"]


def _claim_of(one: Finding, judgement: Judgement) -> str:
    return next((claim.id for claim in judgement.registration.claims if one.spec.id in claim.contrasts), "")


def _test_line(one: Finding, judgement: Judgement, footnotes: _Footnotes) -> tuple[dict[str, str], Raw]:
    result, scales = one.result, one.scales
    odds = scales.log_odds if scales else None
    removed = scales.error_removed if scales else None
    tested = one.p if one.spec.test == "greater" or not one.single_seed else None
    block = block_name(one.block, judgement)
    low, high = result.interval if result else (None, None)
    scale = "" if scales is None else "removable" if scales.removable else "crossing" if scales.crosses else "stable"
    seeds = ", ".join(map(str, sorted(set(one.seeds.values()))))
    cells = {
        "claim": _claim_of(one, judgement),
        "contrast": one.spec.symbol,
        "block": block,
        "estimate pp": points(result.estimate if result else None, 1),
        "95 % CI": interval(low, high),
        "df": _df(result),
        "p": p_value(tested),
        "Holm p": p_value(one.p_holm),
        "verdict": str(one.verdict),
        "seeds": seeds,
        "log-odds": _estimate(odds, 1, 2),
        "removed": _estimate(removed, 100, 1),
        "scale": scale,
        "σ*": number(100 * result.tipping_sd, 1) if result and result.tipping_sd is not None else GAP,
        "cells": ", ".join(one.labels),
        "notes": footnotes.marks([*one.reasons, *one.marks]),
    }
    raw: Raw = {
        "claim": cells["claim"],
        "contrast": one.spec.id,
        "block": block,
        "estimate": result.estimate if result else None,
        "low": low,
        "high": high,
        "error": result.error if result else None,
        "df": result.df if result else None,
        "p": tested,
        "p_holm": one.p_holm,
        "p_either_holm": one.p_either_holm,
        "verdict": str(one.verdict),
        "seeds": seeds,
        "log_odds": odds.estimate if odds else None,
        "log_odds_error": odds.error if odds else None,
        "error_removed": removed.estimate if removed else None,
        "scale": scale,
        "tipping_sd": result.tipping_sd if result else None,
        "cells": " ".join(one.labels),
        "notes": "; ".join([*one.reasons, *one.marks]),
    }
    return cells, raw


def _df(result: ContrastResult | None) -> str:
    if result is None:
        return GAP
    return f"{result.df:,.0f}" if result.df >= 100 else number(result.df, 1)


def _estimate(result: ContrastResult | None, factor: float, digits: int) -> str:
    if result is None:
        return GAP
    low, high = result.interval
    shown = [number(factor * value, digits) for value in (result.estimate, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _claim_line(name: str, verdict: ClaimVerdict, judgement: Judgement) -> tuple[dict[str, str], Raw]:
    first, raw = _test_line(judgement.findings[0], judgement, _Footnotes())
    cells = {**dict.fromkeys(first, ""), "claim": name, "block": "all", "verdict": str(verdict)}
    empty: Raw = dict.fromkeys(raw)
    return cells, {**empty, "claim": name, "block": "all", "verdict": str(verdict)}


def equivalence_frame(results: GridResults, judgement: Judgement) -> Frame:
    """T4: what pretraining changes, against the margin."""
    footnotes = _Footnotes()
    plan = judgement.registration.inference
    lines = []
    for one in (one for one in judgement.findings if one.spec.test == "equivalent"):
        result = one.result
        low, high = result.interval_at(1 - 2 * plan.alpha) if result else (None, None)
        several = result if result is not None and not result.single_seed else None
        smallest = several.smallest_margin(plan.alpha) if several else None
        p = one.p if several else None
        reverses = {True: "yes", False: "no", None: GAP}[one.reverses]
        block = block_name(one.block, judgement)
        cells = {
            "contrast": one.spec.symbol,
            "block": block,
            "estimate pp": points(result.estimate if result else None, 1),
            "90 % CI": interval(low, high),
            "margin pp": f"±{number(100 * plan.margin, 1)}",
            "p TOST": p_value(p),
            "smallest margin pp": number(100 * smallest, 1) if smallest is not None else GAP,
            "reverses": reverses,
            "verdict": str(one.verdict),
            "notes": footnotes.marks([*one.reasons, *one.marks]),
        }
        raw: Raw = {
            "contrast": one.spec.id,
            "block": block,
            "estimate": result.estimate if result else None,
            "low90": low,
            "high90": high,
            "margin": plan.margin,
            "p_tost": p,
            "smallest_margin": smallest,
            "reverses": None if one.reverses is None else int(one.reverses),
            "verdict": str(one.verdict),
            "notes": "; ".join([*one.reasons, *one.marks]),
        }
        lines.append((cells, raw))
    notes = [
        *_reading_notes(judgement),
        "equivalent where the 90 % CI lies within the margin (two one-sided tests); smallest margin: the smallest that "
        "would pass; reverses: the two contrasts that are compared have 95 % CIs on opposite sides of 0",
    ]
    if any(one.single_seed for one in judgement.findings):
        notes.append("*: one seed a cell: no test of equivalence, only the CI of these checkpoints")
    columns = tuple(lines[0][0])
    return Frame(
        title=f"T4, grid {results.name}: does pretraining change the differences?",
        notes=(*notes, *footnotes.notes()),
        columns=columns,
        left=2,
        narrow=columns,
        rows=tuple(tuple(cells.values()) for cells, _ in lines),
        raw=tuple(raw for _, raw in lines),
    )


def readings(results: GridResults, evidence: Mapping[str, Evidence], judgement: Judgement) -> dict[str, Reading]:
    """The ways of T5 to read the data, by heading: the registered one first."""
    own = judgement.reading
    runs = [run for row in results.rows if not row.is_parent for run in row.done]
    names = [name for name in _READINGS if name == MEDIAN or any(name in run.evaluations for run in runs)]
    evaluations = [name for name in names if name != own.evaluation]
    found = {_READINGS.get(own.evaluation, own.evaluation): own}
    found |= {_READINGS[name]: Reading(evaluation=name) for name in evaluations}
    found["health gate off"] = Reading(evaluation=own.evaluation, health=False)
    found["log-odds"] = Reading(evaluation=own.evaluation, scale="log_odds")
    found["images only"] = Reading(evaluation=own.evaluation, over="images")
    if any(one.duplicates is not None and len(one.duplicates.sample_ids) for one in evidence.values()):
        found[_WITHOUT] = Reading(evaluation=own.evaluation, duplicates=False)
    seeds = sorted({run.seed for run in runs})
    if len(seeds) > 1:
        found["seeds only"] = Reading(evaluation=own.evaluation, over="seeds")
        for seed in seeds:
            found[f"without seed {seed}"] = Reading(evaluation=own.evaluation, without_seed=seed)
    return found


def _left_out(evidence: Mapping[str, Evidence]) -> str:
    """Which test images are in the training split too, or nearly so."""
    found = {str(one.duplicates) for one in evidence.values() if one.duplicates is not None}
    if not found:
        return "the store does not know the images, so none could be left out"
    return f"without test images that are in the training split too, or nearly so; {'; '.join(sorted(found))}"


def sensitivity_frame(results: GridResults, evidence: Mapping[str, Evidence], judgement: Judgement) -> Frame:
    """T5: the verdicts of T3 under other readings of the same data."""
    found = {
        heading: judgement
        if reading == judgement.reading
        else judge(results, evidence, judgement.registration, reading, with_scales=False)
        for heading, reading in readings(results, evidence, judgement).items()
    }
    rows, raw = [], []
    for i, one in enumerate(judgement.findings):
        cells = [_claim_of(one, judgement), one.spec.symbol, block_name(one.block, judgement)]
        numbers: Raw = {"claim": cells[0], "contrast": one.spec.id, "block": cells[2]}
        for heading, other in found.items():
            finding = other.findings[i]
            estimate = finding.result.estimate if finding.result else None
            cells.append(_reading_cell(finding, other.reading))
            numbers |= {f"{heading}: estimate": estimate, f"{heading}: verdict": str(finding.verdict)}
        rows.append(tuple(cells))
        raw.append(numbers)
    for claim in judgement.registration.claims:
        verdicts = {heading: str(other.claims()[claim.id]) for heading, other in found.items()}
        rows.append((claim.id, "", "all", *verdicts.values()))
        empty: Raw = dict.fromkeys(raw[0])
        named = {f"{heading}: verdict": verdict for heading, verdict in verdicts.items()}
        raw.append({**empty, "claim": claim.id, "block": "all", **named})
    columns = ("claim", "contrast", "block", *found)
    return Frame(
        title=f"T5, grid {results.name}: what the verdicts hang on",
        notes=(
            "each cell: estimate and verdict when the data are read so; the first reading is the registered one; n.e.: "
            "not estimable",
            "estimates in percentage points; under log-odds in log-odds, where equivalence has no margin",
            f"median of last: of the last {judgement.registration.inference.last_epochs} evaluations' test top-1, from "
            "the curves; its errors are those of independent proportions, so too wide",
            "images only: new images, these checkpoints; seeds only: new seeds, these images",
            f"{_WITHOUT}: {_left_out(evidence)}",
        ),
        columns=columns,
        left=3,
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
    )


def _reading_cell(finding: Finding, reading: Reading) -> str:
    verdict = _SHORT.get(finding.verdict, str(finding.verdict))
    if finding.result is None:
        return verdict
    on_odds = reading.scale == "log_odds"
    estimate = number(finding.result.estimate, 2) if on_odds else points(finding.result.estimate, 1)
    return f"{estimate} {verdict}"
