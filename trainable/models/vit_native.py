"""`NativeVit`: a plain vision transformer whose parts are fields (`VitSpec`), with the ones the studies tried.

Terms: a patch is a square of pixels, a token its code of `width` numbers; the class token is one more, put first, from
which the head reads. Third study: `vit` (post-norm, ReLU, biases, attention dropout, all blocks begin alike), `vit-aux`
(so, with heads in between) and `vitn` (pre-norm, GELU, none of these) with its variants of attention; fourth study:
pre-norm, learned positions, LayerNorm before the head.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from trainable.spec import VitSpec


def sinusoid(positions: torch.Tensor, width: int) -> torch.Tensor:
    """[n] -> [n, width] float32: sin(p * w_k) for all k, then cos, with w_k = 10000 ** (-k / (width / 2))."""
    half = width // 2
    rates = 10000 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = positions.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class PatchEmbed(nn.Module):
    """Cuts images into patches, row by row, and encodes each by one linear layer.

    Raises:
        ValueError: the side of an image is no multiple of a patch's.
    """

    def __init__(self, patch: int, width: int, image_size: int) -> None:
        super().__init__()
        if image_size % patch:
            raise ValueError(
                f"model.vit.patch: images of {image_size} pixels cannot be cut into patches of {patch}; "
                "choose a divisor"
            )
        self.grid_size = (image_size // patch, image_size // patch)
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)  # linear over channel, row, column

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] -> [B, N, width]."""
        codes: torch.Tensor = self.proj(images)
        return codes.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of several heads. The energy of query i and key j in a head of d numbers is q_i . k_j / sqrt(d);
    where the parts say so

    - relative: (q_i . k_j + q_i . r_ij + u . k_j + v . r_ij) / sqrt(d), with r_ij the head's share of W_r s(i - j), s
      the `sinusoid` of the distance in the sequence, class token at 0, and learnt u, v (Transformer-XL);
    - diagonal mask: none for i = j;
    - temperature: multiplied by exp(t) (log) or divided by tau (vanilla), one learnt number for all heads.

    Args:
        parts: of the model.
        num_tokens: of a sequence, class token included.
    """

    diagonal: torch.Tensor | None
    """[T, T] bool, False on the diagonal; None without a mask."""
    distances: torch.Tensor
    """[2 T - 1, width] float32: s(T - 1), ..., s(1 - T); only with relative attention."""

    def __init__(self, parts: VitSpec, num_tokens: int) -> None:
        super().__init__()
        width, self.num_heads = parts.width, parts.heads
        self.scale = (width // parts.heads) ** -0.5
        self.fused_attn = True  # cleared by analysis/networks.py, which reads the maps at `attn_drop`
        self.qkv = nn.Linear(width, 3 * width, bias=parts.qkv_bias)
        self.attn_drop = nn.Dropout(parts.attention_dropout)
        self.proj = nn.Linear(width, width)
        mask = ~torch.eye(num_tokens, dtype=torch.bool) if parts.diagonal_mask else None
        self.register_buffer("diagonal", mask, persistent=False)
        self.temperature_kind = parts.temperature
        if parts.temperature != "none":
            self.temperature = nn.Parameter(torch.tensor(0.0 if parts.temperature == "log" else 1.0))
        self.is_relative = parts.relative_attention
        if parts.relative_attention:
            along = torch.arange(num_tokens - 1, -num_tokens, -1)
            self.register_buffer("distances", sinusoid(along, width), persistent=False)
            self.relative = nn.Linear(width, width, bias=False)
            self.key_bias = nn.Parameter(torch.randn(parts.heads, width // parts.heads))
            self.distance_bias = nn.Parameter(torch.randn(parts.heads, width // parts.heads))
        if parts.initialisation != "linear":
            self._begin_as_torchs()

    def _begin_as_torchs(self) -> None:
        """Initial weights as torch's MultiheadAttention draws them, whose output layer is a linear one but for its
        bias."""
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.proj.bias)
        if self.qkv.bias is not None:
            nn.init.zeros_(self.qkv.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T, width] -> the same."""
        split = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # [B, heads, T, d] each
        if self.fused_attn and not self.is_relative:
            dropped = self.attn_drop.p if self.training else 0.0
            query = query * self._sharpness() if self.temperature_kind != "none" else query
            read = F.scaled_dot_product_attention(query, key, value, self.diagonal, dropped, scale=self.scale)
        else:
            read = self.attn_drop(self._energies(query, key).softmax(dim=-1)) @ value
        mixed: torch.Tensor = self.proj(read.transpose(1, 2).flatten(2))
        return mixed

    def _energies(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """[B, heads, T, d] twice -> [B, heads, T, T]."""
        energies: torch.Tensor
        if self.is_relative:
            distances = self.relative(self.distances).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)
            from_key = (query + self.key_bias[:, None]) @ key.transpose(-2, -1)
            from_distance = (query + self.distance_bias[:, None]) @ distances.transpose(-2, -1)
            energies = from_key + _by_key(from_distance)
        else:
            energies = query @ key.transpose(-2, -1)
        energies = energies * self.scale
        if self.temperature_kind != "none":
            energies = energies * self._sharpness()
        return energies if self.diagonal is None else energies.masked_fill(~self.diagonal, -math.inf)

    def _sharpness(self) -> torch.Tensor:
        """What the energies are multiplied by, where a temperature is learnt: 1 / tau."""
        return self.temperature.exp() if self.temperature_kind == "log" else self.temperature.reciprocal()

    def tau(self) -> float | None:
        """The temperature, which divides the energies; None where none is learnt. Read from the device."""
        if self.temperature_kind == "none":
            return None
        learnt = float(self.temperature.detach())
        return math.exp(-learnt) if self.temperature_kind == "log" else learnt


