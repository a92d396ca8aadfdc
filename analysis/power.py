"""How many seeds a question needs, and how small an effect or a margin can be shown, from the runs already stored.

    python -m analysis.power --grid paper [--results URI]
    python -m analysis.power --grid paper --next H1       # is it decided, else which seeds would decide most

The variance components of every registered contrast are read off its runs; nothing is assumed but that more seeds would
be like those. With one seed it says what cannot be known.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy import stats

from analysis.allocation import Next, next_seeds
from analysis.frame import GAP, Frame, Raw, number, percent, points, show
from analysis.gates import read_evidence
from analysis.hypotheses import Finding, Judgement, judge
from analysis.load import AnalysisError, GridResults, chosen_grid, load_results
from analysis.registration import Inference, RegistrationError, registration
from analysis.results_table import watermarks
from analysis.sentences import block_name
from analysis.stand_ins import marked_grid
from analysis.stats import ContrastResult, noether_size
from datasets.terminal import Terminal, plain
from trainable.credentials import redacted
from trainable.records import RecordError
from trainable.storage import Storage, StorageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """Where the variance of a contrast comes from, at one seed a cell; squared fractions."""

    images: float
    """That no number of seeds takes away."""
    residual: float
    """Image x seed."""
    runs: float
    """Between runs, beyond both."""
    num_images: int
    num_cells: int

    def error(self, seeds: int) -> tuple[float, float]:
        """Standard error and degrees of freedom to expect with so many seeds a cell; one seed has no degrees of
        freedom for the runs, and is taken as if `runs` were known."""
        of_seeds = (self.residual + self.runs) / seeds
        total = self.images + of_seeds
        if seeds < 2:
            return math.sqrt(total), math.inf
        of_images = self.images + self.residual / seeds
        spread = of_images**2 / (self.num_images - 1) + of_seeds**2 / (self.num_cells * (seeds - 1))
        return math.sqrt(total), total**2 / spread if spread else math.inf


def components(result: ContrastResult, num_images: int) -> Components | None:
    """The components that a contrast's runs tell of; None where some cell has one seed."""
    if result.single_seed:
        return None
    seeds = len(result.seeds) / sum(1 / count for count in result.seeds.values())
    parts = result.parts
    return Components(
        images=max(0.0, parts["images"] - parts["residual"]),
        residual=seeds * parts["residual"],
        runs=max(0.0, seeds * (parts["seeds"] - parts["residual"])),
        num_images=num_images,
        num_cells=len(result.seeds),
    )


def detectable(error: float, df: float, plan: Inference) -> float:
    """The smallest effect that a two-sided test finds with the planned power."""
    return float(stats.t.ppf(1 - plan.alpha / 2, df) + stats.t.ppf(plan.power, df)) * error


def reachable_margin(error: float, df: float, plan: Inference) -> float:
    """The smallest margin within which no difference at all is shown to lie, with the planned power."""
    return float(stats.t.ppf(1 - plan.alpha, df) + stats.t.ppf(0.5 + plan.power / 2, df)) * error


def seeds_needed(found: Components, test: str, plan: Inference) -> int | None:
    """Seeds a cell for the planned effect (`greater`) or margin (`equivalent`); None where not even the most do."""
    for seeds in range(2, plan.most_seeds + 1):
        error, df = found.error(seeds)
        enough = reachable_margin(error, df, plan) <= plan.margin
        if test == "greater":
            enough = detectable(error, df, plan) <= plan.smallest_effect
        if enough:
            return seeds
    return None


def known_and_unknown(judgement: Judgement) -> list[str]:
    """What the runs tell of power, line by line; what they cannot tell, and what would."""
    plan = judgement.registration.inference
    lines = []
    for test, symbols in (("greater", "γ and κ"), ("equivalent", "δ")):
        found = [one for one in judgement.findings if one.spec.test == test and one.result is not None]
        if not found:
            lines.append(f"{symbols}: no contrast can be estimated yet, so nothing is known")
            continue
        several = [known for one in found if (known := _of(one)) is not None]
        lines += _measured(several, test, symbols, plan) if several else _single(found, test, symbols, plan)
    runs = math.ceil(noether_size(_LIKELY))
    return [*lines, f"to show that a run of one arm beats one of another {_LIKELY:.0%} of the time: {runs} runs an arm"]


