"""What a run costs before it is run: steps, parameters and floating-point operations, counted on the real model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from datasets.published import PUBLISHED
from datasets.store import Manifest
from trainable.optim import evaluation_interval, total_steps
from trainable.spec import RunSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Predicted cost of one run."""

    steps: int
    num_parameters: int
    flops: float
    """Floating-point operations of training and evaluation; a multiply-add counts two."""


def predict_cost(spec: RunSpec, manifest: Manifest | None, num_test: int | None) -> Cost | None:
    """Counts one forward pass without data, three times that for a training step.

    Args:
        spec: the run.
        manifest: of the prepared train split; None falls back on the published counts.
        num_test: images of the prepared test split, likewise.

    Returns:
        None when nothing is known of the data.
    """
    published = PUBLISHED.get(spec.data.dataset)
    if manifest is None and published is None:
        return None
    num_classes = len(manifest.classes) if manifest else published.num_classes  # type: ignore[union-attr]
    train = manifest.num_images if manifest else published.num_train  # type: ignore[union-attr]
    test = num_test if num_test is not None else (published.num_test if published else train)
    if spec.data.classes is not None:  # data sets here are balanced to within a few images
        share = len(spec.data.classes) / num_classes
        train, test, num_classes = round(train * share), round(test * share), len(spec.data.classes)
    train = min(spec.data.limit_train or train, round(train * (1 - spec.data.val_fraction)))
    test = min(spec.data.limit_eval or test, test)
    size = spec.augment.train_crop or spec.data.image_size
    _, train_flops = _forward(spec.model.name, num_classes, spec.data.image_size, size)
    parameters, test_flops = _forward(spec.model.name, num_classes, spec.data.image_size, spec.data.image_size)
    per_epoch = -(-train // spec.budget.batch_size)
    steps = total_steps(spec.budget, per_epoch)
    evaluations = -(-steps // evaluation_interval(spec.evaluate, per_epoch)) + len(spec.evaluate.select)
    flops = 3 * train_flops * steps * (train / per_epoch) + test_flops * test * evaluations
    return Cost(steps=steps, num_parameters=parameters, flops=flops)


@cache
def _forward(name: str, num_classes: int, image_size: int, input_size: int) -> tuple[int, float]:
    """Parameters, and FLOPs of one image's forward pass, counted on torch's meta device. A model that cannot take
    images of `input_size` is counted at its own size."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainable.models import build_model

    with torch.device("meta"):
        model = build_model(name, num_classes, image_size).eval()
        counter = FlopCounterMode(display=False)
        try:
            with counter, torch.inference_mode():
                model(torch.empty(1, 3, input_size, input_size))
        except AssertionError:
            return _forward(name, num_classes, image_size, image_size)
    return sum(parameter.numel() for parameter in model.parameters()), float(counter.get_total_flops())
