"""Optimiser, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from trainable.spec import BudgetSpec, EvaluateSpec, OptimSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


def total_steps(budget: BudgetSpec, steps_per_epoch: int) -> int:
    """Optimiser steps of a whole run."""
    return budget.steps if budget.steps is not None else (budget.epochs or 0) * steps_per_epoch


def evaluation_interval(evaluate: EvaluateSpec, steps_per_epoch: int) -> int:
    """Optimiser steps between evaluations."""
    if evaluate.every_steps is not None:
        return evaluate.every_steps
    return (evaluate.every_epochs or 0) * steps_per_epoch


def learning_rate(optim: OptimSpec, step: int, steps: int, steps_per_epoch: int) -> float:
    """The rate of optimiser step `step` (0-based) of `steps`.

    cosine: min_lr + (lr - min_lr) / 2 * (1 + cos(pi * t / T)), t and T counted in epochs or steps; the first study's
    rate of epoch e of 50 is 0.5e-3 * (1 + cos(pi * e / 50)).
    """
    rate = optim.lr
    if optim.schedule == "cosine":
        if optim.schedule_per == "epoch":
            done, whole = step // steps_per_epoch, math.ceil(steps / steps_per_epoch)
        else:
            done, whole = step, steps
        rate = optim.min_lr + (optim.lr - optim.min_lr) / 2 * (1 + math.cos(math.pi * done / whole))
    return rate * min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else rate


def build_optimizer(optim: OptimSpec, model: nn.Module) -> torch.optim.Optimizer:
    """One parameter group over all parameters, torch's own optimisers (fused on CUDA)."""
    import torch

    parameters = list(model.parameters())
    fused = all(parameter.is_cuda for parameter in parameters)
    if optim.name == "sgd":
        assert optim.momentum is not None, "checked by OptimSpec"
        return torch.optim.SGD(
            parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=fused
        )
    assert optim.betas is not None and optim.eps is not None, "checked by OptimSpec"
    kind = torch.optim.Adam if optim.name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay, fused=fused)
