"""Where networks are looked into, and that maps find what was planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from study_models import ENERGIES, OC, SMALL, VIT, VITN, vit
from torch import nn

from analysis.attribution import rollout
from analysis.depths import DEPTHS, GRAD_CAM, GRADIENT, HEAD, ROLLOUT
from analysis.explain import _scores
from analysis.networks import Anatomy, NoSuchPart, Taps, attention, dissect, layer_of, maps
from trainable.models import build_model
from trainable.models.vit_native import NativeVit
from trainable.spec import ModelSpec

SIDE = 16


def images(count: int = 3, side: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def patches() -> nn.Module:
    """A ViT with 4 x 4 patches on images of 16 pixels."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(1)
    module: nn.Module = VisionTransformer(
        img_size=SIDE, patch_size=4, embed_dim=32, depth=4, num_heads=2, num_classes=5
    ).eval()
    return module


@pytest.mark.parametrize(
    ("name", "side", "depths", "grid"),
    [
        ("small_resnet", 8, ("layer1", "layer2", "layer3", "layer4"), (4, 4)),
        ("resnet18", 32, ("layer1", "layer2", "layer3", "layer4"), (4, 4)),
        ("resnet50", 64, ("layer1", "layer2", "layer3", "layer4"), (4, 4)),
        ("small_vit", 8, ("blocks.0", "blocks.1", "blocks.2", "blocks.3"), None),
        ("vit_small_patch16_224", 32, ("blocks.2", "blocks.5", "blocks.8", "blocks.11"), None),
    ],
)
def test_every_model_is_taken_apart_at_its_quarters(
    name: str, side: int, depths: tuple[str, ...], grid: tuple[int, int] | None
) -> None:
    anatomy = dissect(build_model(ModelSpec(name=name), 5, side), side)
    assert tuple(anatomy.depths) == DEPTHS[:-1] and tuple(anatomy.depths.values()) == depths
    assert anatomy.head == ("head" if "vit" in name else "fc")
    if grid is not None:
        assert anatomy.grids[layer_of(anatomy, GRAD_CAM)] == grid
        with pytest.raises(NoSuchPart, match="no attention over patches"):
            layer_of(anatomy, ROLLOUT)
    else:
        assert anatomy.prefix == 1
        for method in (GRAD_CAM, ROLLOUT):
            with pytest.raises(NoSuchPart, match="2 x 2 patches, fewer than 4 x 4 say nothing of where"):
                layer_of(anatomy, method)


def test_other_libraries_networks_are_taken_apart() -> None:
    """Built of ordinary modules, with names of their own."""
    from torchvision import models

    densenet = dissect(models.densenet121(num_classes=3), 64)
    assert densenet.depths["4/4"] == "features" and densenet.head == "classifier"
    assert densenet.grids[layer_of(densenet, GRAD_CAM)] == (4, 4)
    network = models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3).eval()
    vit = dissect(network, 32)
    assert (vit.prefix, vit.head, vit.depths["4/4"]) == (1, "heads.head", "encoder.layers.encoder_layer_1")
    with pytest.raises(NoSuchPart, match="no attention whose maps can be read"):
        maps(network, vit, ROLLOUT, images(1, 32), torch.tensor([0]))
    with pytest.raises(NoSuchPart, match="no linear layer"):
        dissect(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 8)


@pytest.mark.parametrize(("name", "last"), [("small_resnet", "layer4"), ("small_vit", "blocks.3")])
def test_features_are_those_of_the_pass_and_the_heads_own_input(name: str, last: str) -> None:
    model = build_model(ModelSpec(name=name), 5, 8)
    anatomy = dissect(model, 8)
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(last).register_forward_hook(lambda _, __, output: seen.append(output))
    taps = Taps(model, anatomy)
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in torch.split(images(7), 3)])
    found = taps.taken()
    hook.remove()
    output = torch.cat(seen)
    pooled = output.mean(dim=(2, 3)) if output.ndim == 4 else output[:, 1:].mean(dim=1)
    np.testing.assert_array_equal(found["4/4"], pooled.numpy())
    torch.testing.assert_close(model.get_submodule(anatomy.head)(torch.from_numpy(found[HEAD])), logits)
    assert [len(found[depth]) for depth in DEPTHS] == [7] * 5
    with torch.inference_mode():
        model(images(2))
    assert [len(values) for values in taps.taken().values()] == [7] * 5  # let alone after it was taken


