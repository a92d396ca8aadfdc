"""What the studies change in a network that is there already: stem, normalisation, and the style of its features.

`vary` applies a `ModelSpec`'s changes in place. None of them renames a tensor, so weights of the plain network load
into the varied one (and back) wherever shapes agree; `surgery.py` leaves out what they do not share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trainable.spec import ModelSpec

STAGES = ("layer1", "layer2", "layer3", "layer4")
"""A ResNet's stages, as timm and torchvision name them."""


class RunningNorm(nn.Module):
    """Normalises images by running statistics of those seen in training: (x - mean) / sqrt(var + 1e-9).

    In training, the mean and biased variance of the batch become the statistics, where there are none yet, or move them
    by 1 % towards themselves; and the batch is normalised by the moved statistics, not by its own (the third study's
    `src/normalizer.py`). No gradient passes through them. Before any training there are none (NaN), and in evaluation
    mode images pass as they are.

    Args:
        num_channels: 1 takes one mean and variance over all pixels and colours, otherwise one a channel.
    """

    MOMENTUM = 0.01
    EPS = 1e-9
    running_mean: torch.Tensor
    """[num_channels] float32."""
    running_var: torch.Tensor
    """Likewise."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.full((num_channels,), math.nan))
        self.register_buffer("running_var", torch.full((num_channels,), math.nan))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] float32 -> the same, normalised."""
        if self.training:
            mean, var = self._follow(images)
        else:
            mean, var = self.running_mean.nan_to_num(0.0), self.running_var.nan_to_num(1.0)
        return (images - mean.view(1, -1, 1, 1)) / (var + self.EPS).sqrt().view(1, -1, 1, 1)

    @torch.no_grad()
    def _follow(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        over = (0, 2, 3) if len(self.running_mean) > 1 else (0, 1, 2, 3)
        var, mean = torch.var_mean(images, dim=over, correction=0)
        moved = []
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            # chosen on the device: asking whether it is NaN would wait for it at every step
            to = torch.where(running.isnan(), batch, (1 - self.MOMENTUM) * running + self.MOMENTUM * batch)
            running.copy_(to)
            moved.append(to)
        return moved[0], moved[1]

    def scalars(self) -> dict[str, float]:
        """`mean` and `var`, or `mean.0`, ... by channel; read from the device."""
        found: dict[str, float] = {}
        for key, values in (("mean", self.running_mean.tolist()), ("var", self.running_var.tolist())):
            found |= {key: values[0]} if len(values) == 1 else {f"{key}.{i}": value for i, value in enumerate(values)}
        return found


class MixStyle(nn.Module):
    """Gives images the style of others of the batch, in training, at every other call (Zhou et al., ICLR 2021).

    An image's style is the mean and the deviation sqrt(unbiased variance + 1e-6) of each of its channels over space.
    With a partner by one permutation of the batch and lam ~ Beta(0.1, 0.1) for each image, it gets lam times its own
    style and 1 - lam times its partner's: (x - mean) / deviation * mixed deviation + mixed mean, no gradient passing
    through styles. Labels stay.

    The coin of a call comes from torch's generator of the CPU, wherever the images are, since it decides what this
    process asks the device to do; lam and permutation come from the generator of the images' device.
    """

    PROB = 0.5
    """Of mixing, a call."""
    ALPHA = 0.1
    """Of the Beta distribution: lam is mostly near 0 or 1."""
    EPS = 1e-6

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> the same.

        Raises:
            ValueError: in training, features of a single position.
        """
        if not self.training:
            return features
        if features.shape[2:].numel() < 2:
            raise ValueError(
                "model.mixstyle_depth: features of one position have no variance; lower it, or take larger images"
            )
        # On the meta device passes are only counted (tuner/profile.py): always the dearer one, and nothing is drawn.
        if not features.is_meta and float(torch.rand((), device="cpu")) > self.PROB:
            return features
        mean, deviation = self._style(features)
        lam, partner = self._draws(features)
        mixed_mean = lam * mean + (1 - lam) * mean[partner]
        mixed_deviation = lam * deviation + (1 - lam) * deviation[partner]
        return ((features - mean) / deviation * mixed_deviation + mixed_mean).to(features.dtype)

    def after(self, _: nn.Module, __: Any, features: torch.Tensor) -> torch.Tensor:
        """As a forward hook."""
        mixed: torch.Tensor = self(features)
        return mixed

    def _style(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        var, mean = torch.var_mean(features.detach().float(), dim=(2, 3), correction=1, keepdim=True)
        return mean, (var + self.EPS).sqrt()

    def _draws(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """lam [B, 1, 1, 1] float32, partner [B] int64."""
        num_images, device = len(features), features.device
        alpha = torch.full((num_images,), self.ALPHA, device=device)
        if features.is_meta:  # torch has no Beta there
            lam = torch.empty_like(alpha)
        else:  # unchecked, since checking waits for the device
            lam = torch.distributions.Beta(alpha, alpha, validate_args=False).sample()
        return lam.view(-1, 1, 1, 1), torch.randperm(num_images, device=device)


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm as `num_groups` processes see it that share a batch (torch's DataParallel).

    In training, the batch is cut by `torch.chunk` and each part normalised by its own statistics; the running ones
    follow the first part. In evaluation it is plain BatchNorm. Its tensors have BatchNorm's names.

    Args:
        norm: the BatchNorm whose tensors and settings it takes over.
        num_groups: parts of a batch.
    """

    def __init__(self, norm: nn.BatchNorm2d, num_groups: int) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.num_groups = num_groups
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> the same.

        Raises:
            ValueError: in training, a part of one image with one position.
        """
        if not self.training:
            return super().forward(images)
        first, *others = torch.chunk(images, self.num_groups)
        parts = [super().forward(first)]
        parts += [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True, eps=self.eps) for part in others
        ]
        return torch.cat(parts)


def vary(module: nn.Module, model: ModelSpec) -> None:
    """Changes a network in place as `model` says; new layers are initialised from torch's generator.

    Raises:
        ValueError: the network has not the parts that a change needs; the message begins with the field.
    """
    if model.stem == "small":
        _small_stem(module, model.name)
    if model.group_norm is not None:
        _group_norm(module, model.name, model.group_norm)
    if model.bn_groups > 1:
        groups = model.bn_groups
        _replace_norms(module, model.name, "bn_groups", lambda _, norm: GroupedBatchNorm2d(norm, groups))
    if model.mixstyle_depth:
        _mix_styles(module, model.name, model.mixstyle_depth)
    if model.input_norm != "none":
        if isinstance(module, nn.Sequential):  # it would call the layer once more, after its last
            raise ValueError(f"model.input_norm: {model.name} is a plain sequence of layers; set it to none")
        module.add_module("input_norm", RunningNorm(1 if model.input_norm == "scalar" else 3))
        module.register_forward_pre_hook(_normalised)


def _normalised(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A pre-hook. It finds its layer in the module it is given, so that it holds for copies, too; and calls past that
    layer's own hooks: by these `analysis/networks.py` finds a network's stages, of which the input is none."""
    norm: Any = module.input_norm
    return (norm.forward(inputs[0]), *inputs[1:])


def _small_stem(module: nn.Module, name: str) -> None:
    """A first convolution for small images, as the second study's: 3x3, stride 1, with bias; no max-pool."""
    old = getattr(module, "conv1", None)
    if not isinstance(old, nn.Conv2d) or not isinstance(getattr(module, "maxpool", None), nn.Module):
        raise ValueError(
            f"model.stem: small replaces a ResNet's conv1 and maxpool; {name} has not both, set it to null"
        )
    module.conv1 = nn.Conv2d(old.in_channels, old.out_channels, kernel_size=3, stride=1, padding=1, bias=True)
    module.maxpool = nn.Identity()


def _group_norm(module: nn.Module, name: str, num_groups: int) -> None:
    def replaced(place: str, norm: nn.BatchNorm2d) -> nn.Module:
        if norm.num_features % num_groups:
            raise ValueError(
                f"model.group_norm: the {norm.num_features} channels of {name}'s {place} do not divide into "
                f"{num_groups} groups; choose a divisor of all"
            )
        group = nn.GroupNorm(num_groups, norm.num_features, norm.eps, norm.affine)
        group.weight, group.bias = norm.weight, norm.bias  # where an initialisation chose them (timm's last of a block)
        return group

    _replace_norms(module, name, "group_norm", replaced)


def _replace_norms(
    module: nn.Module, name: str, field: str, replaced: Callable[[str, nn.BatchNorm2d], nn.Module]
) -> None:
    norms = [(place, part) for place, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)]
    if not norms:
        raise ValueError(f"model.{field}: {name} has no BatchNorm to change; leave {field} out")
    for place, norm in norms:
        if type(norm) is not nn.BatchNorm2d:  # timm's BatchNormAct2d, for one, holds the activation
            raise ValueError(
                f"model.{field}: {name}'s {place} is a {type(norm).__name__}, which is more than BatchNorm; "
                f"leave {field} out"
            )
        module.set_submodule(place, replaced(place, norm))


def _mix_styles(module: nn.Module, name: str, depth: int) -> None:
    stages = [getattr(module, stage, None) for stage in STAGES]
    style = MixStyle()
    for stage in stages:
        if not isinstance(stage, nn.Module):
            raise ValueError(
                f"model.mixstyle_depth: {depth} needs a ResNet's stages {', '.join(STAGES)}, {name} has not all; "
                "set it to 0"
            )
    module.add_module("mixstyle", style)
    for stage in stages[:depth]:
        assert isinstance(stage, nn.Module)
        stage.register_forward_hook(style.after)
