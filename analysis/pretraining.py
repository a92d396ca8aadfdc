"""On what data a run's weights had been trained before it began, and what it trains of them.

Read from the runs' rows of `trials` and their specs, along the chain of parents, never from the names of rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from analysis.gates import Evidence
from analysis.load import GridResults, SeedRun
from analysis.stand_ins import stand_in_of

SCRATCH = "random weights"
FULL, PARTLY, PROBE, EVALUATED = "all weights trained", "some weights trained", "linear probe", "evaluated only"
TRAININGS = (FULL, PARTLY, PROBE, EVALUATED)
_IMAGENET = re.compile(r"(?<![a-z0-9])in(1k|12k|21k|22k)(?![a-z0-9])")
"""How timm's tags name ImageNet's selections."""
_TORCHVISION = re.compile(r"\w+_Weights\.IMAGENET1K_V\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Of one run."""

    data: tuple[str, ...]
    """What its initial weights were trained on, in order; empty: on nothing."""
    training: str
    """One of TRAININGS."""

    @property
    def source(self) -> str:
        """The data in words."""
        return ", then ".join(self.data) or SCRATCH


def origins(results: GridResults, evidence: Mapping[str, Evidence]) -> dict[str, Origin]:
    """The origin of every run that is done, by run id."""
    runs = {run.run_id: run for run in results.done}
    return {
        run_id: Origin(data=_data(run, runs, ()), training=_training(run, evidence[run_id]))
        for run_id, run in runs.items()
    }


def _data(run: SeedRun, runs: Mapping[str, SeedRun], children: tuple[str, ...]) -> tuple[str, ...]:
    kind, source = run.trial["init_kind"], str(run.trial["init_source"])
    if kind == "scratch":
        return ()
    if kind == "parent":
        parent = runs.get(source)
        if parent is None or source in children:
            return (f"run {source}, which is not in this store",)
        before = _data(parent, runs, (*children, run.run_id))
        return (*before, _name(parent, run)) if parent.trial["steps"] else before
    named = weights_data(source) if kind == "hub" else (f"file {source}",)
    return (f"random weights in place of {', then '.join(named)}",) if stand_in_of(run) is not None else named


def _name(parent: SeedRun, run: SeedRun) -> str:
    """The parent's data, and in what they differ from the run's own where they have the same name."""
    own, theirs = run.trial, parent.trial
    name = str(theirs["dataset"])
    if name != own["dataset"]:
        return name
    size = f" at {theirs['image_size']} px" if theirs["image_size"] != own["image_size"] else ""
    return f"{name}{size}{' of other classes' if theirs['classes'] != own['classes'] else ''}"


def weights_data(source: str) -> tuple[str, ...]:
    """What published weights were trained on, in order, from their name: that of timm
    (`vit_base_patch16_224.augreg_in21k_ft_in1k`) or torchvision (`torchvision/ResNet18_Weights.IMAGENET1K_V1`). A name
    that tells no more stands for itself."""
    if _TORCHVISION.fullmatch(source.rpartition("/")[2]):
        return ("ImageNet-1k",)
    found: list[str] = []
    for part in source.partition(".")[2].split("_ft_"):
        spaced = part.replace("_", " ")
        known = [f"ImageNet-{size}" for size in _IMAGENET.findall(spaced)]
        found += known or [part]
    return tuple(one for one in found if one) or (source,)


def _training(run: SeedRun, evidence: Evidence) -> str:
    frozen = evidence.spec.get("optim.frozen") or []
    if not run.trial["steps"]:
        return EVALUATED
    if not frozen:
        return FULL
    return PROBE if "backbone" in frozen else PARTLY