def test_attention_is_read_where_the_fused_kernel_hides_it() -> None:
    model = patches()
    with torch.inference_mode():
        before = model(images(2, SIDE))
    layers = attention(model, images(2, SIDE))
    assert [layer.shape for layer in layers] == [(2, 17, 17)] * 4
    for layer in layers:
        np.testing.assert_allclose(layer.sum(axis=-1), 1, atol=1e-6)
    # the second layer's attention by hand, from the first block's output
    block = model.get_submodule("blocks.1")
    seen: list[torch.Tensor] = []
    hook = block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        assert torch.equal(model(images(2, SIDE)), before)
        hook.remove()
        query, key, _ = block.attn.qkv(block.norm1(seen[0])).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)  # type: ignore[operator, union-attr]
        by_hand = (query @ key.transpose(-2, -1) / 4).softmax(dim=-1).mean(dim=1)
    np.testing.assert_allclose(layers[1], by_hand.numpy(), atol=1e-6)
    anatomy = dissect(model, SIDE)
    found = maps(model, anatomy, ROLLOUT, images(2, SIDE), torch.tensor([0, 1]))
    rolled = rollout(np.stack([layer[1] for layer in layers]))
    np.testing.assert_allclose(found[1], rolled[0, 1:].reshape(4, 4))


def test_grad_cam_on_tokens_is_that_of_their_grid() -> None:
    model = patches()
    anatomy = dissect(model, SIDE)
    target = torch.tensor([0, 3])
    found = maps(model, anatomy, GRAD_CAM, images(2, SIDE), target)
    norm = model.get_submodule("blocks.3.norm1")
    assert type(norm).__name__ == "LayerNorm"  # as it was
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, __: object, output: torch.Tensor) -> None:
        seen.append(output)

    hook = norm.register_forward_hook(keep)
    logits = model(images(2, SIDE))
    hook.remove()
    (grad,) = torch.autograd.grad(logits[[0, 1], target].sum(), seen[0])
    by_hand = (grad[:, 1:].mean(dim=1, keepdim=True) * seen[0][:, 1:]).sum(dim=-1).relu().reshape(2, 4, 4)
    np.testing.assert_allclose(found, by_hand.detach().numpy(), atol=1e-6)
    assert found.max() > 0


