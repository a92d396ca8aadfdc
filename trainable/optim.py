"""Optimiser, frozen modules, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from trainable.spec import BudgetSpec, EvaluateSpec, OptimSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

BACKBONE = "backbone"


class FreezeError(ValueError):
    """`optim.frozen` or `optim.layer_decay` does not fit the model; the message names the field and the mend."""


def whole_steps(budget: BudgetSpec, steps_per_epoch: int) -> int:
    """Optimiser steps of the whole budget, which the schedule is laid over."""
    return budget.steps if budget.steps is not None else (budget.epochs or 0) * steps_per_epoch


def total_steps(budget: BudgetSpec, steps_per_epoch: int) -> int:
    """Optimiser steps that a run makes."""
    whole = whole_steps(budget, steps_per_epoch)
    return whole if budget.compress_to is None else min(whole, budget.compress_to)


def steps_per_epoch(budget: BudgetSpec, num_images: int) -> int:
    """Batches of one epoch over `num_images` training images."""
    return num_images // budget.batch_size if budget.drop_last else -(-num_images // budget.batch_size)


def evaluation_interval(evaluate: EvaluateSpec, steps_per_epoch: int) -> int:
    """Optimiser steps between evaluations."""
    if evaluate.every_steps is not None:
        return evaluate.every_steps
    return (evaluate.every_epochs or 0) * steps_per_epoch


def learning_rate(optim: OptimSpec, step: int, steps: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step `step` (0-based) of a schedule over `steps`.

    cosine: min_lr + (lr - min_lr) / 2 * (1 + cos(pi * t / T)), t and T counted in epochs or steps; the first study's
    rate of epoch e of 50 is 0.5e-3 * (1 + cos(pi * e / 50)).
    step: lr * gamma ** floor(t / step_size), not below min_lr.
    warmup_decay: min_lr + (lr - min_lr) * g with g = i / warmup_steps for i < warmup_steps, then (T - i) /
    (T - warmup_steps), not below 0. i = step - 1: DeepSpeed moves its schedule after the optimiser; the very first
    step, for which its versions differ, takes min_lr.
    """
    if optim.schedule == "warmup_decay":
        i = max(0, step - 1)
        rising, falling = i / optim.warmup_steps, (steps - i) / max(1, steps - optim.warmup_steps)
        return optim.min_lr + (optim.lr - optim.min_lr) * (rising if i < optim.warmup_steps else max(0.0, falling))
    done, whole = step, steps
    if optim.schedule_per == "epoch":
        done, whole = step // steps_per_epoch, math.ceil(steps / steps_per_epoch)
    rate = optim.lr
    if optim.schedule == "cosine":
        rate = optim.min_lr + (optim.lr - optim.min_lr) / 2 * (1 + math.cos(math.pi * done / whole))
    elif optim.schedule == "step":
        assert optim.step_size is not None and optim.gamma is not None, "checked by OptimSpec"
        rate = max(optim.min_lr, optim.lr * optim.gamma ** (done // optim.step_size))
    return rate * min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else rate


def frozen_modules(model: nn.Module, optim: OptimSpec) -> list[nn.Module]:
    """Takes the parameters that `optim.frozen` names out of training.

    Returns:
        The modules below the names, those in evaluation mode while training where `frozen_batchnorm` is fixed.

    Raises:
        FreezeError: a name is the beginning of no module's or parameter's, or nothing is left to train.
    """
    if not optim.frozen:
        return []
    from trainable.surgery import classifier_name

    head = classifier_name(model)
    prefixes = [name for name in optim.frozen if name != BACKBONE]
    named = [name for name, _ in model.named_modules() if name] + [name for name, _ in model.named_parameters()]
    for prefix in prefixes:
        if not any(_below(name, prefix) for name in named):
            tops = ", ".join(name for name, _ in model.named_children())
            raise FreezeError(f'optim.frozen: "{prefix}" is nothing of this model; its parts are {tops}, or {BACKBONE}')

    def is_frozen(name: str) -> bool:
        whole = BACKBONE in optim.frozen and not _below(name, head)
        return whole or any(_below(name, prefix) for prefix in prefixes)

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_frozen(name))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FreezeError(f"optim.frozen: {', '.join(optim.frozen)} leaves nothing to train; leave {head} out")
    return [
        module for name, module in model.named_modules() if name and not list(module.children()) and is_frozen(name)
    ]


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def build_optimizer(optim: OptimSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Torch's own optimisers, fused, over all parameters that are trained: one group, or one a layer with its
    `lr_scale` where the rate decays from layer to layer.

    Raises:
        FreezeError: layer_decay for a model whose layers timm does not know.
    """
    import torch

    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[Any] = parameters
    on_card = all(parameter.is_cuda for parameter in parameters)

    def rate() -> Any:
        """On a card it lies there, one a group, so that a recorded step reads what the host has written."""
        return torch.tensor(optim.lr, device=parameters[0].device) if on_card else optim.lr

    if optim.layer_decay is not None:
        from timm.optim import param_groups_layer_decay

        if not hasattr(model, "group_matcher"):
            raise FreezeError(
                "optim.layer_decay: needs a model of timm, which says what its layers are; set it to null for this one"
            )
        groups = [
            {"params": group["params"], "lr_scale": group["lr_scale"], "lr": rate()}
            for group in param_groups_layer_decay(model, layer_decay=optim.layer_decay)
        ]
    if optim.name == "sgd":
        assert optim.momentum is not None, "checked by OptimSpec"
        return torch.optim.SGD(groups, lr=rate(), momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True)
    assert optim.betas is not None and optim.eps is not None, "checked by OptimSpec"
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(
        groups,
        lr=rate(),
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
        capturable=on_card,
    )
