"""Changes to loaded weights before a model takes them: state-dict operations by name.

Each operation takes the loaded tensors and the freshly initialised model and says what it did. `load_weights` applies
a run's operations in order, loads the rest strictly, and returns the report that goes into the run's provenance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

State = dict[str, torch.Tensor]


class WeightsError(Exception):
    """Weights do not fit the model; the message names the tensors and the mend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """What became of every tensor, by name."""

    kept: tuple[str, ...] = ()
    """Loaded as they were."""
    changed: dict[str, str] = field(default_factory=dict)
    """Loaded after a change, with what was changed."""
    new: tuple[str, ...] = ()
    """In the model only: freshly initialised."""
    dropped: tuple[str, ...] = ()
    """In the source only: left out."""
    stand_in: str | None = None
    """Which random weights stood in for the published ones, of this run or of the run that its weights come from."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What an operation did to the loaded tensors, besides leaving some out."""

    changed: dict[str, str] = field(default_factory=dict)
    """Tensors that it changed, with how."""
    fresh: tuple[str, ...] = ()
    """Modules, by name, that keep their fresh tensors: none of these is missing."""


def new_head(state: State, model: nn.Module) -> Outcome:
    """Leaves the classifier's tensors out, and those of auxiliary heads, so that the model keeps its fresh ones."""
    heads = (*classifier_names(model), AUX_HEADS)
    for name in [name for name in state if _within(name, heads)]:
        del state[name]
    return Outcome(fresh=heads)


def resize_positions(state: State, model: nn.Module) -> Outcome:
    """Resamples a ViT's learned position table to the model's grid, with timm's own function (bicubic, antialiased).

    Raises:
        WeightsError: the model has no position table.
    """
    from timm.layers import resample_abs_pos_embed

    parts: Any = model
    if not isinstance(getattr(model, "pos_embed", None), torch.Tensor):
        raise WeightsError("init.surgery: resize_positions needs a model with a position table; leave it out here")
    old = state.get("pos_embed")
    if old is None or old.shape == parts.pos_embed.shape:
        return Outcome()
    state["pos_embed"] = resample_abs_pos_embed(
        old, new_size=list(parts.patch_embed.grid_size), num_prefix_tokens=parts.num_prefix_tokens
    )
    return Outcome(changed={"pos_embed": f"resampled from {old.shape[1]} to {parts.pos_embed.shape[1]} tokens"})


def small_stem(state: State, model: nn.Module) -> Outcome:
    """Leaves a ResNet's first convolution out, so that a model with the small stem (`model.stem: small`) keeps its
    fresh weight and bias (second study). All else is loaded, the BatchNorm behind it included.

    Raises:
        WeightsError: the model has not the small stem, the weights have no first convolution, or have the small one.
    """
    if "conv1.bias" not in model.state_dict():
        raise WeightsError("init.surgery: small_stem needs a model with the small stem; set model.stem to small")
    if "conv1.weight" not in state:
        raise WeightsError("init.surgery: small_stem needs weights with a conv1.weight, a ResNet's; leave it out here")
    if "conv1.bias" in state:
        raise WeightsError("init.surgery: small_stem: these weights have the small stem already; leave it out here")
    del state["conv1.weight"]
    return Outcome(fresh=("conv1",))


OPERATIONS: dict[str, Callable[[State, nn.Module], Outcome]] = {
    "new_head": new_head,
    "resize_positions": resize_positions,
    "small_stem": small_stem,
}
AUX_HEADS = "aux_heads"
"""Where `NativeVit` has its further heads."""


def classifier_name(model: nn.Module) -> str:
    """The dotted name of the model's classifier: what timm's `get_classifier` gives, or where there is no such method
    (torchvision) the last linear layer, or the last convolution where no layer is linear (SqueezeNet).

    Raises:
        WeightsError: the model has none.
    """
    return classifier_names(model)[0]


def classifier_names(model: nn.Module) -> tuple[str, ...]:
    """Likewise of all its classifiers: timm's distilled models have two."""
    names = {module: name for name, module in model.named_modules()}
    get_classifier: Any = getattr(model, "get_classifier", None)
    given = get_classifier() if get_classifier is not None else ()
    found = [names[head] for head in (given if isinstance(given, tuple | list) else (given,)) if head in names]
    for kind in (nn.Linear, nn.Conv2d):
        found = found or [name for module, name in names.items() if isinstance(module, kind)][-1:]
    if not found:
        raise WeightsError(f"{type(model).__name__} has no classifier: neither a linear layer nor a convolution")
    return tuple(found)


def _within(name: str, modules: tuple[str, ...]) -> bool:
    return any(name.startswith(module + ".") for module in modules)


def load_weights(model: nn.Module, state: State, surgery: tuple[str, ...], origin: str) -> LoadReport:
    """Operates on a copy of `state` and loads it into `model` in place.

    Raises:
        WeightsError: a tensor that fits nowhere, or one that is missing without an operation that left it out.
    """
    working = copy.copy(state)
    changed: dict[str, str] = {}
    fresh: tuple[str, ...] = ()
    for name in surgery:
        outcome = OPERATIONS[name](working, model)
        changed |= outcome.changed
        fresh += outcome.fresh
    target = model.state_dict()
    new = sorted(set(target) - set(working))
    faults = [
        f"{name} is {list(working[name].shape)}, the model needs {list(target[name].shape)}"
        for name in sorted(set(working) & set(target))
        if working[name].shape != target[name].shape
    ]
    faults += [f"{name} is missing" for name in new if not _within(name, fresh)]
    faults += [f"{name} is unknown to the model" for name in sorted(set(working) - set(target))]
    if faults:
        raise WeightsError(
            f"{origin}: the weights do not fit: {'; '.join(faults[:5])}{' ...' if len(faults) > 5 else ''}. "
            f"init.surgery is [{', '.join(surgery)}]; new_head leaves the classifier out, resize_positions resamples "
            "a position table, small_stem leaves a ResNet's first convolution out"
        )
    model.load_state_dict(working, strict=False)
    return LoadReport(
        kept=tuple(sorted(set(working) - set(changed))),
        changed=changed,
        new=tuple(new),
        dropped=tuple(sorted(set(state) - set(working))),
    )
