"""Every registered model: forward, backward, state-dict round trip, parameter count."""

from __future__ import annotations

import pytest
import torch

from trainable.models import MODELS, build_model
from trainable.surgery import classifier_name

COUNTS = {
    ("resnet18", 32, 100): 11_227_812,
    ("resnet50", 32, 100): 23_712_932,  # as the first study's logs print them
    ("resnet50", 64, 200): 23_917_832,
    ("vit_small_patch16_224", 32, 100): 21_630_436,
    ("vit_small_patch16_224", 64, 200): 21_673_544,
    ("small_resnet", 8, 5): 232_197,
    ("small_vit", 8, 5): 203_909,
}


def test_every_model_has_a_pinned_count() -> None:
    assert {name for name, _, _ in COUNTS} == set(MODELS)


@pytest.mark.parametrize(("name", "size", "classes"), COUNTS)
def test_model(name: str, size: int, classes: int) -> None:
    torch.manual_seed(0)
    model = build_model(name, classes, size)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name, size, classes]
    images = torch.randn(2, 3, size, size)
    logits = model(images)
    assert logits.shape == (2, classes) and logits.dtype == torch.float32
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    torch.manual_seed(1)
    other = build_model(name, classes, size)
    assert not torch.equal(model.eval()(images), other.eval()(images))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images), other(images))


def test_initial_weights_follow_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_model("small_vit", 3, 8).state_dict()["pos_embed"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


def test_classifier_is_found_by_name() -> None:
    assert classifier_name(build_model("small_resnet", 3, 8)) == "fc"
    assert classifier_name(build_model("small_vit", 3, 8)) == "head"


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r'model\.name: "resnet5" is not one of .*; did you mean resnet50\?'):
        build_model("resnet5", 3, 8)


def test_impossible_size_is_said() -> None:
    with pytest.raises(ValueError, match=r"small_vit cuts the image into 2 x 2 patches; 9 pixels cannot be"):
        build_model("small_vit", 3, 9)
