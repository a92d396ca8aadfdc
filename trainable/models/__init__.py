"""`build_model`: the one table from a model's name to its constructor.

torch and timm are imported when a model is built, so that reading an experiment file stays quick.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from trainable.spec import ModelSpec

Constructor = Callable[[int, int], "nn.Module"]
"""(num_classes, image_size) -> the module, randomly initialised from torch's generator."""


def _library(library: str, name: str) -> Constructor:
    """A model of timm or torchvision."""

    def build(num_classes: int, image_size: int) -> nn.Module:
        from trainable.models import libraries

        return libraries.BUILDERS[library](name, num_classes, image_size)

    return build


def _small(name: str) -> Constructor:
    def build(num_classes: int, image_size: int) -> nn.Module:
        from trainable.models import small

        module: nn.Module = getattr(small, name)(num_classes, image_size)
        return module

    return build


MODELS: dict[str, Constructor] = {
    "resnet18": _library("timm", "resnet18"),
    "resnet50": _library("timm", "resnet50"),
    "vit_small_patch16_224": _library("timm", "vit_small_patch16_224"),
    "small_resnet": _small("small_resnet"),
    "small_vit": _small("small_vit"),
    "toy_dilated": _small("toy_dilated"),
}
"""Models by their own names. Others are `timm/<name>`, `torchvision/<name>`, and `vit`, whose parts the spec gives."""
LIBRARIES = ("timm", "torchvision")
_LIBRARY_NAME = r"[a-z0-9][a-z0-9_]{0,99}"


def check_name(name: str) -> None:
    """Refuses what cannot be a model's name. Whether a library has the model shows when it is built.

    Raises:
        ValueError: it cannot.
    """
    library, slash, own = name.partition("/")
    if name in MODELS or name == "vit" or (slash and library in LIBRARIES and re.fullmatch(_LIBRARY_NAME, own)):
        return
    raise ValueError(
        f'"{name}" is not one of {", ".join([*MODELS, "vit"])}, timm/<name>, torchvision/<name>{nearest(name, MODELS)}'
    )


def build_model(model: ModelSpec, num_classes: int, image_size: int) -> nn.Module:
    """Builds a model for square images of `image_size` pixels, randomly initialised from torch's generator.

    Args:
        model: its name and parts.
        num_classes: outputs, where `model.num_outputs` does not say otherwise.
        image_size: side in pixels.

    Returns:
        The module, in training mode: [B, 3, S, S] float32 -> [B, outputs] float32. A `vit` with auxiliary heads gives a
        tuple of such in training, the last head's first.

    Raises:
        ValueError: a name that the library does not know, fewer outputs than classes, images of a size that the model
            cannot take, or a variant of parts that it does not have. The message begins with the field.
    """
    outputs = model.num_outputs or num_classes
    if outputs < num_classes:
        raise ValueError(f"model.num_outputs: {outputs} is less than the {num_classes} classes of the data")
    module = _constructor(model)(outputs, image_size)
    if model.stem or model.group_norm or model.bn_groups > 1 or model.input_norm != "none" or model.mixstyle_depth:
        from trainable.models.resnet_variants import vary

        vary(module, model)
    return module


def _constructor(model: ModelSpec) -> Constructor:
    library, slash, own = model.name.partition("/")
    if slash:
        return _library(library, own)
    if model.vit is not None:
        from trainable.models.vit_native import NativeVit

        parts = model.vit
        return lambda num_classes, image_size: NativeVit(parts, num_classes, image_size)
    return MODELS[model.name]


def scalars_of(module: nn.Module) -> dict[str, float]:
    """What a model's parts tell about themselves, by dotted name: statistics of a `RunningNorm`, temperatures of a
    `NativeVit`. Reads them from the device, which waits for it: for evaluations, not for every step.
    """
    found: dict[str, float] = {}
    for name, part in module.named_modules():
        scalars = getattr(part, "scalars", None)
        if callable(scalars):
            found |= {f"{name}.{key}" if name else key: value for key, value in scalars().items()}
    return found


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message that suggests the closest known name; empty when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
