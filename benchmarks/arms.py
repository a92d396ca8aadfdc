"""The augmentations that loaders and kernels are measured under: the study's three arms, and two that do more.

`default`, `mixup` and `cutmix` are those of grid `paper`: native size, normalised by the data's own statistics, nothing
else but the mixing. `crop_flip` is the usual 4-pixel crop and mirror (grid `paper_crop_flip`), `jitter_rotate_erase`
what the fourth study does on top of that (grid `vit_transfer`).
"""

from __future__ import annotations

from typing import Any

from benchmarks.measuring import ROOT
from datasets.spec import AugmentSpec
from tuner.grid import load_grid

_CROP_FLIP: dict[str, Any] = {"pad_crop": 4, "hflip_prob": 0.5}
_CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    "crop_flip": _CROP_FLIP,
    "mixup": {"mix": "mixup", "mix_alpha": 1.0},
    "cutmix": {"mix": "cutmix", "mix_alpha": 1.0},
    "jitter_rotate_erase": {
        **_CROP_FLIP,
        "jitter": (0.2, 0.2, 0.2, 0.1),
        "rotate_deg": 10.0,
        "erase_prob": 0.2,
    },
}
ARMS = tuple(_CHANGES)
STUDY_ARMS = ("default", "crop_flip", "mixup", "cutmix")
"""Those that other libraries' loaders are set beside."""


def augmentation(arm: str) -> AugmentSpec:
    """The augmentation of an arm."""
    plain = load_grid(ROOT / "experiments.yaml", "paper").runs[0].spec.augment
    return AugmentSpec.model_validate(plain.model_dump() | _CHANGES[arm])
