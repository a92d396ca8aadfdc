"""F2, F3 and F14: the registered contrasts with their verdicts, their equivalence, and what more seeds would show.

Every number and verdict comes from `analysis.hypotheses` and `analysis.power`; here they are only drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.figure_inputs import ASSUMED_RUN_SD, Inputs, MissingInputs
from analysis.frame import GAP, interval, percent, points
from analysis.hypotheses import Finding, Judgement
from analysis.plotting import LINES, SMALL, Page, add_caption, legend, new_figure, shown
from analysis.power import components, detectable, reachable_margin
from analysis.sentences import block_name, finding_name, finding_sentence, verdict_text
from analysis.stats import ContrastResult

DARK, SHADES = "#222222", ("#333333", "#8C8C8C", "#D0D0D0")
SEEDS = range(2, 21)
Row = tuple[Finding, ContrastResult | None, bool]
"""A finding, what is drawn of it, and whether it is drawn hollow: estimable only with the health gate open."""


def forest(inputs: Inputs) -> list[Page]:
    """F2: every directed contrast by block, its interval and its verdict."""
    judgement, rows = _rows(inputs, "greater")
    contrasts = list(dict.fromkeys(finding.spec.id for finding, _, _ in rows))
    by_contrast = [[row for row in rows if row[0].spec.id == one] for one in contrasts]
    sizes = [len(members) for members in by_contrast]
    figure = new_figure(0.5 + 0.28 * len(contrasts) + 0.19 * sum(sizes))
    ratios: dict[str, Any] = {"height_ratios": [size + 0.6 for size in sizes], "width_ratios": [1, 0.8]}
    panels = figure.subplots(len(contrasts), 2, squeeze=False, sharex="col", gridspec_kw=ratios)
    for (axes, words), members in zip(panels, by_contrast, strict=True):
        _intervals(axes, members)
        axes.set_yticks(range(len(members)), [shown(block_name(one.block, judgement), 34) for one, _, _ in members])
        axes.set_title(shown(_title(members[0][0], judgement), 90), loc="left", fontsize=7.5)
        words.set_axis_off()
        words.set_ylim(axes.get_ylim())
        for y, row in enumerate(members):
            words.text(0.0, y, _words(*row), va="center", fontsize=7, transform=words.get_yaxis_transform())
    panels[-1][0].set_xlabel("difference of gains (points); right of 0 as predicted")
    single = any(result is not None and result.single_seed for _, result, _ in rows)
    gated = _GATED if any(hollow for _, _, hollow in rows) else ""
    caption = f"{_interval_words(single)}{gated}{_seeds_words(rows)} {judgement.standing}."
    add_caption(figure, caption)
    claims = ", ".join(f"{claim} {verdict_text(verdict)}" for claim, verdict in judgement.claims().items())
    return [_page(inputs, "F2", figure, caption, f"Registered contrasts by block. Claims: {claims}.", rows)]


def _rows(inputs: Inputs, test: str) -> tuple[Judgement, list[Row]]:
    """The findings of one kind of test; of those that only the health gate stops, what they would be without it."""
    judgement = inputs.judgement
    ungated = {(one.spec.id, tuple(one.block.items())): one.result for one in inputs.ungated_judgement.findings}
    found: list[Row] = []
    for one in (one for one in judgement.findings if one.spec.test == test):
        without = ungated[one.spec.id, tuple(one.block.items())]
        found.append((one, one.result or without, one.result is None and without is not None))
    if not any(result for _, result, _ in found):
        reasons = list(dict.fromkeys(reason for one, _, _ in found for reason in one.reasons))
        raise MissingInputs(f"no contrast of this kind can be estimated: {'; '.join(reasons[:3])}")
    return judgement, found


def _title(finding: Finding, judgement: Judgement) -> str:
    claims = [claim for claim in judgement.registration.claims if finding.spec.id in claim.contrasts]
    return f"{claims[0].id}: {claims[0].text['en']} ({finding.spec.symbol})" if claims else finding.spec.symbol


def _intervals(axes: Axes, rows: Sequence[Row], *, inner: float | None = None) -> None:
    """Estimates with 95 % intervals, a line a finding; thick where `inner` is given: the interval of that level."""
    for y, (_, result, hollow) in enumerate(rows):
        if result is None:
            continue
        low, high = (100 * bound for bound in result.interval)
        if result.single_seed:
            half = 196 * math.sqrt(result.parts["total"] + ASSUMED_RUN_SD**2 * result.square_weights)
            axes.plot([100 * result.estimate - half, 100 * result.estimate + half], [y, y], color=DARK, linewidth=0.5)
        axes.plot([low, high], [y, y], color=DARK, linewidth=1.4 if inner is None else 0.9)
        if inner is not None:
            axes.plot([100 * bound for bound in result.interval_at(inner)], [y, y], color=DARK, linewidth=2.4)
        face = "white" if hollow else DARK
        axes.plot([100 * result.estimate], [y], color=DARK, marker="o", markersize=4, markerfacecolor=face)
    axes.axvline(0, color="#666666", linewidth=0.8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _words(finding: Finding, result: ContrastResult | None, hollow: bool) -> str:
    if result is None:
        return f"{GAP}   {verdict_text(finding.verdict)}"
    mark = " †" if hollow else ""
    return f"{points(result.estimate, 1)} {interval(*result.interval)}{mark}   {verdict_text(finding.verdict)}"


_ONE_SEED = (
    "One seed: intervals are over images, for these checkpoints; the variance over seeds is unknown. Hairlines: were "
    f"the runs' standard deviation {percent(ASSUMED_RUN_SD, 1)} points (assumed). A star: from one seed."
)


_GATED = "† hollow: not estimable by the registered rules; drawn as it would be with the health gate open. "


def _interval_words(single: bool) -> str:
    if not single:
        return "Bars: 95 % intervals over images and seeds (two-way). "
    return f"Bars: 95 % intervals. {_ONE_SEED} "


def _seeds_words(rows: Sequence[Row]) -> str:
    seeds = sorted({count for one, _, _ in rows for count in one.seeds.values()})
    images = sorted({one.num_images for one, _, _ in rows if one.num_images})
    count, num = (f"{one[0]:,}" if one[0] == one[-1] else f"{one[0]:,} to {one[-1]:,}" for one in (seeds, images))
    return f"{count} seed{'' if count == '1' else 's'} a cell, {num} test images, checkpoint after the last step."


def equivalence(inputs: Inputs) -> list[Page]:
    """F3: changes of the contrasts by the third factor against the margin, and which margins would pass."""
    judgement, rows = _rows(inputs, "equivalent")
    plan = judgement.registration.inference
    tested = [
        (i, one, result)
        for i, (one, result, hollow) in enumerate(rows)
        if result and not hollow and not result.single_seed
    ]
    figure = new_figure(max(1.9, 0.7 + 0.3 * len(rows)))
    ratios = [1, 0.62, 0.7] if tested else [1, 0.8]
    axes, words, *rest = figure.subplots(1, len(ratios), gridspec_kw={"width_ratios": ratios})
    axes.axvspan(-100 * plan.margin, 100 * plan.margin, color="#E4E4E4", linewidth=0)
    _intervals(axes, rows, inner=1 - 2 * plan.alpha)
    axes.set_yticks(
        range(len(rows)), [f"{one.spec.symbol} {shown(block_name(one.block, judgement), 22)}" for one, _, _ in rows]
    )
    axes.set_xlabel("change (points)")
    words.set_axis_off()
    words.set_ylim(axes.get_ylim())
    for y, (finding, result, hollow) in enumerate(rows):
        told = verdict_text(finding.verdict)
        if result is not None:
            inner = interval(*result.interval_at(1 - 2 * plan.alpha))
            told = f"{points(result.estimate, 1)} {inner}{' †' if hollow else ''}\n{told}"
        words.text(0.0, y, told, va="center", fontsize=SMALL, transform=words.get_yaxis_transform())
    numbers: list[dict[str, Any]] = []
    if tested:
        (curve,) = rest
        widest = max(result.smallest_margin(plan.alpha) for _, _, result in tested)
        margins = np.linspace(0, 1.2 * max(widest, plan.margin), 201)[1:]
        for k, (_, one, result) in enumerate(tested):
            p = [result.p_equivalent(float(margin)) for margin in margins]
            curve.plot(100 * margins, p, color=DARK, linestyle=LINES[k % len(LINES)], linewidth=1)
            where = {"contrast": one.spec.id, "block": block_name(one.block, judgement)}
            at = zip(margins.tolist(), p, strict=True)
            numbers += [{**where, "margin": margin, "p_equivalent": value} for margin, value in at]
        curve.axhline(plan.alpha, color="#666666", linewidth=0.8)
        curve.axvline(100 * plan.margin, color="#999999", linewidth=0.8)
        curve.set(xlim=(0, 100 * margins[-1]), ylim=(0, 1.02), xlabel="margin (points)", ylabel="p of equivalence")
        handles = [
            Line2D([], [], color=DARK, linestyle=LINES[k % len(LINES)], label=shown(finding_name(one, judgement), 34))
            for k, (_, one, _) in enumerate(tested)
        ]
        legend(figure, handles, ncols=4)
    single = any(result is not None and result.single_seed for _, result, _ in rows)
    right = "Right: p of the two one-sided tests by margin, with the registered level and margin. "
    caption = (
        f"Thick: {100 * (1 - 2 * plan.alpha):g} %, thinner: 95 % interval. Grey: the registered margin of "
        f"±{percent(plan.margin, 1)} points; equivalent is what has its thick bar within it. "
        f"{right if tested else 'No margin is tested with one seed. '}{_ONE_SEED + ' ' if single else ''}"
        f"{_GATED if any(hollow for _, _, hollow in rows) else ''}{_seeds_words(rows)}"
    )
    add_caption(figure, caption)
    alt = " ".join(finding_sentence(one, judgement) for one, _, _ in rows[:4])
    return [_page(inputs, "F3", figure, caption, alt, rows, numbers)]


def power(inputs: Inputs) -> list[Page]:
    """F14: where each contrast's variance comes from, and what effect or margin more seeds would reach."""
    judgement = inputs.judgement
    plan = judgement.registration.inference
    found = [
        (one, known)
        for one in judgement.findings
        if one.result is not None and (known := components(one.result, one.num_images)) is not None
    ]
    if not found:
        raise MissingInputs("no contrast has two seeds in every cell, so nothing is known of the variance between runs")
    figure = new_figure(1.2 + 0.15 * len(found))
    bars, curves = figure.subplots(1, 2, gridspec_kw={"width_ratios": [1, 0.9]})
    numbers: list[dict[str, Any]] = []
    for y, (one, known) in enumerate(found):
        total = known.images + known.residual + known.runs
        left = 0.0
        for value, colour in zip((known.images, known.residual, known.runs), SHADES, strict=True):
            bars.barh([y], [100 * value / total if total else 0.0], left=left, color=colour, height=0.75, linewidth=0)
            left += 100 * value / total if total else 0.0
        reached = [_reached(one, known.error(seeds), plan) for seeds in SEEDS]
        style = LINES[0] if one.spec.test == "greater" else LINES[1]
        curves.plot(
            list(SEEDS), [100 * value for value in reached], color=DARK, linestyle=style, linewidth=0.8, alpha=0.7
        )
        where = {"contrast": one.spec.id, "block": block_name(one.block, judgement), "var_images": known.images,
                 "var_image_seed": known.residual, "var_runs": known.runs}  # fmt: skip
        numbers += [{**where, "seeds": seeds, "reached": value} for seeds, value in zip(SEEDS, reached, strict=True)]
    bars.set_yticks(range(len(found)), [shown(finding_name(one, judgement), 40) for one, _ in found], fontsize=SMALL)
    bars.set(xlim=(0, 100), ylim=(len(found) - 0.4, -0.6), xlabel="share of the variance at one seed (%)")
    bars.tick_params(axis="y", length=0)
    bars.grid(visible=False)
    curves.set(ylim=(0, None), xlabel="seeds a cell", ylabel="reached (points)", xticks=[2, 5, 10, 15, 20])
    kinds = {one.spec.test for one, _ in found}
    handles: list[Any] = [
        Patch(color=colour, label=label)
        for colour, label in zip(SHADES, ("images", "image × seed", "runs"), strict=True)
    ]
    labels = (("greater", "detectable effect"), ("equivalent", "reachable margin"))
    handles += [
        Line2D([], [], color=DARK, linestyle=LINES[k], label=label)
        for k, (test, label) in enumerate(labels)
        if test in kinds
    ]
    legend(figure, handles)
    caption = (
        "Left: where the variance of each contrast comes from with one seed a cell. Right: the smallest effect that is "
        "found, and the smallest margin within which no difference can be shown to lie, with a power of "
        f"{percent(plan.power, 0)} %, were further seeds like those stored; a line a contrast. More seeds take nothing "
        f"from the images' part. {_seeds_words([(one, one.result, False) for one, _ in found])}"
    )
    add_caption(figure, caption)
    best = min((row for row in numbers if row["seeds"] == plan.num_seeds), key=lambda row: row["reached"], default=None)
    alt = "Variance components of the contrasts and what more seeds would reach" + (
        f"; with {plan.num_seeds} seeds at best {percent(best['reached'], 1)} points." if best else "."
    )
    return [_page(inputs, "F14", figure, caption, alt, [(one, one.result, False) for one, _ in found], numbers)]


