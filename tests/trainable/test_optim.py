"""The learning rate as a pure function of the step, and steps from durations."""

from __future__ import annotations

import math

import pytest
import torch
from toy import run_spec

from trainable.models import build_model
from trainable.optim import build_optimizer, evaluation_interval, learning_rate, total_steps


def test_the_first_studys_schedule() -> None:
    """lr(e) = 0.5e-3 * (1 + cos(pi e / 50)), constant within an epoch of 196 steps; the last epoch at 9.87e-7."""
    optim = run_spec().optim
    for epoch in (0, 1, 25, 49):
        expected = 0.5e-3 * (1 + math.cos(math.pi * epoch / 50))
        for step in (epoch * 196, epoch * 196 + 195):
            assert learning_rate(optim, step, 50 * 196, 196) == pytest.approx(expected, rel=1e-12)
    assert learning_rate(optim, 49 * 196, 50 * 196, 196) == pytest.approx(9.866e-7, rel=1e-3)


def test_it_equals_torchs_scheduler_over_the_epochs() -> None:
    optim = run_spec().optim
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=optim.lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for epoch in range(10):
        assert learning_rate(optim, epoch * 7, 70, 7) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_constant_per_step_warmup_and_floor() -> None:
    constant = run_spec({"optim.schedule": "constant"}).optim
    assert {learning_rate(constant, step, 100, 10) for step in range(100)} == {1e-3}
    cosine = run_spec({"optim.schedule_per": "step", "optim.min_lr": 1e-4, "optim.warmup_steps": 4}).optim
    rates = [learning_rate(cosine, step, 100, 10) for step in range(100)]
    assert rates[:2] == pytest.approx([1e-3 / 4, 2e-3 / 4], rel=1e-3)
    assert rates[3:] == sorted(rates[3:], reverse=True) and rates[-1] == pytest.approx(1e-4, rel=0.01)


def test_durations() -> None:
    spec = run_spec()
    assert total_steps(spec.budget, 7) == 21 and evaluation_interval(spec.evaluate, 7) == 7
    by_steps = run_spec(
        {"budget.epochs": None, "budget.steps": 50, "evaluate.every_epochs": None, "evaluate.every_steps": 9}
    )
    assert total_steps(by_steps.budget, 7) == 50 and evaluation_interval(by_steps.evaluate, 7) == 9


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({}, torch.optim.Adam),
        ({"optim.name": "adamw", "optim.weight_decay": 0.1}, torch.optim.AdamW),
        ({"optim.name": "sgd", "optim.betas": None, "optim.eps": None, "optim.momentum": 0.9}, torch.optim.SGD),
    ],
)
def test_optimisers_are_torchs(fields: dict[str, object], kind: type) -> None:
    spec = run_spec(fields)
    model = build_model("small_vit", 3, 8)
    optimizer = build_optimizer(spec.optim, model)
    assert type(optimizer) is kind and len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["weight_decay"] == spec.optim.weight_decay
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