_LIKELY = 0.75
"""Probability of improvement that Bouthillier and others (2021) call meaningful."""


def _of(one: Finding) -> Components | None:
    return components(one.result, one.num_images) if one.result is not None else None


def _measured(several: Sequence[Components], test: str, symbols: str, plan: Inference) -> list[str]:
    mean = Components(
        images=sum(one.images for one in several) / len(several),
        residual=sum(one.residual for one in several) / len(several),
        runs=sum(one.runs for one in several) / len(several),
        num_images=min(one.num_images for one in several),
        num_cells=several[0].num_cells,
    )
    what = "smallest effect found" if test == "greater" else "margin reached with no true difference"
    of = detectable if test == "greater" else reachable_margin
    sds = ", ".join(number(100 * sd, 1) for sd in plan.run_sds)
    lines = [
        f"{symbols}, {what} with power {plan.power:g}, in points, mean of {len(several)} contrasts "
        f"(as measured: run-to-run SD {number(100 * math.sqrt(mean.runs / mean.num_cells), 2)}; if it were {sds}):"
    ]
    for seeds in (2, 3, 5, 10, 20):
        assumed = [
            Components(
                images=mean.images,
                residual=mean.residual,
                runs=mean.num_cells * sd**2,
                num_images=mean.num_images,
                num_cells=mean.num_cells,
            )
            for sd in plan.run_sds
        ]
        own, *others = (100 * of(*one.error(seeds), plan) for one in (mean, *assumed))
        lines.append(f"  {seeds:2} seeds: {number(own, 1)}   ({' / '.join(number(other, 1) for other in others)})")
    floor = 100 * of(math.sqrt(mean.images), math.inf, plan)
    return [*lines, f"  no number of seeds gets below {number(floor, 1)}: only more test images would"]


def _single(found: Sequence[Finding], test: str, symbols: str, plan: Inference) -> list[str]:
    errors = [one.result.error for one in found if one.result is not None]
    mean, cells = sum(errors) / len(errors), len(found[0].spec.weights)
    of = detectable if test == "greater" else reachable_margin
    shown = []
    for sd in plan.run_sds:
        error = math.sqrt(mean**2 + cells * sd**2)
        shown.append(f"{number(100 * of(error, math.inf, plan), 1)} if {number(100 * sd, 1)}")
    what = "smallest effect found" if test == "greater" else "margin reached"
    return [
        f"{symbols}: one seed a cell. CANNOT BE KNOWN: how much runs differ from seed to seed, hence the seeds needed, "
        "the smallest effect and the margin",
        f"  known: the error over images alone, {number(100 * mean, 2)} points (mean of {len(found)} contrasts)",
        f"  {what} with one seed, in points, were the run-to-run SD known: {', '.join(shown)}",
        f"  to know it, run at least 3 seeds, better {plan.num_seeds}",
    ]


def power_frame(results: GridResults, judgement: Judgement) -> Frame:
    """T6: where the variance of every contrast comes from, and what could be shown with these and with more seeds."""
    plan = judgement.registration.inference
    further = (2, 5)
    columns = ["contrast", "block", "seeds", "images %", "seeds %", "image×seed %", "error pp", "MDE pp", "margin pp"]
    columns += [f"{name} at +{more}" for more in further for name in ("MDE", "margin")] + ["seeds needed", "notes"]
    rows, raw = [], []
    for one in judgement.findings:
        cells, numbers = _power_line(one, further, judgement)
        rows.append(tuple(cells))
        raw.append(numbers)
    notes = [
        "images, seeds, image×seed: shares of the variance; images and seeds both hold image×seed, which is taken off "
        "once (unless images or seeds alone are more than what is left)",
        f"MDE: smallest effect that a two-sided test at {plan.alpha:g} finds with power {plan.power:g}; margin: "
        "smallest one within which no difference is shown to lie with that power; pp: percentage points",
        f"seeds needed: a cell, for an effect of {points(plan.smallest_effect, 1)} pp (γ, κ) or a margin of "
        f"{points(plan.margin, 1)} pp (δ); at most {plan.most_seeds} were looked at",
    ]
    if any(one.single_seed for one in judgement.findings):
        notes.append("one seed: how runs differ cannot be known, nor what follows from it; run at least 3 seeds")
    return Frame(
        title=f"T6, grid {results.name}: variance components and power",
        notes=tuple(notes),
        columns=tuple(columns),
        left=2,
        narrow=("contrast", "block", "seeds", "error pp", "MDE pp", "margin pp", "seeds needed", "notes"),
        rows=tuple(rows),
        raw=tuple(raw),
    )


