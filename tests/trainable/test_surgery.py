"""Operations on loaded weights: what is kept, what stays fresh, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from study_models import OC, SMALL, VIT, vit
from torch import nn

from trainable.models import build_model
from trainable.spec import ModelSpec
from trainable.surgery import State, WeightsError, classifier_names, load_weights

TV18 = "torchvision/resnet18"


def built(name: str = TV18, classes: int = 10, size: int = 32, seed: int = 0, **fields: Any) -> Any:
    torch.manual_seed(seed)
    return build_model(ModelSpec(name=name, **fields), classes, size)


def numbered(name: str, classes: int, size: int = 32) -> State:
    """Weights of a model that are known by their values and take no memory."""
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in built(name, classes, size).state_dict().items()}
    return {key: torch.full((), float(number)).expand(shape) for number, (key, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(
    ("name", "head", "classes"), [(TV18, "fc", 10), (TV18, "fc", 200), ("torchvision/vit_b_16", "heads.head", 10)]
)
def test_torchvisions_weights_take_a_new_head(name: str, head: str, classes: int) -> None:
    state = numbered(name, 1000)
    model = built(name, classes)
    fresh = model.get_submodule(head).weight.clone()
    report = load_weights(model, state, ("new_head",), "hub")
    names = (f"{head}.bias", f"{head}.weight")
    assert report.new == report.dropped == names and set(report.kept) == set(state) - set(names)
    assert fresh.shape[0] == classes and torch.equal(model.get_submodule(head).weight, fresh)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], state[key].to(loaded[key].dtype)) for key in report.kept)


def test_a_distilled_model_has_two_heads() -> None:
    with torch.device("meta"):
        model = built("timm/deit_tiny_distilled_patch16_224", 7)
    assert classifier_names(model) == ("head", "head_dist")
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("head")}
    assert load_weights(model, state, ("new_head",), "hub").new == (
        "head.bias",
        "head.weight",
        "head_dist.bias",
        "head_dist.weight",
    )


def test_a_model_without_any_head_is_said() -> None:
    with pytest.raises(WeightsError, match="Flatten has no classifier: neither a linear layer nor a convolution"):
        classifier_names(nn.Flatten())


@pytest.mark.parametrize(("fields", "linear"), [(VIT, ("0", "2")), (OC, ("0", "1"))])
def test_the_native_transformer_takes_a_new_head_as_a_whole(fields: dict[str, Any], linear: tuple[str, str]) -> None:
    parts = vit(fields, **SMALL)
    source, model = built("vit", 9, 12, vit=parts), built("vit", 4, 12, seed=1, vit=parts)
    report = load_weights(model, source.state_dict(), ("new_head",), "parent")
    assert report.new == tuple(sorted(f"head.{i}.{kind}" for i in linear for kind in ("bias", "weight")))
    assert torch.equal(model.blocks[1].mlp[0].weight, source.blocks[1].mlp[0].weight)


@pytest.mark.parametrize(("before", "after"), [((1,), (1,)), ((), (1,)), ((1,), ())])
def test_auxiliary_heads_are_heads(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    source = built("vit", 9, 12, vit=vit(VIT, **SMALL, aux_depths=before))
    model = built("vit", 4, 12, seed=1, vit=vit(VIT, **SMALL, aux_depths=after))
    report = load_weights(model, source.state_dict(), ("new_head",), "parent")
    assert any(name.startswith("aux_heads.0") for name in report.new) == bool(after)
    assert any(name.startswith("aux_heads.0") for name in report.dropped) == bool(before)
    with pytest.raises(WeightsError, match=r"the weights do not fit"):
        load_weights(model, source.state_dict(), (), "parent")


def test_positions_of_the_native_transformer_are_resampled() -> None:
    source = built("vit", 4, 12, vit=vit(OC, **SMALL))
    model = built("vit", 4, 24, seed=1, vit=vit(OC, **SMALL))
    report = load_weights(model, source.state_dict(), ("resize_positions",), "parent")
    assert report.changed == {"pos_embed": "resampled from 10 to 37 tokens"}
    assert torch.equal(model.pos_embed[:, :1], source.pos_embed[:, :1]), "the class token's place is no patch's"


def test_the_small_stem_keeps_its_fresh_convolution() -> None:
    """As the second study: all from the stage before, the stem's BatchNorm and the head included, but conv1."""
    source = built(classes=200, size=64)
    source.bn1.running_mean.add_(3)
    model = built(classes=200, size=64, seed=1, stem="small")
    weight, bias = model.conv1.weight.clone(), model.conv1.bias.clone()
    report = load_weights(model, source.state_dict(), ("small_stem",), "parent")
    assert report.new == ("conv1.bias", "conv1.weight") and report.dropped == ("conv1.weight",)
    assert torch.equal(model.conv1.weight, weight) and torch.equal(model.conv1.bias, bias)
    kept = source.state_dict()
    assert set(report.kept) == set(kept) - {"conv1.weight"}
    assert all(torch.equal(model.state_dict()[key], kept[key]) for key in report.kept)


def test_operations_add_up() -> None:
    model = built(classes=200, size=64, stem="small")
    report = load_weights(model, numbered(TV18, 1000), ("small_stem", "new_head"), "hub")
    assert report.new == ("conv1.bias", "conv1.weight", "fc.bias", "fc.weight")
    assert report.dropped == ("conv1.weight", "fc.bias", "fc.weight")


@pytest.mark.parametrize(
    ("source", "fields", "message"),
    [
        ({}, {}, r"small_stem needs a model with the small stem; set model\.stem to small"),
        ({"stem": "small"}, {"stem": "small"}, r"small_stem: these weights have the small stem already; leave it out"),
        (None, {"stem": "small"}, r"small_stem needs weights with a conv1\.weight, a ResNet's; leave it out here"),
    ],
)
def test_a_stem_that_cannot_be_left_out_is_said(
    source: dict[str, Any] | None, fields: dict[str, Any], message: str
) -> None:
    state = built("small_vit", 4, 8).state_dict() if source is None else built(**source).state_dict()
    with pytest.raises(WeightsError, match=r"init\.surgery: " + message):
        load_weights(built(**fields), state, ("small_stem",), "parent")


def test_a_stem_that_does_not_fit_names_every_operation() -> None:
    message = (
        r"parent: the weights do not fit: conv1\.weight is \[64, 3, 7, 7\], the model needs \[64, 3, 3, 3\]; conv1\.bias "
        r"is missing\. init\.surgery is \[new_head\]; new_head leaves the classifier out, resize_positions resamples a "
        r"position table, small_stem leaves a ResNet's first convolution out"
    )
    with pytest.raises(WeightsError, match=message):
        load_weights(built(stem="small"), built().state_dict(), ("new_head",), "parent")


def test_the_source_is_left_as_it_was() -> None:
    state = built(classes=5).state_dict()
    names = set(state)
    load_weights(built(stem="small"), state, ("small_stem", "new_head"), "parent")
    assert set(state) == names