class Quadrant(nn.Module):
    """Classes by how red or how green the lower right quadrant is; nothing else is looked at."""

    def __init__(self, *, planted: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.colours = nn.Conv2d(3, 2, 1)
        self.where = nn.Conv2d(2, 2, 1)
        self.place = nn.Parameter(torch.rand(1, 1, SIDE, SIDE))
        self.pool = nn.AvgPool2d(2)
        self.deep = nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(2, 2)
        if planted:
            with torch.no_grad():
                self.colours.weight.copy_(torch.eye(3)[:2, :, None, None] * 2)
                for layer in (self.where, self.deep):
                    layer.weight.copy_(torch.eye(2)[:, :, None, None])
                self.head.weight.copy_(torch.eye(2) * 20)
                for layer in (self.colours, self.where, self.deep, self.head):
                    layer.bias.zero_()  # type: ignore[operator, union-attr]
                self.place.zero_()
                self.place[..., SIDE // 2 :, SIDE // 2 :] = 1

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        seen = self.where(self.colours(pictures).relu()) * self.place
        features: torch.Tensor = self.deep(self.pool(seen)).mean(dim=(2, 3))
        logits: torch.Tensor = self.head(features)
        return logits


def quadrant_images() -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve noisy pictures, red or green in the lower right; the other quadrants say something else."""
    pictures = torch.rand(12, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(4)) * 0.6
    labels = torch.arange(12) % 2
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        picture[label, SIDE // 2 :, SIDE // 2 :] += 0.5
        picture[1 - label, : SIDE // 2] += 0.5
    return pictures, labels


def share_inside(values: np.ndarray) -> float:
    half = values.shape[-1] // 2
    return float((values[:, half:, half:].sum(axis=(1, 2)) / values.sum(axis=(1, 2))).mean())


@pytest.mark.parametrize("method", [GRADIENT, GRAD_CAM])
def test_maps_find_what_was_planted_and_those_of_random_weights_do_not(method: str) -> None:
    planted, untrained = Quadrant(planted=True).eval(), Quadrant(planted=False).eval()
    pictures, labels = quadrant_images()
    assert torch.equal(planted(pictures).argmax(dim=1), labels)
    anatomy = dissect(planted, SIDE)
    own, other = (maps(one, anatomy, method, pictures, labels) for one in (planted, untrained))
    assert share_inside(own) > 0.99
    assert share_inside(other) < 0.5
    scores = _scores(planted, method, layer_of(anatomy, method), own, other, pictures, labels, list(range(12)), 0)
    for better, worse in (("deletion_untrained", "deletion"), ("insertion", "insertion_untrained")):
        gap = getattr(scores, better) - getattr(scores, worse)
        assert gap.mean() > 0.1, (better, gap)
    assert (scores.deletion_random - scores.deletion).mean() > 0.1
    assert (scores.insertion - scores.insertion_random).mean() > 0.1
    assert np.nanmean(scores.likeness) < 0.5


def test_grad_cam_is_captums() -> None:
    model = build_model(ModelSpec(name="small_resnet"), 5, 8).eval()
    anatomy = dissect(model, 8)
    target = torch.tensor([0, 1, 2])
    found = maps(model, anatomy, GRAD_CAM, images(), target)
    oracle = LayerGradCam(model, model.get_submodule("layer2"))
    expected = oracle.attribute(images(), target=target, relu_attributions=True)[:, 0].detach().double().numpy()
    assert np.array_equal(found, expected) and found.shape == (3, 4, 4)


NATIVE = {
    "vit": VIT,
    "vit-aux": {**VIT, "aux_depths": (1,)},
    "004": OC,
    **{f"vitn {name}": {**VITN, **changes} for name, changes in ENERGIES.items()},
}


@pytest.mark.parametrize("name", NATIVE)
def test_the_studies_own_transformers_are_taken_apart(name: str) -> None:
    """Their attention is read like timm's; Grad-CAM sees the patches that the last block's attention takes in, which
    after the norms of a post-norm block no longer reach the class token."""
    torch.manual_seed(0)
    model = NativeVit(vit({**NATIVE[name], **SMALL, "depth": 4}), 5, SIDE).eval()
    anatomy = dissect(model, SIDE)
    assert tuple(anatomy.depths.values()) == ("blocks.0", "blocks.1", "blocks.2", "blocks.3")
    assert (anatomy.head, anatomy.prefix) == ("head.1" if name == "004" else "head.2", 1)
    layers = attention(model, images(2, SIDE))
    assert [layer.shape for layer in layers] == [(2, 17, 17)] * 4
    for layer in layers:
        np.testing.assert_allclose(layer.sum(axis=-1), 1, atol=1e-6)

    post, target = NATIVE[name]["norm"] == "post", torch.tensor([0, 3])
    seen: list[torch.Tensor] = []

    def keep(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append(inputs[0] if post else output)
        seen[0].retain_grad()

    hook = model.get_submodule("blocks.3" if post else "blocks.3.norm1").register_forward_hook(keep)
    model(images(2, SIDE))[torch.arange(2), target].sum().backward()
    hook.remove()
    taken, grad = seen[0], seen[0].grad
    assert grad is not None
    expected = (taken * grad[:, 1:].mean(dim=1, keepdim=True)).sum(dim=2)[:, 1:].relu().reshape(2, 4, 4)
    found = maps(model, anatomy, GRAD_CAM, images(2, SIDE), target)
    assert grad[:, 1:].any() and found.any()
    np.testing.assert_allclose(found, expected.detach().double().numpy(), rtol=1e-3, atol=1e-7)
    assert [type(block).__name__ for block in model.blocks] == ["Block"] * 4  # as they were


def test_what_a_study_puts_around_a_resnet_is_no_stage_of_it() -> None:
    spec = ModelSpec(name="torchvision/resnet18", input_norm="scalar", mixstyle_depth=3)
    model = build_model(spec, 5, 64)
    model(images(4, 64))
    anatomy = dissect(model, 64)
    assert tuple(anatomy.depths.values()) == ("layer1", "layer2", "layer3", "layer4")
    assert anatomy == dissect(build_model(ModelSpec(name="torchvision/resnet18"), 5, 64), 64)


def test_gradient_maps_are_the_largest_over_colours() -> None:
    model = build_model(ModelSpec(name="small_vit"), 5, 8).eval()
    pictures = images().requires_grad_()
    (grad,) = torch.autograd.grad(model(pictures)[:, 2].sum(), pictures)
    found = maps(model, dissect(model, 8), GRADIENT, images(), torch.tensor([2, 2, 2]))
    np.testing.assert_allclose(found, grad.abs().amax(dim=1).double().numpy(), atol=1e-9)


def test_an_anatomy_without_stages_has_no_grad_cam() -> None:
    anatomy = Anatomy(depths={}, head="fc", grids={}, prefix=None)
    with pytest.raises(NoSuchPart, match="no stage of 4 x 4 positions or more"):
        layer_of(anatomy, GRAD_CAM)
