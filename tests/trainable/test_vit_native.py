"""The studies' vision transformers against slow references: token by token, and torch's own layers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from study_models import ENERGIES, OC, SMALL, VIT, VITN, vit
from torch import nn

from trainable.models.vit_native import Attention, NativeVit, sinusoid

SIDE, OUTPUTS = 12, 5
Array = NDArray[np.float64]


def built(fields: dict[str, Any], seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return NativeVit(vit(fields, **{**SMALL, **changes}), OUTPUTS, SIDE)


def unlike_their_start(model: nn.Module) -> None:
    """Moves every parameter, so that none is a neutral 0 or 1."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for name, parameter in model.named_parameters():
            if name.endswith("temperature"):
                parameter.copy_(torch.rand((), generator=generator) + 0.5)


def images(count: int = 3, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


# --- the slow reference: one image, token by token


def s(position: int, width: int) -> Array:
    rates = [10000 ** (-k / (width / 2)) for k in range(width // 2)]
    return np.array([math.sin(position * w) for w in rates] + [math.cos(position * w) for w in rates])


class Slow:
    """A forward pass of one image by the equations of the fact sheets, with plain loops."""

    def __init__(self, model: NativeVit, fields: dict[str, Any]) -> None:
        self.weights = {name: value.detach().double().numpy() for name, value in model.state_dict().items()}
        self.fields = fields

    def __call__(self, image: Array) -> Array:
        """[3, S, S] -> [outputs]."""
        fields, weights = self.fields, self.weights
        patch, width = fields["patch"], fields["width"]
        grid = SIDE // patch
        matrix = weights["patch_embed.proj.weight"].reshape(width, -1)  # channel, row, column
        tokens = [weights["cls_token"][0, 0]]
        for row in range(grid):
            for column in range(grid):
                pixels = image[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                code = matrix @ pixels.flatten() + weights["patch_embed.proj.bias"]
                if fields["positions"] == "sincos_sum":
                    code = code + s(row, width) + s(column, width)
                tokens.append(code)
        if fields["positions"] == "learned":
            tokens = [token + place for token, place in zip(tokens, weights["pos_embed"][0], strict=True)]
        for number in range(fields["depth"]):
            tokens = self.block(f"blocks.{number}.", tokens)
        return self.head("head.", tokens[0])

    def linear(self, name: str, x: Array) -> Array:
        return self.weights[f"{name}.weight"] @ x + self.weights.get(f"{name}.bias", np.zeros(1))

    def norm(self, name: str, x: Array) -> Array:
        centred = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
        return centred * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def block(self, name: str, tokens: list[Array]) -> list[Array]:
        if self.fields["norm"] == "pre":
            read = self.attention(name + "attn.", [self.norm(name + "norm1", x) for x in tokens])
            tokens = [x + y for x, y in zip(tokens, read, strict=True)]
            return [x + self.feed_forward(name + "mlp.", self.norm(name + "norm2", x)) for x in tokens]
        read = self.attention(name + "attn.", tokens)
        tokens = [self.norm(name + "norm1", x + y) for x, y in zip(tokens, read, strict=True)]
        return [self.norm(name + "norm2", x + self.feed_forward(name + "mlp.", x)) for x in tokens]

    def feed_forward(self, name: str, x: Array) -> Array:
        return self.linear(name + "3", self.activated(self.linear(name + "0", x), self.fields["activation"]))

    def activated(self, x: Array, kind: str) -> Array:
        return np.array([max(v, 0.0) if kind == "relu" else v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x])

    def attention(self, name: str, tokens: list[Array]) -> list[Array]:
        fields, width = self.fields, self.fields["width"]
        size = width // fields["heads"]
        found = []
        projected = [self.linear(name + "qkv", x) for x in tokens]
        for i in range(len(tokens)):
            read = []
            for head in range(fields["heads"]):
                part = slice(head * size, (head + 1) * size)
                queries, keys, values = (
                    [x[kind * width : (kind + 1) * width][part] for x in projected] for kind in range(3)
                )
                energies = []
                for j in range(len(tokens)):
                    energy = queries[i] @ keys[j]
                    if fields["relative_attention"]:
                        r = (self.weights[name + "relative.weight"] @ s(i - j, width))[part]
                        u = self.weights[name + "key_bias"][head]
                        v = self.weights[name + "distance_bias"][head]
                        energy = energy + queries[i] @ r + u @ keys[j] + v @ r
                    energy = energy * size**-0.5
                    if fields["diagonal_mask"] and i == j:
                        energy = -float(np.finfo(np.float32).max)
                    if fields["temperature"] == "log":
                        energy = energy * math.exp(self.weights[name + "temperature"])
                    if fields["temperature"] == "vanilla":
                        energy = energy / float(self.weights[name + "temperature"])
                    energies.append(energy)
                highest = max(energies)
                shares = [math.exp(energy - highest) for energy in energies]
                read.append(sum(share * value for share, value in zip(shares, values, strict=True)) / sum(shares))
            found.append(self.linear(name + "proj", np.concatenate(read)))
        return found

    def head(self, name: str, x: Array) -> Array:
        if self.fields["head"] == "norm_linear":
            return self.linear(name + "1", self.norm(name + "0", x))
        return self.linear(name + "2", self.activated(self.linear(name + "0", x), "gelu"))


CASES: dict[str, dict[str, Any]] = {
    **{name: {**VITN, **SMALL, **changes} for name, changes in ENERGIES.items()},
    "ra-dm-ltv": {**VITN, **SMALL, "relative_attention": True, "diagonal_mask": True, "temperature": "vanilla"},
    "vit": {**VIT, **SMALL},
    "004": {**OC, **SMALL},
    "of three heads and other widths": {**VITN, **SMALL, "width": 12, "heads": 3, "mlp_width": 5, "patch": 6},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_fact_sheets_token_by_token(name: str, fused: bool) -> None:
    fields = CASES[name]
    torch.manual_seed(0)
    model = NativeVit(vit(fields), OUTPUTS, SIDE)
    unlike_their_start(model)
    for part in model.modules():
        if isinstance(part, Attention):
            part.fused_attn = fused
    found = model.double().eval()(images().double())
    slow = Slow(model, fields)
    expected = np.stack([slow(image) for image in images().double().numpy()])
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_both_ways_to_attend_have_the_same_gradients(name: str) -> None:
    torch.manual_seed(0)
    model = NativeVit(
        vit({**CASES[name], "dropout": 0.0, "projection_dropout": 0.0, "attention_dropout": 0.0}), OUTPUTS, SIDE
    )
    unlike_their_start(model)
    grads = []
    for fused in (True, False):
        for part in model.modules():
            if isinstance(part, Attention):
                part.fused_attn = fused
        logits = model(images())
        assert isinstance(logits, torch.Tensor)
        grads.append(torch.autograd.grad(logits.square().sum(), list(model.parameters())))
    for (key, _), a, b in zip(model.named_parameters(), *grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", CASES)
def test_half_precision_answers_about_the_same(name: str) -> None:
    torch.manual_seed(0)
    model = NativeVit(
        vit({**CASES[name], "dropout": 0.0, "projection_dropout": 0.0, "attention_dropout": 0.0}), OUTPUTS, SIDE
    )
    with torch.autocast("cpu", torch.bfloat16):
        half = model(images())
    whole = model(images())
    assert isinstance(half, torch.Tensor) and isinstance(whole, torch.Tensor) and half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), whole, rtol=0.05, atol=0.05)
    half.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_variants_differ() -> None:
    """From the same weights, as far as they share them."""
    answers = []
    for changes in ENERGIES.values():
        model = built(VITN, **changes)
        model.load_state_dict(built(VITN).state_dict(), strict=False)
        for name, parameter in model.named_parameters():
            if name.endswith("temperature"):
                parameter.data.fill_(0.7)
        answers.append(model.eval()(images()))
    pairs = [(i, j) for i in range(len(answers)) for j in range(i)]
    assert all(not torch.allclose(answers[i], answers[j], atol=1e-6) for i, j in pairs)


# --- torch's own layers


def test_post_norm_is_torchs_transformer_encoder() -> None:
    fields = {**VIT, **SMALL, "depth": 3}
    model = built(fields, depth=3)
    unlike_their_start(model)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1)  # post-norm, ReLU, sequence first: its defaults
    theirs = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    with torch.no_grad():
        for own, block in zip(theirs.layers, model.blocks, strict=True):
            _copy_attention(own.self_attn, block.attn)  # type: ignore[arg-type]
            for there, here in (("linear1", "mlp.0"), ("linear2", "mlp.3"), ("norm1", "norm1"), ("norm2", "norm2")):
                own.get_submodule(there).load_state_dict(block.get_submodule(here).state_dict())
    tokens = torch.randn(4, 10, 8)
    found = tokens
    for block in model.eval().blocks:
        found = block(found)
    expected = theirs.eval()(tokens.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    dropouts = {name: part.p for name, part in theirs.layers[0].named_modules() if isinstance(part, nn.Dropout)}
    assert len(dropouts) == 3 and set(dropouts.values()) == {0.1}  # after attention, within and after feed-forward
    ours = [part.p for part in model.blocks[0].modules() if isinstance(part, nn.Dropout)]
    assert ours == [0.1] * 4, "the fourth is the attention's own, which theirs keeps as a number"
    assert theirs.layers[0].self_attn.dropout == 0.1


def _copy_attention(theirs: nn.MultiheadAttention, ours: Attention) -> None:
    assert theirs.in_proj_weight is not None
    theirs.in_proj_weight.copy_(ours.qkv.weight)
    theirs.in_proj_bias.copy_(ours.qkv.bias)
    theirs.out_proj.load_state_dict(ours.proj.state_dict())


def test_the_fourth_studys_attention_is_torchs() -> None:
    model = built(OC)
    unlike_their_start(model)
    attention = model.eval().blocks[0].attn
    theirs = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True).eval()
    with torch.no_grad():
        _copy_attention(theirs, attention)
    tokens = torch.randn(4, 10, 8)
    torch.testing.assert_close(attention(tokens), theirs(tokens, tokens, tokens)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("fields", "rule"), [(VIT, "torch's"), (OC, "torch's"), (VITN, "linear")])
def test_weights_begin_as_the_studys_layers_begin(fields: dict[str, Any], rule: str) -> None:
    """Uniform, so the bound tells the rule: Xavier's sqrt(6 / (in + out)), a linear layer's 1 / sqrt(in)."""
    torch.manual_seed(0)
    width = fields["width"]
    attention = Attention(vit(fields), 17)
    own = nn.MultiheadAttention(width, fields["heads"])
    bound = math.sqrt(6 / (4 * width)) if rule == "torch's" else width**-0.5
    assert own.in_proj_weight is not None
    assert own.in_proj_weight.abs().max().item() == pytest.approx(math.sqrt(6 / (4 * width)), rel=0.01)
    assert attention.qkv.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert attention.proj.weight.abs().max().item() == pytest.approx(own.out_proj.weight.abs().max().item(), rel=0.01)
    for linear in (attention.qkv, attention.proj):
        if linear.bias is not None:
            assert linear.bias.any() == (rule == "linear")


def _equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_clones_begin_alike_between_heads_and_are_their_own() -> None:
    blocks = built(VIT, depth=6, aux_depths=(2, 4)).blocks
    assert [_equal(blocks[i], blocks[i - 1]) for i in range(1, 6)] == [True, False, True, False, True]
    assert blocks[0].attn.qkv.weight.data_ptr() != blocks[1].attn.qkv.weight.data_ptr()
    assert all(_equal(block, blocks[0]) for block in built(VIT, depth=6).blocks)
    for fields in (VITN, OC):
        first, second = built(fields).blocks
        assert not _equal(first, second)


# --- positions and tokens


def test_codes_of_place_by_the_formula() -> None:
    codes = built(VIT, patch=4).positions[0].double().numpy()  # 3 x 3 patches, row by row
    for row in range(3):
        for column in range(3):
            for k in range(4):
                w = 10000 ** (-k / 4)
                expected = math.sin(row * w) + math.sin(column * w), math.cos(row * w) + math.cos(column * w)
                place = codes[3 * row + column]
                assert (place[k], place[k + 4]) == pytest.approx(expected, abs=1e-6)
    assert np.allclose(codes[1], codes[3]), "row and column are summed, so the code is symmetric"


def test_the_sinusoid_is_the_third_studys() -> None:
    found = sinusoid(torch.tensor([-3, 0, 5]), 256)
    assert found.shape == (3, 256) and found.dtype == torch.float32
    assert found[1].tolist() == [0.0] * 128 + [1.0] * 128
    for i, position in ((0, -3), (2, 5)):
        np.testing.assert_allclose(found[i].numpy(), s(position, 256), atol=1e-6)


def test_fixed_codes_are_no_weights_and_the_class_token_has_none() -> None:
    model = built(VIT)
    assert "positions" not in model.state_dict() and model.positions.shape == (1, 9, 8)
    seen: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, found: seen.append(found[0]))
    model.eval()(images(2))
    assert torch.equal(seen[0][:, 0], model.cls_token[0].expand(2, -1))
    table = built(OC)
    assert table.pos_embed.shape == (1, 10, 8) and "pos_embed" in table.state_dict()


def test_learnt_tables_and_class_tokens_are_normal() -> None:
    torch.manual_seed(0)
    model: Any = NativeVit(vit(OC, patch=1), OUTPUTS, 32)
    for values in (model.pos_embed, model.cls_token):
        assert values.std().item() == pytest.approx(1, abs=0.15) and values.mean().item() == pytest.approx(0, abs=0.2)


# --- heads, dropout, temperatures


def test_auxiliary_heads_answer_in_training_only() -> None:
    model = built(VIT, depth=4, dropout=0.0, projection_dropout=0.0, attention_dropout=0.0, aux_depths=(1, 3))
    last, first, third = model(images())
    assert last.shape == first.shape == third.shape == (3, OUTPUTS)
    torch.testing.assert_close(model.eval()(images()), last)
    tokens: list[torch.Tensor] = []
    for block in (model.blocks[0], model.blocks[2]):
        block.register_forward_hook(lambda _, __, found: tokens.append(found))
    model(images())
    torch.testing.assert_close(first, model.aux_heads[0](tokens[0][:, 0]))
    torch.testing.assert_close(third, model.aux_heads[1](tokens[1][:, 0]))
    assert model.get_classifier() is model.head and isinstance(built(VIT).train()(images()), torch.Tensor)


@pytest.mark.parametrize("fields", [VIT, VITN])
def test_dropout_repeats_with_the_seed(fields: dict[str, Any]) -> None:
    model, found = built(fields, dropout=0.3), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        found.append(model(images()))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("fused", [True, False])
def test_attention_itself_drops(fused: bool) -> None:
    attention = built(VIT, dropout=0.0, projection_dropout=0.0, attention_dropout=0.5).blocks[0].attn
    attention.fused_attn = fused
    tokens = torch.randn(2, 10, 8)
    assert not torch.equal(attention(tokens), attention(tokens))
    assert torch.equal(attention.eval()(tokens), attention(tokens))


def test_no_token_attends_to_itself_under_the_mask() -> None:
    attention = built(VITN, diagonal_mask=True).blocks[0].attn
    attention.fused_attn = False
    seen: list[torch.Tensor] = []
    attention.attn_drop.register_forward_pre_hook(lambda _, found: seen.append(found[0]))
    attention(torch.randn(2, 10, 8))
    assert not seen[0].diagonal(dim1=-2, dim2=-1).any() and torch.allclose(seen[0].sum(dim=-1), torch.ones(2, 2, 10))


def test_temperatures_are_told_as_tau() -> None:
    assert built(VITN).scalars() == {}
    log, vanilla = built(VITN, temperature="log"), built(VITN, temperature="vanilla")
    assert log.scalars() == vanilla.scalars() == {"temperature.0": 1.0, "temperature.1": 1.0}
    with torch.no_grad():
        log.blocks[1].attn.temperature.fill_(0.5)
        vanilla.blocks[1].attn.temperature.fill_(0.9)
    assert log.scalars()["temperature.1"] == pytest.approx(math.exp(-0.5))
    assert vanilla.scalars() == {"temperature.0": 1.0, "temperature.1": pytest.approx(0.9)}


def test_a_lower_temperature_sharpens() -> None:
    for kind, value in (("log", 1.0), ("vanilla", 0.3)):
        attention = built(VITN, temperature=kind).blocks[0].attn
        attention.fused_attn = False
        seen: list[torch.Tensor] = []
        attention.attn_drop.register_forward_pre_hook(lambda _, found, seen=seen: seen.append(found[0]))
        tokens = torch.randn(2, 10, 8)
        attention(tokens)
        with torch.no_grad():
            attention.temperature.fill_(value)
        attention(tokens)
        assert (seen[1].amax(dim=-1) > seen[0].amax(dim=-1)).all()


def test_a_side_that_cannot_be_cut_is_said() -> None:
    message = r"model\.vit\.patch: images of 12 pixels cannot be cut into patches of 5; choose a divisor"
    with pytest.raises(ValueError, match=message):
        NativeVit(vit(VIT, patch=5), OUTPUTS, SIDE)
