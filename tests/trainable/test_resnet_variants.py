"""Variants of a ResNet against values worked out by hand."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from trainable.models import build_model
from trainable.models.resnet_variants import GroupedBatchNorm2d, MixStyle, RunningNorm, vary
from trainable.spec import ModelSpec


def built(name: str = "small_resnet", size: int = 8, **changes: Any) -> Any:
    torch.manual_seed(0)
    return build_model(ModelSpec(name=name, **changes), 3, size)


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def sides(model: nn.Module, size: int, *names: str) -> list[int]:
    seen: list[int] = []
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda _, __, output: seen.append(output.shape[-1]))
    model.eval()(torch.zeros(1, 3, size, size))
    return seen


# --- the small stem


def test_the_small_stem_is_the_second_studys() -> None:
    stages = ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4")
    assert sides(built("torchvision/resnet18", 64), 64, *stages) == [32, 16, 16, 8, 4, 2]
    model = built("torchvision/resnet18", 64, stem="small")
    assert sides(model, 64, *stages) == [64, 64, 64, 32, 16, 8]
    assert model.conv1.bias.shape == (64,) and isinstance(model.maxpool, nn.Identity)
    plain = built("torchvision/resnet18", 64).state_dict()
    assert set(model.state_dict()) - set(plain) == {"conv1.bias"} and set(plain) <= set(model.state_dict())
    assert torch.equal(model.layer4[1].conv2.weight, plain["layer4.1.conv2.weight"])


def test_the_small_stem_begins_as_torchs_own_layer() -> None:
    model = built()
    torch.manual_seed(5)
    vary(model, ModelSpec(name="small_resnet", stem="small"))
    torch.manual_seed(5)
    theirs = nn.Conv2d(3, 64, 3, padding=1)
    assert torch.equal(model.conv1.weight, theirs.weight) and torch.equal(model.conv1.bias, theirs.bias)


# --- GroupNorm


def test_every_batchnorm_becomes_a_groupnorm() -> None:
    model = built("torchvision/resnet18", 32, group_norm=16)
    norms = [part for part in model.modules() if isinstance(part, nn.GroupNorm)]
    assert len(norms) == 20 and all(norm.num_groups == 16 and norm.affine for norm in norms)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())


def test_groupnorm_normalises_groups_of_channels_of_an_image() -> None:
    layer = built(group_norm=4).bn1  # 64 channels
    given = images(2, 64, 3, 3)
    expected = given.double().numpy().copy()
    for image in range(2):
        for group in range(4):
            part = expected[image, 16 * group : 16 * group + 16]
            part[:] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    np.testing.assert_allclose(layer(given).detach().numpy(), expected, atol=1e-5)


def test_a_scale_that_an_initialisation_chose_stays() -> None:
    """timm begins the last norm of every block at zero."""
    assert not built(group_norm=4).layer1[0].bn2.weight.any()
    assert built(group_norm=4).layer1[0].bn1.weight.eq(1).all()


# --- BatchNorm in parts


def two_values(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1)


def test_halves_are_normalised_apart_and_the_first_is_remembered() -> None:
    """(1, 3) and (10, 30) become -1, 1 each; the running mean moves by 0.1 to 2, the variance from 1 by 0.1 to 2."""
    norm = GroupedBatchNorm2d(nn.BatchNorm2d(1), 2)
    found = norm(two_values(1, 3, 10, 30)).flatten().tolist()
    assert found == pytest.approx([-1, 1, -1, 1], abs=1e-4)
    assert norm.running_mean is not None and norm.running_mean.item() == pytest.approx(0.1 * 2)
    assert norm.running_var is not None and norm.running_var.item() == pytest.approx(0.9 * 1 + 0.1 * 2)
    assert norm.num_batches_tracked is not None and norm.num_batches_tracked.item() == 1


@pytest.mark.parametrize(("num_images", "groups", "parts"), [(6, 2, (3, 3)), (5, 2, (3, 2)), (9, 4, (3, 3, 3))])
def test_parts_equal_processes_of_their_own(num_images: int, groups: int, parts: tuple[int, ...]) -> None:
    given = images(num_images, 4, 3, 3).requires_grad_()
    plain = nn.BatchNorm2d(4)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
        plain.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    apart = [copy.deepcopy(plain) for _ in parts]
    norm = GroupedBatchNorm2d(copy.deepcopy(plain), groups)
    expected = torch.cat([one(part) for one, part in zip(apart, torch.split(given, parts), strict=True)])
    found = norm(given)
    assert torch.equal(found, expected)
    for name, value in apart[0].state_dict().items():
        assert torch.equal(norm.state_dict()[name], value), name
    (ours,) = torch.autograd.grad(found.pow(3).sum(), given)
    (theirs,) = torch.autograd.grad(expected.pow(3).sum(), given)
    torch.testing.assert_close(ours, theirs)


def test_evaluation_is_plain_and_so_are_the_names() -> None:
    halves, plain = built(bn_groups=2), built()
    given = images(4, 3, 8, 8)
    halves(given)
    assert list(halves.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(halves.state_dict())
    assert torch.equal(halves.eval()(given), plain.eval()(given))


def test_halves_of_a_network_see_their_own_images_only() -> None:
    model = built(bn_groups=2)
    first, second, other = (images(3, 3, 8, 8, seed=seed) for seed in (1, 2, 3))
    a, b = copy.deepcopy(model)(torch.cat([first, second])), copy.deepcopy(model)(torch.cat([first, other]))
    torch.testing.assert_close(a[:3], b[:3], rtol=0, atol=1e-6)
    assert not torch.allclose(a[3:], b[3:], atol=1e-3)
    plain = built()
    a, b = copy.deepcopy(plain)(torch.cat([first, second])), copy.deepcopy(plain)(torch.cat([first, other]))
    assert not torch.allclose(a[:3], b[:3], atol=1e-3)


def test_parts_keep_the_memory_layout() -> None:
    given = images(4, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    norm = GroupedBatchNorm2d(nn.BatchNorm2d(8), 2)
    assert norm(given).is_contiguous(memory_format=torch.channels_last)


# --- the input's running statistics


@pytest.mark.parametrize("channels", [1, 3])
def test_running_statistics_follow_by_hand(channels: int) -> None:
    """First those of the first batch, then 99 % of the old and 1 % of the new; each batch normalised by the moved ones."""
    norm = RunningNorm(channels)
    assert norm.running_mean.isnan().all() and norm.running_var.isnan().all()
    mean = var = np.full(channels, math.nan)
    for seed in range(3):
        given = images(4, 3, 5, 5, seed=seed) * (seed + 1)
        pixels = given.double().numpy().transpose(1, 0, 2, 3).reshape(channels, -1)
        batch_mean = np.array([sum(row) / len(row) for row in pixels])
        batch_var = np.array(
            [sum((x - m) ** 2 for x in row) / len(row) for row, m in zip(pixels, batch_mean, strict=True)]
        )
        mean = batch_mean if seed == 0 else 0.99 * mean + 0.01 * batch_mean
        var = batch_var if seed == 0 else 0.99 * var + 0.01 * batch_var
        expected = (given.double().numpy() - mean.reshape(1, -1, 1, 1)) / np.sqrt(var.reshape(1, -1, 1, 1) + 1e-9)
        np.testing.assert_allclose(norm(given).numpy(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-5)
        np.testing.assert_allclose(norm.running_var.numpy(), var, rtol=1e-5)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    np.testing.assert_allclose(norm(given).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    named = ("mean", "var") if channels == 1 else ("mean.0", "mean.1", "mean.2", "var.0", "var.1", "var.2")
    assert norm.scalars() == dict(zip(named, [*norm.running_mean.tolist(), *norm.running_var.tolist()], strict=True))


def test_a_flat_batch_is_no_division_by_zero() -> None:
    assert not RunningNorm(1)(torch.full((2, 3, 4, 4), 0.5)).any()


def test_no_gradient_passes_through_the_statistics() -> None:
    norm, given = RunningNorm(1), images(2, 3, 4, 4).requires_grad_()
    norm(given).sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(given.grad, torch.full_like(given, (norm.running_var.item() + 1e-9) ** -0.5))


def test_before_training_images_pass_as_they_are() -> None:
    norm = RunningNorm(3).eval()
    given = images(2, 3, 4, 4)
    assert torch.equal(norm(given), given) and norm.running_mean.isnan().all()


@pytest.mark.parametrize("batches", [0, 1])
def test_statistics_travel_with_the_weights(batches: int, tmp_path: Path) -> None:
    model, plain = built(input_norm="channel"), built()
    for _ in range(batches):
        model(images(4, 3, 8, 8))
    extra = ["input_norm.running_mean", "input_norm.running_var"]
    assert list(model.state_dict()) == [*plain.state_dict(), *extra]
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    other = built(input_norm="channel")
    other(images(4, 3, 8, 8, seed=9))
    other.load_state_dict(load_file(tmp_path / "x.safetensors"))
    for name in extra:
        found = other.state_dict()[name]
        assert found.isnan().all() == (batches == 0)
        assert torch.equal(found.view(torch.int32), model.state_dict()[name].view(torch.int32))


@pytest.mark.parametrize(("kind", "channels"), [("scalar", 1), ("channel", 3)])
def test_the_network_sees_normalised_images(kind: str, channels: int) -> None:
    model, plain = built(input_norm=kind), built()
    given = images(4, 3, 8, 8)
    norm = RunningNorm(channels)
    assert torch.equal(model(given), plain(norm(given)))
    assert torch.equal(model.eval()(given), plain.eval()(norm.eval()(given)))


def test_the_miniature_is_normalised_before_its_first_layer() -> None:
    model, plain = built("toy_dilated", input_norm="scalar"), built("toy_dilated")
    given = images(4, 3, 8, 8)
    assert torch.equal(model(given), plain(RunningNorm(1)(given)))


def test_a_plain_sequence_would_run_the_layer_twice_and_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.input_norm: small_vit is a plain sequence of layers; set it to none"):
        vary(nn.Sequential(nn.Flatten()), ModelSpec(name="small_vit", input_norm="scalar"))


# --- MixStyle

MIXING = 0
"""A seed whose first draw is a coin below one half."""


def test_the_coin_is_thrown_once_a_call() -> None:
    features, mixed = images(2, 3, 4, 4), 0
    style = MixStyle()
    for seed in range(200):
        torch.manual_seed(seed)
        heads = torch.rand(()).item() <= 0.5
        torch.manual_seed(seed)
        found = style(features)
        assert (found is features) != heads
        mixed += heads
        if not heads:
            after = torch.get_rng_state()
            torch.manual_seed(seed)
            torch.rand(())
            assert torch.equal(after, torch.get_rng_state()), "nothing else was drawn"
    assert 80 < mixed < 120


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_mixed_features_are_those_worked_out_by_hand(scale: float) -> None:
    """Of nearly flat features, too, where it shows what is added to the variance, and which one that is."""
    given = images(5, 2, 2, 3) * scale
    torch.manual_seed(MIXING)
    found = MixStyle()(given).double().numpy()
    torch.manual_seed(MIXING)
    assert torch.rand(()).item() <= 0.5
    alpha = torch.full((5,), 0.1)
    lam = torch.distributions.Beta(alpha, alpha).sample().tolist()
    partner = torch.randperm(5).tolist()
    assert len(set(lam)) == 5 and partner != list(range(5))
    x = given.double().numpy()
    for b in range(5):
        for c in range(2):
            styles = []
            for image in (b, partner[b]):
                values = x[image, c].flatten().tolist()
                mean = sum(values) / 6
                styles.append((mean, math.sqrt(sum((v - mean) ** 2 for v in values) / 5 + 1e-6)))
            (mean, deviation), (other_mean, other_deviation) = styles
            for row in range(2):
                for column in range(3):
                    value = (x[b, c, row, column] - mean) / deviation
                    value *= lam[b] * deviation + (1 - lam[b]) * other_deviation
                    value += lam[b] * mean + (1 - lam[b]) * other_mean
                    assert found[b, c, row, column] == pytest.approx(value, abs=1e-5 * scale)


def test_lam_is_drawn_from_beta_a_tenth() -> None:
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)): mostly at the ends."""
    torch.manual_seed(0)
    lam, partner = MixStyle()._draws(torch.zeros(20_000, 1, 2, 2))
    assert lam.shape == (20_000, 1, 1, 1) and lam.mean().item() == pytest.approx(0.5, abs=0.02)
    assert lam.var().item() == pytest.approx(1 / 4.8, abs=0.005)
    assert torch.equal(partner.sort().values, torch.arange(20_000))


