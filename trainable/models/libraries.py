"""Models of timm and torchvision by their names there, with random weights, for images of any size they can take.

Sizes: timm builds its models of fixed input size (`fixed_input_size` in a model's own description: plain ViTs, Swin,
MLP-Mixer, ...) for any size that `img_size` names, and its others adapt by themselves. torchvision's ViTs and MaxViT
take the size under names of their own. What a model makes of that shows only in a forward pass, so each one is tried
on one black image before it is handed out; in evaluation mode, which draws no random number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainable.models import nearest


def timm_model(name: str, num_classes: int, image_size: int) -> nn.Module:
    """A model of timm.

    Raises:
        ValueError: timm has none of that name, or it cannot take such images.
    """
    import timm

    if not timm.is_model(name):
        raise ValueError(f'model.name: timm has no model "{name}"{nearest(name, timm.list_models())}')
    described = timm.get_pretrained_cfg(name)
    size = {"img_size": image_size} if described is not None and described.fixed_input_size else {}

    def create() -> nn.Module:
        module: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **size)
        return module

    return _tried(f"timm/{name}", num_classes, image_size, create)


def torchvision_model(name: str, num_classes: int, image_size: int) -> nn.Module:
    """A classification model of torchvision; GoogLeNet and Inception without their auxiliary heads.

    Raises:
        ValueError: torchvision has none of that name, or it cannot take such images.
    """
    from torchvision import models

    known = models.list_models(module=models)  # without those for detection, segmentation and video
    if name not in known:
        raise ValueError(f'model.name: torchvision has no model "{name}" that classifies images{nearest(name, known)}')
    own: dict[str, Any] = {}
    if name.startswith("vit_"):
        own = {"image_size": image_size}
    elif name.startswith("maxvit_"):
        own = {"input_size": (image_size, image_size)}
    elif name in ("googlenet", "inception_v3"):
        own = {"aux_logits": False, "init_weights": True}

    def create() -> nn.Module:
        try:
            module: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **own)
        except NotImplementedError:  # RegNet reckons its widths with tensors, which hold no numbers on the meta device
            with torch.device("cpu"):
                module = models.get_model(name, weights=None, num_classes=num_classes, **own)
            module.to(torch.get_default_device())
        return module

    return _tried(f"torchvision/{name}", num_classes, image_size, create)


BUILDERS: dict[str, Callable[[str, int, int], nn.Module]] = {"timm": timm_model, "torchvision": torchvision_model}
"""By library: (name, num_classes, image_size) -> the module, in training mode."""


def _tried(name: str, num_classes: int, image_size: int, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        module = create().eval()
        device = next(module.parameters()).device
        with torch.no_grad():
            logits: Any = module(torch.zeros(1, 3, image_size, image_size, device=device))
    except (AssertionError, IndexError, RuntimeError, ValueError, ZeroDivisionError) as error:
        if "allocate" in str(error):  # too little memory says nothing of the size
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"model.name: {name} cannot take images of {image_size} pixels ({reason})") from None
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, num_classes):
        given = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model.name: {name} gives {given} for an image, not one score a class; choose another model")
    return module.train()
