"""F9 and F10: how far confidence can be trusted, and what is gained by answering only where it is high."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.calibration import BINS, equal_mass
from analysis.figure_inputs import Cell, Inputs, seeds_and_images
from analysis.frame import percent
from analysis.plotting import Page, add_caption, legend, new_figure, shown, slug

ARCHS_PER_PAGE = 4
COVERAGES = np.arange(1, 101) / 100


def reliability(inputs: Inputs) -> list[Page]:
    """F9: a page a block, a column an architecture; accuracy by confidence, the gap below, then the confidences.

    A block of many architectures takes several pages.
    """
    found = []
    for block in (block for page in inputs.block_pages() for block in page):
        palette = inputs.palette
        archs = [arch for arch in palette.archs if any(inputs.cell(block, arch, aug) for aug in palette.augs)]
        parts = [archs[i : i + ARCHS_PER_PAGE] for i in range(0, len(archs), ARCHS_PER_PAGE)]
        name = f"F9-{slug(*block)}" if block else "F9"
        found += [
            _reliability_page(inputs, block, part, name if len(parts) == 1 else f"{name}-page{number}")
            for number, part in enumerate(parts, 1)
        ]
    return found


def _reliability_page(inputs: Inputs, block: tuple[str, ...], archs: Sequence[str], name: str) -> Page:
    palette = inputs.palette
    figure = new_figure(4.6)
    panels = figure.subplots(
        3, len(archs), sharex=True, sharey="row", squeeze=False, gridspec_kw={"height_ratios": [1.5, 0.9, 0.6]}
    )
    numbers: list[dict[str, Any]] = []
    cells: list[Cell] = []
    for j, arch in enumerate(archs):
        curve, gap, histogram = panels[:, j]
        curve.set_title(shown(arch, 30))
        curve.plot([0, 100], [0, 100], color="#888888", linewidth=0.6)
        gap.axhline(0, color="#888888", linewidth=0.6)
        for aug in palette.augs:
            cell = inputs.cell(block, arch, aug)
            if cell is None:
                continue
            cells.append(cell)
            found = inputs.predictions(cell)
            bins = equal_mass(found.correct.reshape(-1), found.confidence.reshape(-1))
            confidence, accuracy = (values[bins.counts > 0] for values in (bins.confidence, bins.accuracy))
            look: dict[str, Any] = {"color": palette.colour(arch), "linestyle": palette.line(aug)}
            curve.plot(100 * confidence, 100 * accuracy, **look)
            gap.plot(100 * confidence, 100 * (confidence - accuracy), **look)
            share, edges = np.histogram(found.confidence, bins=20, range=(0, 1))
            histogram.stairs(100 * share / found.confidence.size, 100 * edges, **look)
            numbers += [
                {
                    **cell.place,
                    "bin": i + 1,
                    "mean_confidence": p,
                    "accuracy": right,
                    "signed_gap": p - right,
                }
                for i, (p, right) in enumerate(zip(confidence.tolist(), accuracy.tolist(), strict=True))
            ]
        histogram.set_xlabel("confidence (%)")
    for axes, label in zip(
        panels[:, 0], ("accuracy (%)", "confidence less\naccuracy (points)", "images (%)"), strict=True
    ):
        axes.set_ylabel(label)
    panels[0, 0].set(xlim=(-1, 101), ylim=(-2, 103))
    figure.align_ylabels(panels[:, 0])
    legend(figure, palette.aug_handles())
    where = ", ".join(block) or inputs.results.name
    caption = (
        f"{where}: {BINS} bins of equal numbers of predictions, seeds pooled. Above the zero line of the middle row a "
        "run is over-confident, below it under-confident. Lowest row: share of predictions by confidence. "
        f"{seeds_and_images(cells)}"
    )
    add_caption(figure, caption)
    worst = max(numbers, key=lambda row: abs(row["signed_gap"]))
    side = "over" if worst["signed_gap"] > 0 else "under"
    alt = (
        f"Reliability, {where}; the largest gap: {worst['arch']} with {worst['aug']} is {side}-confident by "
        f"{percent(abs(worst['signed_gap']), 1)} points at a confidence of {percent(worst['mean_confidence'], 1)} %."
    )
    return _page(name, figure, caption, alt, numbers, cells)


def risk_coverage(inputs: Inputs) -> list[Page]:
    """F10: errors among the images that a run is most sure of, by how many are answered."""
    pages = inputs.block_pages()
    return [_risk_page(inputs, blocks, f"F10-{i}" if len(pages) > 1 else "F10") for i, blocks in enumerate(pages, 1)]


def _risk_page(inputs: Inputs, blocks: Sequence[tuple[str, ...]], name: str) -> Page:
    palette = inputs.palette
    figure = new_figure(2.4)
    panels = figure.subplots(1, len(blocks), sharey=True, squeeze=False)[0]
    numbers: list[dict[str, Any]] = []
    areas: dict[tuple[str, str, str], float] = {}
    cells: list[Cell] = []
    for axes, block in zip(panels, blocks, strict=True):
        for cell in (found for found in inputs.cells if found.block == block and found.runs):
            cells.append(cell)
            risks, area = selective_risk(inputs.predictions(cell).confidence, inputs.predictions(cell).correct)
            axes.plot(100 * COVERAGES, 100 * risks, color=palette.colour(cell.arch), linestyle=palette.line(cell.aug))
            where = {**cell.place, "aurc": area}
            areas[where["block"], cell.arch, cell.aug] = area
            numbers += [
                {**where, "coverage": c, "risk": r} for c, r in zip(COVERAGES.tolist(), risks.tolist(), strict=True)
            ]
        axes.set_title("\n".join(shown(part, 22) for part in block) or inputs.results.name)
        axes.set_xlabel("answered (%)")
        axes.set(xlim=(0, 101), xticks=[0, 50, 100])
    panels[0].set_ylabel("errors among them (%)")
    legend(figure, [*palette.arch_handles(markers=False), *palette.aug_handles()])
    caption = (
        "Errors among the share of the images with the highest confidence, mean over seeds; lower is better. The right "
        f"end is the error on all images. {seeds_and_images(cells)}"
    )
    add_caption(figure, caption)
    (block_name, arch, aug), area = min(areas.items(), key=lambda item: item[1])
    best = ", ".join((block_name, arch, aug))
    alt = f"Risk by coverage; the smallest mean risk over all coverages is {percent(area, 1)} % ({best})."
    return _page(name, figure, caption, alt, numbers, cells)


def selective_risk(confidence: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """Risk [100] at COVERAGES, and the mean over all coverages; both are means over seeds.

    Args:
        confidence: [K, N].
        correct: [K, N].
    """
    order = np.argsort(-confidence, axis=1, kind="stable")
    wrong = np.take_along_axis(~correct, order, axis=1)
    num = wrong.shape[1]
    risk = (wrong.cumsum(axis=1) / np.arange(1, num + 1)).mean(axis=0)
    return risk[np.ceil(COVERAGES * num).astype(int) - 1], float(risk.mean())


def _page(name: str, figure: Any, caption: str, alt: str, numbers: list[dict[str, Any]], cells: Sequence[Cell]) -> Page:
    run_ids = tuple(run.run_id for cell in cells for run in cell.runs)
    tables = ("predictions",)
    return Page(name=name, figure=figure, caption=caption, alt=alt, numbers=numbers, run_ids=run_ids, tables=tables)
