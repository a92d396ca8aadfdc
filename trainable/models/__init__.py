"""`build_model`: the one table from a model's name to its constructor.

torch and timm are imported when a model is built, so that reading an experiment file stays quick.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

Constructor = Callable[[int, int], "nn.Module"]
"""(num_classes, image_size) -> the module, randomly initialised from torch's generator."""


def _timm_cnn(name: str) -> Constructor:
    def build(num_classes: int, image_size: int) -> nn.Module:
        import timm

        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
        return module

    return build


def _timm_vit(name: str) -> Constructor:
    def build(num_classes: int, image_size: int) -> nn.Module:
        import timm

        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, img_size=image_size)
        return module

    return build


def _small(name: str) -> Constructor:
    def build(num_classes: int, image_size: int) -> nn.Module:
        from trainable.models import small

        module: nn.Module = getattr(small, name)(num_classes, image_size)
        return module

    return build


MODELS: dict[str, Constructor] = {
    "resnet18": _timm_cnn("resnet18"),
    "resnet50": _timm_cnn("resnet50"),
    "vit_small_patch16_224": _timm_vit("vit_small_patch16_224"),
    "small_resnet": _small("small_resnet"),
    "small_vit": _small("small_vit"),
}


def build_model(name: str, num_classes: int, image_size: int) -> nn.Module:
    """Builds a registered model for square images of `image_size` pixels.

    Raises:
        ValueError: unknown name, or a model that cannot take images of this size.
    """
    if name not in MODELS:
        raise ValueError(f'model.name: "{name}" is not one of {", ".join(MODELS)}{nearest(name, MODELS)}')
    try:
        return MODELS[name](num_classes, image_size)
    except AssertionError as error:
        raise ValueError(f"model.name: {name} cannot take images of {image_size} pixels ({error})") from None


def nearest(name: str, known: Iterable[str]) -> str:
    """The tail of an error message that suggests the closest known name; empty when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