def test_styles_are_detached() -> None:
    """The gradient is that of a scale alone: mixed deviation over own."""
    given = images(3, 1, 2, 2).requires_grad_()
    torch.manual_seed(MIXING)
    (grad,) = torch.autograd.grad(MixStyle()(given).sum(), given)
    torch.manual_seed(MIXING)
    torch.rand(())
    lam, partner = MixStyle()._draws(given)
    deviation = (given.detach().var(dim=(2, 3), keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(grad, ((lam * deviation + (1 - lam) * deviation[partner]) / deviation).expand_as(given))


def test_half_precision_stays_half() -> None:
    torch.manual_seed(MIXING)
    assert MixStyle()(images(3, 1, 2, 2).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_styles_are_mixed_after_the_first_stages(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    real = MixStyle._draws

    def noting(self: MixStyle, features: torch.Tensor) -> Any:
        seen.append(tuple(features.shape[1:]))
        return real(self, features)

    monkeypatch.setattr(MixStyle, "_draws", noting)
    monkeypatch.setattr(MixStyle, "PROB", 1.0)
    model, plain = built("torchvision/resnet18", 64, mixstyle_depth=depth), built("torchvision/resnet18", 64)
    assert list(model.state_dict()) == list(plain.state_dict())
    given = images(2, 3, 64, 64)
    inputs: list[torch.Tensor] = []
    model.layer2.register_forward_pre_hook(lambda _, found: inputs.append(found[0]))
    outputs: list[torch.Tensor] = []
    model.layer1[1].register_forward_hook(lambda _, __, found: outputs.append(found))
    model(given)
    assert seen == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)][:depth]
    assert not torch.equal(inputs[0], outputs[0]), "mixed between the stages"
    plain(given)
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(given), plain.eval()(given)), "evaluation mixes nothing"


def test_points_draw_apart() -> None:
    """One coin a point: over seeds, all four outcomes of two points occur."""
    outcomes = set()
    style = MixStyle()
    for seed in range(20):
        torch.manual_seed(seed)
        features = images(2, 3, 4, 4)
        outcomes.add(tuple(style(features) is features for _ in range(2)))
    assert len(outcomes) == 4


def test_the_same_seed_mixes_the_same() -> None:
    model = built(size=16, mixstyle_depth=3)
    given = images(4, 3, 16, 16)
    found = []
    for seed in (4, 4, 5):
        twin = copy.deepcopy(model)
        torch.manual_seed(seed)
        found.append(torch.stack([twin(given) for _ in range(4)]))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_one_position_has_no_style() -> None:
    with pytest.raises(ValueError, match=r"model\.mixstyle_depth: features of one position have no variance; lower it"):
        built("torchvision/resnet18", 32, mixstyle_depth=4)(images(2, 3, 32, 32))


# --- what cannot be varied


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "small_vit",
            {"stem": "small"},
            r"model\.stem: small replaces a ResNet's conv1 and maxpool; small_vit has not",
        ),
        ("timm/resnet18d", {"stem": "small"}, r"model\.stem: .* timm/resnet18d has not both, set it to null"),
        ("small_vit", {"group_norm": 2}, r"model\.group_norm: small_vit has no BatchNorm to change; leave group_norm"),
        ("small_vit", {"bn_groups": 2}, r"model\.bn_groups: small_vit has no BatchNorm to change; leave bn_groups out"),
        (
            "small_resnet",
            {"group_norm": 64},
            r"the 16 channels of small_resnet's layer1\.0\.bn1 do not divide into 64 groups; choose a divisor of all",
        ),
        (
            "timm/test_efficientnet",
            {"group_norm": 2},
            r"timm/test_efficientnet's bn1 is a BatchNormAct2d, which is more than BatchNorm; leave group_norm out",
        ),
        (
            "small_vit",
            {"mixstyle_depth": 1},
            r"model\.mixstyle_depth: 1 needs a ResNet's stages layer1, layer2, layer3, layer4, small_vit has not all",
        ),
    ],
)
def test_what_a_network_has_not_is_said(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        built(name, 32, **changes)


def test_variants_combine() -> None:
    model = built("torchvision/resnet18", 64, stem="small", bn_groups=2, input_norm="scalar", mixstyle_depth=2)
    loss = model(images(4, 3, 64, 64)).square().sum()
    loss.backward()
    assert loss.isfinite() and model.input_norm.running_mean.isfinite().all()
    assert isinstance(model.bn1, GroupedBatchNorm2d) and model.conv1.stride == (1, 1)
