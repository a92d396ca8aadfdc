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

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def new_head(state: State, model: nn.Module) -> dict[str, str]:
    """Leaves the classifier's tensors out, so that the model keeps its fresh ones."""
    head = classifier_name(model)
    for name in [name for name in state if name.startswith(head + ".")]:
        del state[name]
    return {}


def resize_positions(state: State, model: nn.Module) -> dict[str, str]:
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
        return {}
    state["pos_embed"] = resample_abs_pos_embed(
        old, new_size=list(parts.patch_embed.grid_size), num_prefix_tokens=parts.num_prefix_tokens
    )
    return {"pos_embed": f"resampled from {old.shape[1]} to {parts.pos_embed.shape[1]} tokens"}


OPERATIONS: dict[str, Callable[[State, nn.Module], dict[str, str]]] = {
    "new_head": new_head,
    "resize_positions": resize_positions,
}


def classifier_name(model: nn.Module) -> str:
    """The dotted name of the model's last linear layer, as timm's `get_classifier` gives it."""
    head = model.get_classifier()  # type: ignore[operator]
    return str(next(name for name, module in model.named_modules() if module is head))


def load_weights(model: nn.Module, state: State, surgery: tuple[str, ...], origin: str) -> LoadReport:
    """Operates on a copy of `state` and loads it into `model` in place.

    Raises:
        WeightsError: a tensor that fits nowhere, or one that is missing without an operation that left it out.
    """
    working = copy.copy(state)
    changed: dict[str, str] = {}
    for name in surgery:
        changed |= OPERATIONS[name](working, model)
    target = model.state_dict()
    left_out = set(state) - set(working)
    new = sorted(set(target) - set(working))
    faults = [
        f"{name} is {list(working[name].shape)}, the model needs {list(target[name].shape)}"
        for name in sorted(set(working) & set(target))
        if working[name].shape != target[name].shape
    ]
    faults += [f"{name} is missing" for name in new if name not in left_out]
    faults += [f"{name} is unknown to the model" for name in sorted(set(working) - set(target))]
    if faults:
        raise WeightsError(
            f"{origin}: the weights do not fit: {'; '.join(faults[:5])}{' ...' if len(faults) > 5 else ''}. "
            f"init.surgery is [{', '.join(surgery)}]; new_head leaves the classifier out, resize_positions resamples "
            "a position table"
        )
    model.load_state_dict(working, strict=False)
    return LoadReport(
        kept=tuple(sorted(set(working) - set(changed))),
        changed=changed,
        new=tuple(new),
        dropped=tuple(sorted(left_out)),
    )
