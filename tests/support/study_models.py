"""The third and fourth study's models as fields, and small ones of their kind that a test can follow by hand."""

from __future__ import annotations

from typing import Any

from trainable.spec import VitSpec

VIT: dict[str, Any] = {
    "patch": 8,
    "width": 256,
    "depth": 12,
    "heads": 4,
    "mlp_width": 1024,
    "dropout": 0.1,
    "projection_dropout": 0.1,
    "attention_dropout": 0.1,
    "norm": "post",
    "activation": "relu",
    "qkv_bias": True,
    "positions": "sincos_sum",
    "head": "mlp",
    "initialisation": "attention_clones",
    "aux_depths": (),
    "relative_attention": False,
    "diagonal_mask": False,
    "temperature": "none",
}
"""The third study's `vit-12x256-8x8`."""
VITN: dict[str, Any] = {
    **VIT,
    "attention_dropout": 0.0,
    "norm": "pre",
    "activation": "gelu",
    "qkv_bias": False,
    "initialisation": "linear",
}
"""Its `vitn-12x256-8x8`."""
OC: dict[str, Any] = {
    **VIT,
    "patch": 16,
    "projection_dropout": 0.0,
    "width": 144,
    "depth": 6,
    "heads": 6,
    "mlp_width": 512,
    "norm": "pre",
    "activation": "gelu",
    "positions": "learned",
    "head": "norm_linear",
    "initialisation": "attention",
}
"""The fourth study's own ViT, as it was most likely trained."""
SMALL: dict[str, Any] = {"patch": 4, "width": 8, "depth": 2, "heads": 2, "mlp_width": 12}
ENERGIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "ra": {"relative_attention": True},
    "dm": {"diagonal_mask": True},
    "lt": {"temperature": "log"},
    "ltv": {"temperature": "vanilla"},
    "dm-lt": {"diagonal_mask": True, "temperature": "log"},
}
"""What the variants of `vitn` change."""


def vit(fields: dict[str, Any], **changes: Any) -> VitSpec:
    """The parts of a model, with changes."""
    return VitSpec(**{**fields, **changes})
