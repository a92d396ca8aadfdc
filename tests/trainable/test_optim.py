"""The learning rate as a pure function of the step, and steps from durations."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from toy import run_spec

from trainable.models import build_model
from trainable.optim import (
    FreezeError,
    build_optimizer,
    evaluation_interval,
    frozen_modules,
    learning_rate,
    steps_per_epoch,
    total_steps,
)
from trainable.spec import ModelSpec


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


def test_the_second_studys_steps_fall_at_the_end_of_epochs_7_and_14() -> None:
    """1e-3 in epochs 1-7, 1e-4 in 8-14, 1e-5 in 15, as its curves show; runs of 7 epochs keep 1e-3."""
    optim = run_spec({"optim.schedule": "step", "optim.step_size": 7, "optim.gamma": 0.1}).optim
    rates = [learning_rate(optim, step, 15_000, 1000) for step in range(15_000)]
    assert set(rates[:7000]) == {1e-3}
    assert rates[7000:14_000] == pytest.approx([1e-4] * 7000) and rates[14_000:] == pytest.approx([1e-5] * 1000)
    by_step = run_spec(
        {"optim.schedule": "step", "optim.schedule_per": "step", "optim.step_size": 7, "optim.gamma": 0.5}
    )
    assert [learning_rate(by_step.optim, step, 20, 1000) for step in (6, 7, 14)] == [1e-3, 5e-4, 2.5e-4]
    floor = run_spec({"optim.schedule": "step", "optim.step_size": 1, "optim.gamma": 0.1, "optim.min_lr": 5e-4}).optim
    assert learning_rate(floor, 5, 10, 1) == 5e-4


def test_the_third_studys_warmup_and_decay() -> None:
    """Its fact sheet: gamma = i/500 for i < 500, else max(0, (5000 - i)/4500), and optimiser step k (from 1) takes
    i = k - 2."""
    fields = {
        "optim.schedule": "warmup_decay",
        "optim.schedule_per": "step",
        "optim.warmup_steps": 500,
        "optim.lr": 2e-4,
        "optim.min_lr": 1e-6,
    }
    optim = run_spec(fields).optim
    for k in (2, 3, 250, 501, 502, 503, 2751, 4999, 5000):
        i = k - 2
        gamma = i / 500 if i < 500 else max(0.0, (5000 - i) / 4500)
        assert learning_rate(optim, k - 1, 5000, 390) == pytest.approx(1e-6 + 1.99e-4 * gamma, rel=1e-12), k
    assert learning_rate(optim, 0, 5000, 390) == 1e-6
    rates = [learning_rate(optim, step, 5000, 390) for step in range(5000)]
    assert max(rates) == rates[501] == pytest.approx(2e-4)


def test_the_fourth_studys_cosine_ends_at_a_hundredth() -> None:
    optim = run_spec({"optim.min_lr": 1e-5}).optim
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-5)
    for epoch in range(10):
        assert learning_rate(optim, epoch * 3 + 2, 30, 3) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        scheduler.step()


def test_durations() -> None:
    spec = run_spec()
    assert total_steps(spec.budget, 7) == 21 and evaluation_interval(spec.evaluate, 7) == 7
    by_steps = run_spec(
        {"budget.epochs": None, "budget.steps": 50, "evaluate.every_epochs": None, "evaluate.every_steps": 9}
    )
    assert total_steps(run_spec({"budget.compress_to": 5}).budget, 7) == 5
    assert total_steps(run_spec({"budget.compress_to": 500}).budget, 7) == 21, "never longer"
    assert total_steps(run_spec({"budget.epochs": 0}).budget, 7) == 0
    assert steps_per_epoch(run_spec().budget, 50) == 4
    assert steps_per_epoch(run_spec({"budget.drop_last": True}).budget, 50) == 3
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
    model = build_model(ModelSpec(name="small_vit"), 3, 8)
    optimizer = build_optimizer(spec.optim, model)
    assert type(optimizer) is kind and len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["weight_decay"] == spec.optim.weight_decay
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_frozen_backbone_leaves_the_classifier() -> None:
    model = build_model(ModelSpec(name="torchvision/resnet18"), 10, 32)
    spec = run_spec({"optim.frozen": ["backbone"]})
    frozen = frozen_modules(model, spec.optim)
    assert trained(model) == {"fc.weight", "fc.bias"}
    assert sum(parameter.numel() for name, parameter in model.named_parameters() if name in trained(model)) == 5130
    assert model.bn1 in frozen and model.fc not in frozen
    optimizer = build_optimizer(spec.optim, model)
    assert [parameter.shape for parameter in optimizer.param_groups[0]["params"]] == [(10, 512), (10,)]


def test_layers_are_frozen_by_the_beginning_of_their_names() -> None:
    """The third study's levels: stem and the first stages."""
    model = build_model(ModelSpec(name="torchvision/resnet18"), 10, 32)
    frozen = frozen_modules(model, run_spec({"optim.frozen": ["conv1", "bn1", "layer1"]}).optim)
    assert not [name for name in trained(model) if name.startswith(("conv1", "bn1", "layer1"))]
    assert {"layer2.0.conv1.weight", "fc.bias"} <= trained(model)
    assert model.layer1[0].bn1 in frozen and model.layer2[0].bn1 not in frozen
    vit = build_model(ModelSpec(name="small_vit"), 3, 8)
    frozen_modules(vit, run_spec({"optim.frozen": ["pos_embed", "blocks.1"]}).optim)
    assert "pos_embed" not in trained(vit) and "blocks.0.attn.qkv.weight" in trained(vit)
    assert not [name for name in trained(vit) if name.startswith("blocks.1.")]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layer9"], 'optim.frozen: "layer9" is nothing of this model; its parts are conv1, bn1, '),
        (["layer"], 'optim.frozen: "layer" is nothing of this model'),
        (["backbone", "fc"], "optim.frozen: backbone, fc leaves nothing to train; leave fc out"),
    ],
)
def test_what_cannot_be_frozen_is_said(names: list[str], message: str) -> None:
    model = build_model(ModelSpec(name="small_resnet"), 3, 8)
    with pytest.raises(FreezeError) as caught:
        frozen_modules(model, run_spec({"optim.frozen": names}).optim)
    assert message in str(caught.value)


def test_rates_decay_from_layer_to_layer() -> None:
    """timm's grouping: head, then block after block down to the embedding; weight decay stays on everything."""
    model = build_model(ModelSpec(name="small_vit"), 3, 8)
    optimizer = build_optimizer(run_spec({"optim.layer_decay": 0.5, "optim.weight_decay": 0.1}).optim, model)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: scale[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(by_name) == len(list(model.parameters())) == len(scale)
    assert by_name["head.weight"] == 1.0
    blocks = [by_name[f"blocks.{number}.attn.qkv.weight"] for number in range(4)]
    assert blocks == sorted(blocks) and all(later == 2 * former for former, later in itertools.pairwise(blocks))
    assert by_name["patch_embed.proj.weight"] == blocks[0] / 2
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
    with pytest.raises(FreezeError, match="layer_decay: needs a model of timm"):
        build_optimizer(
            run_spec({"optim.layer_decay": 0.5}).optim, build_model(ModelSpec(name="torchvision/resnet18"), 3, 32)
        )
