"""Small images and specs that tests build on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.spec import AugmentSpec
from trainable.spec import ExecSpec, RunSpec

BASE: dict[str, Any] = {
    "data.dataset": "toy",
    "data.content_sha256": None,
    "data.image_size": 8,
    "data.classes": None,
    "data.val_fraction": 0.0,
    "data.val_seed": 0,
    "data.limit_train": None,
    "data.limit_eval": None,
    "data.limit_seed": 0,
    "augment.pad_crop": 0,
    "augment.hflip_prob": 0.0,
    "augment.train_crop": None,
    "augment.mix": "none",
    "augment.mix_alpha": None,
    "augment.mix_prob": 1.0,
    "augment.mix_scope": "batch",
    "augment.mix_partner": "permutation",
    "augment.normalize": "dataset",
    "model.name": "small_vit",
    "init.kind": "scratch",
    "init.source": None,
    "init.sha256": None,
    "init.checkpoint": None,
    "init.surgery": [],
    "optim.name": "adam",
    "optim.lr": 1e-3,
    "optim.betas": [0.9, 0.999],
    "optim.eps": 1e-8,
    "optim.momentum": None,
    "optim.weight_decay": 0.0,
    "optim.schedule": "cosine",
    "optim.schedule_per": "epoch",
    "optim.min_lr": 0.0,
    "optim.warmup_steps": 0,
    "optim.precision": "float32",
    "budget.epochs": 3,
    "budget.steps": None,
    "budget.batch_size": 16,
    "evaluate.every_epochs": 1,
    "evaluate.every_steps": None,
    "evaluate.batch_size": 16,
    "evaluate.select": ["best_on_test"],
    "seed": 1,
    "version": 2,
}


VIT: dict[str, Any] = {
    "patch": 4,
    "width": 8,
    "depth": 2,
    "heads": 2,
    "mlp_width": 16,
    "dropout": 0.0,
    "projection_dropout": 0.0,
    "attention_dropout": 0.0,
    "norm": "pre",
    "activation": "gelu",
    "qkv_bias": True,
    "positions": "learned",
    "head": "mlp",
    "initialisation": "linear",
    "aux_depths": [],
    "relative_attention": False,
    "diagonal_mask": False,
    "temperature": "none",
}
"""`model.vit` of a very small transformer."""


def augment(**changes: object) -> AugmentSpec:
    """The augmentation of BASE (none), with changes."""
    plain = {key.removeprefix("augment."): value for key, value in BASE.items() if key.startswith("augment.")}
    return AugmentSpec(**{**plain, **changes})


def run_spec(fields: dict[str, Any] | None = None, **top: Any) -> RunSpec:
    """A spec on the toy images, with fields changed by dotted path."""
    nested: dict[str, Any] = {}
    for path, value in {**BASE, **(fields or {}), **top}.items():
        node = nested
        *parts, last = path.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[last] = value
    return RunSpec.model_validate_json(json.dumps(nested))


def made_up_from(spec: RunSpec) -> int:
    """What made-up numbers of a run are drawn from: they stay as they are when SPEC_VERSION rises, and with it every id
    of a parent."""
    init = spec.init.model_copy(update={"source": "parent"}) if spec.init.kind == "parent" else spec.init
    return int(spec.model_copy(update={"version": 1, "init": init}).run_id, 16)


def exec_spec(data_path: Path, **changes: Any) -> ExecSpec:
    """One CPU thread, checkpoints only when asked for."""
    values = {
        "device": "cpu",
        "data_path": str(data_path),
        "weights_path": None,
        "cpu_threads": 1,
        "gpu_fraction": 0.0,
        "save_every_s": 1e9,
    }
    return ExecSpec(**{**values, **changes})


def toy_image(label: int, rng: np.random.Generator, size: int = 8) -> np.ndarray:
    """A noisy picture whose brightest third of rows tells its class, [size, size, 3] uint8."""
    image = rng.integers(0, 90, (size, size, 3))
    third = size // 3
    image[label * third : (label + 1) * third] += 120
    return image.astype(np.uint8)


def write_image_folder(
    folder: Path, *, train_per_class: int, test_per_class: int, size: int = 8, seed: int = 0
) -> None:
    """Writes a class-per-folder tree of PNGs with classes a, b and c."""
    rng = np.random.default_rng(seed)
    for split, count in (("train", train_per_class), ("test", test_per_class)):
        for label, name in enumerate("abc"):
            home = folder / split / name
            home.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(toy_image(label, rng, size)).save(home / f"{name}_{number}.png")


def photos(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Random tiles of the two photographs that come with scikit-learn, [count, size, size, 3] uint8."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    pictures = load_sample_images().images
    tiles = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        top, left = (rng.integers(0, side - 4 * size) for side in picture.shape[:2])
        tile = Image.fromarray(picture[top : top + 4 * size, left : left + 4 * size])
        tiles.append(np.asarray(tile.resize((size, size), Image.Resampling.BOX)))
    return np.stack(tiles)