def _reached(finding: Finding, error: tuple[float, float], plan: Any) -> float:
    return (detectable if finding.spec.test == "greater" else reachable_margin)(*error, plan)


def _page(
    inputs: Inputs,
    name: str,
    figure: Any,
    caption: str,
    alt: str,
    rows: Sequence[Row],
    more: Sequence[dict[str, Any]] = (),
) -> Page:
    numbers = list(more) if name == "F14" else [_number(inputs.judgement, *row) for row in rows] + list(more)
    run_ids = {run.run_id for one, _, _ in rows for row in one.cells.values() if row is not None for run in row.done}
    return Page(
        name=name,
        figure=figure,
        caption=caption,
        alt=alt,
        numbers=numbers,
        run_ids=tuple(sorted(run_ids)),
        tables=("trials", "epochs", "provenance", "predictions"),
    )


def _number(judgement: Judgement, finding: Finding, result: ContrastResult | None, hollow: bool) -> dict[str, Any]:
    number: dict[str, Any] = {"contrast": finding.spec.id, "block": block_name(finding.block, judgement)}
    number |= {"verdict": verdict_text(finding.verdict), "gated": int(hollow), "p": finding.p, "p_holm": finding.p_holm}
    if result is not None:
        low, high = result.interval
        number |= {"estimate": result.estimate, "low": low, "high": high, "df": result.df}
    return number | {"reasons": "; ".join(finding.reasons)}
