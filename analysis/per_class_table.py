"""T9: the classes that an augmentation helps most and least."""

from __future__ import annotations

import numpy as np

from analysis.design import BASELINE, baseline_of, cells_of
from analysis.frame import Frame, Raw, p_value, percent, points
from analysis.load import AnalysisError, GridResults
from analysis.per_class import ClassGains, class_gains
from trainable.dims import read_class_names
from trainable.storage import Storage

EXTREMES = 10
FDR = 0.05


def per_class_frame(storage: Storage, results: GridResults) -> Frame:
    """T9: of every augmented cell the ten classes with the largest and the ten with the smallest shrunken gain.

    Raises:
        AnalysisError: no augmented cell and its default are both done.
    """
    cells = cells_of(results)
    rows: list[tuple[str, ...]] = []
    raw: list[Raw] = []
    found = []
    for cell in cells:
        base = baseline_of(cell, cells)
        if base is None or not cell.row.done or not base.row.done:
            continue
        gains = class_gains(cell.row, base.row)
        trial = cell.row.done[0].trial
        names = read_class_names(storage, trial["dataset"], trial["content_sha256"])
        found.append(f"{cell.row.label}: {_discoveries(gains)}")
        for position in _extremes(gains):
            number = int(gains.classes[position])
            values: Raw = {
                "run": cell.row.label,
                "cell": cell.name,
                "class": number,
                "name": names.get(number, str(number)),
                "num_images": int(gains.images[position]),
                "default_accuracy": float(gains.baseline[position]),
                "gain": float(gains.gain[position]),
                "error": float(gains.error[position]),
                "shrunken": float(gains.shrunken[position]),
                "q": float(gains.q[position]),
            }
            raw.append(values)
            rows.append(
                (
                    cell.row.label,
                    cell.name,
                    str(values["name"]),
                    str(values["num_images"]),
                    percent(gains.baseline[position], 1),
                    points(gains.gain[position], 1),
                    points(gains.error[position], 1).removeprefix("+"),
                    points(gains.shrunken[position], 1),
                    p_value(gains.q[position]),
                )
            )
    if not rows:
        raise AnalysisError(f'no augmentation is done beside its "{BASELINE}"')
    columns = ("run", "cell", "class", "images", "default %", "gain pp", "SE pp", "shrunken pp", "q")
    return Frame(
        title=f"T9, grid {results.name}: gains by class over the default (exploratory)",
        notes=(
            f"exploratory; of each cell the {EXTREMES} classes of largest and of smallest shrunken gain",
            "gain: accuracy on the class less the default's, mean over seeds; SE over the class's images and the seeds",
            "shrunken: drawn towards the cell's mean gain by as much as its error calls for",
            "q: of the class having the mean gain; Benjamini and Hochberg over the cell's classes",
            *found,
        ),
        columns=columns,
        left=3,
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
    )


def _extremes(gains: ClassGains) -> list[int]:
    """Positions by falling shrunken gain; of equal ones the larger gain first."""
    order = np.lexsort((gains.classes, -gains.gain, -gains.shrunken)).tolist()
    return order if len(order) <= 2 * EXTREMES else [*order[:EXTREMES], *order[-EXTREMES:]]


def _discoveries(gains: ClassGains) -> str:
    num = int((gains.q < FDR).sum())
    return (
        f"mean gain {points(gains.mean, 1)} pp; spread between classes {points(gains.spread, 1).removeprefix('+')} pp "
        f"after noise; {num} of {len(gains.classes)} classes with q below .05"
    )
