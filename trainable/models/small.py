"""Miniatures of the paper's two architectures for images of a few pixels, built from timm's own parts."""

from __future__ import annotations

from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn


def small_resnet(num_classes: int, image_size: int) -> ResNet:
    """A four-stage ResNet with one basic block a stage (about 0.2 M parameters).

    The stem is the one usual for small images: 3x3, stride 1, no max-pool. `image_size` is free.
    """
    model = ResNet(BasicBlock, layers=(1, 1, 1, 1), channels=(16, 32, 64, 96), num_classes=num_classes)
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def small_vit(num_classes: int, image_size: int) -> VisionTransformer:
    """A ViT with 2 x 2 patches and a class token, as many as the paper's ViT has at 32 pixels; width 64, depth 4.

    Raises:
        ValueError: the side cannot be halved.
    """
    if image_size % 2:
        raise ValueError(f"model.name: small_vit cuts the image into 2 x 2 patches; {image_size} pixels cannot be")
    return VisionTransformer(
        img_size=image_size,
        patch_size=image_size // 2,
        embed_dim=64,
        depth=4,
        num_heads=4,
        num_classes=num_classes,
    )
