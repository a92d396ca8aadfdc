"""The same contrasts from accuracies that others published: context beside a grid's own, never pooled with them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from analysis.frame import GAP, Frame, Raw, percent, points
from analysis.hypotheses import Judgement
from analysis.sentences import block_name

FILE = Path(__file__).with_name("literature.toml")
_DATASET = "dataset"


@cache
def _published() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def literature_frames(judgement: Judgement) -> dict[str, Frame]:
    """The published contrasts (`literature`) and gains by length of training (`lengths`) of the data sets of a grid;
    empty where nothing was published for them, or the grid's design lacks a part of what was."""
    datasets = dict.fromkeys(one.block.get(_DATASET, "") for one in judgement.findings)
    roles = judgement.design.roles
    studies = [
        study
        for study in _published()["studies"]
        if study["dataset"] in datasets and all(part in roles for cell in study["accuracy"] for part in cell.split("."))
    ]
    lengths = [one for one in _published()["lengths"] if one["dataset"] in datasets and one["arm"] in roles]
    frames = {}
    if studies:
        frames["literature"] = _contrasts_frame(judgement, studies)
    if lengths:
        frames["lengths"] = _lengths_frame(judgement, lengths)
    return frames


def _contrasts_frame(judgement: Judgement, studies: list[dict[str, Any]]) -> Frame:
    cells = list(dict.fromkeys(cell for study in studies for cell in study["accuracy"]))
    specs = [
        spec
        for spec in judgement.registration.contrasts
        if all(set(spec.weights) <= study["accuracy"].keys() for study in studies)
    ]
    rows: list[tuple[str, ...]] = []
    raw: list[Raw] = []

    def add(source: str, setting: str, accuracy: Mapping[str, float], contrasts: Mapping[str, float | None]) -> None:
        shown = [percent(accuracy.get(cell)) for cell in cells]
        rows.append((source, setting, *shown, *(points(contrasts[spec.id], 1) for spec in specs)))
        line: Raw = {"source": source, "setting": setting, **{cell: accuracy.get(cell) for cell in cells}}
        raw.append(line | {spec.id: contrasts[spec.id] for spec in specs})

    for study in studies:
        sums = {spec.id: sum(w * study["accuracy"][cell] for cell, w in spec.weights.items()) for spec in specs}
        add(study["name"], study["setting"], study["accuracy"], sums)
    own = {study["dataset"] for study in studies}
    blocks: dict[str, dict[str, float | None]] = {}
    means: dict[str, dict[str, float]] = {}
    for one in judgement.findings:
        if one.spec in specs and one.block.get(_DATASET) in own:
            block = block_name(one.block, judgement)
            blocks.setdefault(block, {})[one.spec.id] = one.result.estimate if one.result else None
            for cell, row in one.cells.items():
                if row is not None and row.done:
                    top1 = [run.final.metrics["top1"] for run in row.done]
                    means.setdefault(block, {})[cell] = sum(top1) / len(top1)
    for block, contrasts in blocks.items():
        add("this grid", block, means.get(block, {}), contrasts)
    names = [" ".join(judgement.registration.name(part, "en") for part in cell.split(".")) + " %" for cell in cells]
    columns = ("source", "setting", *names, *(f"{spec.symbol} pp" for spec in specs))
    return Frame(
        title="Literature: the same contrasts from published accuracies",
        notes=(
            "published accuracies are of other models, resolutions and recipes; no errors were published, so none are "
            f"shown; {GAP}: not estimable here, see T3",
            *(f"{study['name']}: {study['source']}; {study['remark']}" for study in studies),
        ),
        columns=columns,
        left=2,
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
    )


def _lengths_frame(judgement: Judgement, lengths: list[dict[str, Any]]) -> Frame:
    rows, raw = [], []
    for one in lengths:
        arm = judgement.registration.name(one["arm"], "en")
        for epochs, gain in one["gain"].items():
            rows.append((one["name"], one["model"], arm, f"{int(epochs):,}", points(gain)))
            line: Raw = {"source": one["name"], "model": one["model"], "arm": arm, "epochs": int(epochs), "gain": gain}
            raw.append(line)
    columns = ("source", "model", "arm", "epochs", "gain pp")
    return Frame(
        title="Literature: one gain at several lengths of training",
        notes=("the effect depends on how long is trained, so captions here name the epochs",),
        columns=columns,
        left=3,
        narrow=columns,
        rows=tuple(rows),
        raw=tuple(raw),
    )
