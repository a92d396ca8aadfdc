"""Predicted cost: counted on the real model, against numbers known from elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import run_spec

from datasets.store import Dataset
from tuner.cost import _forward, predict_cost
from tuner.grid import load_grid


def test_resnet50_at_224_pixels_has_its_known_cost() -> None:
    """4.09 G multiply-adds, 25,557,032 parameters: timm's own table."""
    parameters, flops = _forward("resnet50", 1000, 224, 224)
    assert parameters == 25_557_032 and flops == pytest.approx(2 * 4.09e9, rel=0.02)


def test_vit_small_at_224_pixels_has_its_known_cost() -> None:
    parameters, flops = _forward("vit_small_patch16_224", 1000, 224, 224)
    assert parameters == 22_050_664 and flops == pytest.approx(2 * 4.6e9, rel=0.05)


def test_paper_rows_have_the_studys_steps(root: Path) -> None:
    runs = {run.label: run.spec for run in load_grid(root / "experiments.yaml", "paper").runs}
    cifar, tiny = (predict_cost(runs[label], None, None) for label in ("Control-1", "Control-3"))
    assert cifar is not None and tiny is not None
    assert (cifar.steps, tiny.steps) == (50 * 196, 50 * 391)
    assert (cifar.num_parameters, tiny.num_parameters) == (23_712_932, 23_917_832)
    assert tiny.flops > 6 * cifar.flops, "four times the pixels, twice the images"


def test_limits_classes_and_epochs_shorten(toy: Dataset) -> None:
    def flops(**fields: object) -> float:
        spec = run_spec({name.replace("__", "."): value for name, value in fields.items()})
        cost = predict_cost(spec, toy.manifest, 30)
        assert cost is not None
        return cost.flops

    whole = flops()
    assert flops(budget__epochs=6) == pytest.approx(2 * whole, rel=0.1)
    assert flops(data__limit_train=16) < 0.5 * whole
    assert flops(data__classes=[0, 1]) < 0.8 * whole


def test_a_training_step_costs_three_forward_passes(toy: Dataset) -> None:
    """Steps of 16 images of the 60, an evaluation of 30 images after every 4 steps, and one for best_on_test."""
    _, forward = _forward("small_vit", 3, 8, 8)
    cost = predict_cost(run_spec({"budget.epochs": 3}), toy.manifest, 30)
    assert cost is not None and cost.steps == 12
    assert cost.flops == pytest.approx(forward * (3 * 3 * 60 + 4 * 30))


def test_a_model_that_refuses_the_training_size_is_counted_at_its_own() -> None:
    assert _forward("small_vit", 3, 8, 4) == _forward("small_vit", 3, 8, 8)


def test_unknown_data_have_no_cost() -> None:
    assert predict_cost(run_spec(), None, None) is None
