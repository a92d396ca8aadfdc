"""Miniatures: of the first study's two architectures for images of a few pixels, built from timm's own parts; and the
third study's."""

from __future__ import annotations

import torch
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


class ToyDilated(nn.Module):
    """Four 3x3 convolutions of 32 channels at the image's own resolution, dilated 1, 2, 4, 8; then the mean over
    positions and a linear layer. With bias, and BatchNorm and GELU after each (`toy-dilated` of the third study).
    """

    def __init__(self, num_classes: int) -> None:
        layers: list[nn.Module] = []
        for dilation in (1, 2, 4, 8):
            channels = 32 if layers else 3
            convolution = nn.Conv2d(channels, 32, kernel_size=3, dilation=dilation, padding=dilation)
            layers += [convolution, nn.BatchNorm2d(32), nn.GELU()]
        super().__init__()
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] float32 -> logits [B, C]."""
        logits: torch.Tensor = self.head(self.features(images))
        return logits

    def get_classifier(self) -> nn.Module:
        """The last layer, as timm's models give theirs."""
        return self.head


def toy_dilated(num_classes: int, image_size: int) -> ToyDilated:
    """The third study's miniature; `image_size` is free."""
    return ToyDilated(num_classes)