def _by_key(by_distance: torch.Tensor) -> torch.Tensor:
    """[..., T, 2 T - 1], columns by falling distance i - j = T - 1, ..., 1 - T, -> [..., T, T], columns by key j.

    Row i wants its columns T - 1 - i to 2 T - 2 - i. Laid end to end and read in rows one shorter, they are the first
    T of each row: no index, so the backward pass needs no atomic sums, which repeat no bits on a GPU.
    """
    num_tokens = by_distance.shape[-2]
    row = 2 * num_tokens - 2
    flat = by_distance.flatten(-2)[..., num_tokens - 1 : num_tokens - 1 + num_tokens * row]
    return flat.reshape(*flat.shape[:-1], num_tokens, row)[..., :num_tokens]


class Block(nn.Module):
    """Attention, then feed-forward, each a residual branch: x + branch(norm(x)) (pre) or norm(x + branch(x)) (post)."""

    def __init__(self, parts: VitSpec, num_tokens: int) -> None:
        super().__init__()
        self.norm_first = parts.norm == "pre"
        self.norm1 = nn.LayerNorm(parts.width)
        self.attn = Attention(parts, num_tokens)
        self.drop = nn.Dropout(parts.projection_dropout)
        self.norm2 = nn.LayerNorm(parts.width)
        self.mlp = nn.Sequential(
            nn.Linear(parts.width, parts.mlp_width),
            nn.ReLU() if parts.activation == "relu" else nn.GELU(),
            nn.Dropout(parts.dropout),
            nn.Linear(parts.mlp_width, parts.width),
            nn.Dropout(parts.dropout),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T, width] -> the same."""
        if self.norm_first:
            tokens = tokens + self.drop(self.attn(self.norm1(tokens)))
            tokens = tokens + self.mlp(self.norm2(tokens))
        else:
            tokens = self.norm1(tokens + self.drop(self.attn(tokens)))
            tokens = self.norm2(tokens + self.mlp(tokens))
        return tokens


class NativeVit(nn.Module):
    """The transformer.

    Args:
        parts: what it is made of.
        num_outputs: of each head.
        image_size: side of the images in pixels.

    Raises:
        ValueError: images of that size cannot be cut into such patches.
    """

    num_prefix_tokens = 1
    """The class token. (timm's name, by which `surgery.py` and `analysis` know it; so `patch_embed`, `pos_embed`.)"""
    positions: torch.Tensor
    """[1, N, width] float32: codes of row and column, summed; only for sincos_sum."""

    def __init__(self, parts: VitSpec, num_outputs: int, image_size: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(parts.patch, parts.width, image_size)
        num_tokens = math.prod(self.patch_embed.grid_size) + self.num_prefix_tokens
        self.cls_token = nn.Parameter(torch.randn(1, 1, parts.width))
        self.has_table = parts.positions == "learned"
        if self.has_table:
            self.pos_embed = nn.Parameter(torch.randn(1, num_tokens, parts.width))
        else:
            side = sinusoid(torch.arange(self.patch_embed.grid_size[0]), parts.width)
            codes = (side[:, None] + side[None, :]).flatten(0, 1)
            self.register_buffer("positions", codes[None], persistent=False)
        self.aux_depths = parts.aux_depths
        self.blocks = nn.ModuleList(_stretches(parts, num_tokens))
        self.aux_heads = nn.ModuleList(_head(parts, num_outputs) for _ in parts.aux_depths)
        self.head = _head(parts, num_outputs)  # the last one made, since the last linear layer is taken for the head

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """[B, 3, S, S] float32 -> logits [B, outputs].

        In training with auxiliary heads, a tuple of logits: of the last head, then of the others by depth. Their cross
        entropies are to be added.
        """
        tokens = self.patch_embed(images)
        if not self.has_table:
            tokens = tokens + self.positions
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        if self.has_table:
            tokens = tokens + self.pos_embed
        heads = dict(zip(self.aux_depths, self.aux_heads, strict=True)) if self.training else {}
        further = []
        for depth, block in enumerate(self.blocks, 1):
            tokens = block(tokens)
            if depth in heads:
                further.append(heads[depth](tokens[:, 0]))
        logits: torch.Tensor = self.head(tokens[:, 0])
        return (logits, *further) if further else logits

    def get_classifier(self) -> nn.Module:
        """The last head, as timm's models give theirs."""
        return self.head

    def scalars(self) -> dict[str, float]:
        """`temperature.<block>`: tau, which divides the block's energies; empty where none is learnt."""
        found: dict[str, float] = {}
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            tau = block.attn.tau()
            if tau is not None:
                found[f"temperature.{number}"] = tau
        return found


def _stretches(parts: VitSpec, num_tokens: int) -> list[Block]:
    """All blocks. With attention_clones those between one head and the next begin alike: each such stretch is a
    TransformerEncoder of the third study, which copies one layer."""
    blocks: list[Block] = []
    for depth in range(parts.depth):
        is_clone = parts.initialisation == "attention_clones" and depth and depth not in parts.aux_depths
        blocks.append(copy.deepcopy(blocks[-1]) if is_clone else Block(parts, num_tokens))
    return blocks


def _head(parts: VitSpec, num_outputs: int) -> nn.Module:
    if parts.head == "norm_linear":
        return nn.Sequential(nn.LayerNorm(parts.width), nn.Linear(parts.width, num_outputs))
    hidden = 4 * parts.width
    return nn.Sequential(nn.Linear(parts.width, hidden), nn.GELU(), nn.Linear(hidden, num_outputs))