def _power_line(one: Finding, further: Sequence[int], judgement: Judgement) -> tuple[list[str], Raw]:
    plan = judgement.registration.inference
    head = [one.spec.symbol, block_name(one.block, judgement)]
    seeds = min(one.seeds.values(), default=0)
    numbers: Raw = {"contrast": one.spec.id, "block": head[1], "num_seeds": seeds}
    keys = [
        f"{name}{suffix}" for suffix in ("", *(f"_at_plus_{more}" for more in further)) for name in ("mde", "margin")
    ]
    numbers |= dict.fromkeys(["share_images", "share_seeds", "share_residual", "error", *keys, "seeds_needed"])
    result = one.result
    if result is None:
        return [*head, str(seeds), *[GAP] * 11, "; ".join(one.reasons)], numbers
    numbers["error"] = result.error
    found = components(result, one.num_images)
    if found is None or not result.parts["total"]:
        note = "one seed" if found is None else "no variance at all"
        return [*head, str(seeds), *[GAP] * 3, _pp(result.error), *[GAP] * 7, note], numbers
    shares = [result.parts[name] / result.parts["total"] for name in ("images", "seeds", "residual")]
    reach = [(result.error, result.df), *(found.error(seeds + more) for more in further)]
    reached = [of(*at, plan) for at in reach for of in (detectable, reachable_margin)]
    needed = seeds_needed(found, one.spec.test, plan)
    numbers |= dict(zip(("share_images", "share_seeds", "share_residual"), shares, strict=True))
    numbers |= dict(zip(keys, reached, strict=True)) | {"seeds_needed": needed}
    cells = [*(percent(share, 0) for share in shares), _pp(result.error), *map(_pp, reached)]
    return [*head, str(seeds), *cells, str(needed) if needed else f"> {plan.most_seeds}", ""], numbers


def _pp(fraction: float) -> str:
    return number(100 * fraction, 2)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.power`."""
    cli = argparse.ArgumentParser(
        prog="python -m analysis.power", description="Seeds needed and margins reachable, from the runs stored."
    )
    cli.add_argument("--grid", metavar="NAME", help="default: the only grid in the store")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--next", metavar="CLAIM", help="whether a claim is decided, else which seeds would decide most")
    cli.add_argument("--json", action="store_true", help="with --next: as one JSON object")
    cli.add_argument("--digest", action="store_true", help="print the digest of preregistration.toml and stop")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 2 when nothing could be shown."""
    options = parser().parse_args(argv)
    try:
        known = registration()
        if options.digest:
            print(known.digest)
            return 0
        if options.json and options.next is None:
            raise AnalysisError("--json goes with --next CLAIM; T6 as a file: python -m analysis.tables --tables T6")
        storage = Storage(options.results)
        results = load_results(storage, chosen_grid(storage, options.grid), options.variant)
        evidence = read_evidence(storage, results)
        if options.next is not None:
            _show_next(next_seeds(storage, results, evidence, known, options.next), as_json=options.json)
            return 0
        judgement = judge(results, evidence, known, with_scales=False)
    except (AnalysisError, RecordError, RegistrationError, StorageError) as error:
        print(plain(f"analysis.power: {redacted(str(error))}"), file=sys.stderr)
        return 2
    console = Terminal() if sys.stdout.isatty() else Terminal(width=180)
    frame = marked_grid(power_frame(results, judgement), results)
    first = [note for note in watermarks(results) if note not in frame.notes]
    show(replace(frame, notes=(*first, *frame.notes)), console)
    for line in [*known_and_unknown(judgement), judgement.standing]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _show_next(found: Next, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found.as_json(), indent=1))
        return
    print(
        f"{found.claim}: {found.verdict}, {found.state}, judged at level {found.level:g}: one of at most "
        f"{found.most_looks} looks"
    )
    for line in found.lines:
        print(plain(f"  {line}"))
    for pick in found.picks:
        print(plain(f"  next: {pick.label} with seed {pick.seed}, about {pick.hours:.3g} device-hours"))


if __name__ == "__main__":
    sys.exit(main())
