"""The loader beside torch's DataLoader with torchvision's transforms, and beside the memory: 32 pixels, batch 256.

    OMP_NUM_THREADS=1 python -m benchmarks.loader [--rounds 7] [--peer-images 10000] [--out DIR]

`images_per_s` of whole epochs: `kernel` is `datasets.cpu.apply_plan` alone on one thread, `loader` all of `Loader` in
its caller's thread, `ahead` with its own thread; `peer` is a DataLoader of two workers doing the same with torchvision
v2. Each is measured in turn, so that other load hits all alike; it is noted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from datasets.cpu import apply_plan
from datasets.loader import Loader
from datasets.normalize import normalization
from datasets.plan import draw_plan, epoch_order
from datasets.spec import AugmentSpec
from datasets.store import ArrayStore, Manifest
from datasets.subset import Rows
from trainable.costs import cpu_name
from trainable.provenance import git_state

LIBRARIES = ("numpy", "numba", "torch", "torchvision")
SIZE, BATCH, NUM = 32, 256, 50_000
PLAIN: dict[str, Any] = {
    "pad_crop": 0,
    "hflip_prob": 0.0,
    "train_crop": None,
    "mix": "none",
    "mix_alpha": None,
    "mix_prob": 1.0,
    "mix_scope": "batch",
    "mix_partner": "permutation",
    "normalize": "dataset",
}
CROP_FLIP = {"pad_crop": 4, "hflip_prob": 0.5}
ARMS: dict[str, AugmentSpec] = {
    "default": AugmentSpec(**PLAIN),
    "crop_flip": AugmentSpec(**{**PLAIN, **CROP_FLIP}),
    "mixup": AugmentSpec(**{**PLAIN, "mix": "mixup", "mix_alpha": 1.0}),
    "cutmix": AugmentSpec(**{**PLAIN, "mix": "cutmix", "mix_alpha": 1.0}),
    "jitter_rotate_erase": AugmentSpec(
        **{**PLAIN, **CROP_FLIP, "jitter": (0.2, 0.2, 0.2, 0.1), "rotate_deg": 10.0, "erase_prob": 0.2}
    ),
}
MANIFEST = Manifest(
    format=1,
    dataset="random",
    split="train",
    num_images=NUM,
    image_size=SIZE,
    classes=tuple(str(number) for number in range(100)),
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    images_sha256="",
    labels_sha256="",
    content_sha256="0" * 64,
    published=False,
    source="random",
    source_sha256=None,
)


class Peer(Dataset[tuple[torch.Tensor, int]]):
    """Images as torchvision's transforms like them best: 8-bit tensors, not pictures."""

    def __init__(self, store: ArrayStore, transform: v2.Transform, num: int) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(store.images[:num].transpose(0, 3, 1, 2)))
        self._labels = store.labels[:num].tolist()
        self._transform = transform

    def __len__(self) -> int:
        """Images."""
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """One of them, transformed."""
        return self._transform(self._images[index]), self._labels[index]


def kernel(store: ArrayStore, arm: AugmentSpec, out: NDArray[np.float32]) -> Callable[[], int]:
    """Sixty batches of plans that are drawn beforehand."""
    rule, order = normalization(arm, MANIFEST, training=True), epoch_order(0, 0, NUM)
    plans = [draw_plan(arm, 0, 0, n, order[n * BATCH : (n + 1) * BATCH], SIZE) for n in range(60)]

    def run() -> int:
        for plan in plans:
            apply_plan(store.images, plan, rule, out)
        return len(plans) * BATCH

    return run


def epoch(batches: Iterable[Any], num: int) -> int:
    """Goes through an epoch of so many images."""
    for _ in batches:
        pass
    return num


def peer(store: ArrayStore, arm: AugmentSpec, num: int) -> Callable[[], int]:
    """The same arm by torch and torchvision."""
    crop_flip = [v2.RandomCrop(SIZE, padding=4), v2.RandomHorizontalFlip()]
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MANIFEST.mean, MANIFEST.std)]
    jitter = [v2.ColorJitter(0.2, 0.2, 0.2, 0.1), v2.RandomRotation(10.0)]
    middle = [*(crop_flip if arm.pad_crop else []), *(jitter if arm.jitter else [])]
    steps = [*middle, *end, *([v2.RandomErasing(0.2)] if arm.erase_prob else [])]
    loader = DataLoader(Peer(store, v2.Compose(steps), num), BATCH, shuffle=True, num_workers=2)
    mixers = {"mixup": v2.MixUp(num_classes=100), "cutmix": v2.CutMix(num_classes=100)}
    mix = mixers.get(arm.mix)
    return lambda: epoch((mix(*batch) if mix else batch for batch in loader), num)


def first_batches(loader: Loader, count: int) -> list[float]:
    """Milliseconds from asking for an epoch to its first batch."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        next(iter(loader))
        found.append(1e3 * (time.perf_counter() - began))
        loader.close()
    return found


def write_rates(out: NDArray[np.float32], rounds: int) -> list[float]:
    """Bytes a second that one thread writes into an array too large for any cache."""
    found = []
    for number in range(rounds):
        began = time.perf_counter()
        out.fill(number)
        found.append(out.nbytes / (time.perf_counter() - began))
    return found


def main() -> None:
    """Measures all arms in turn, prints medians and writes all that was measured."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.splitlines()[0])
    cli.add_argument("--rounds", type=int, default=7)
    cli.add_argument("--peer-images", type=int, default=10_000, help="of the peer's epoch (default: 10,000)")
    cli.add_argument("--peer-rounds", type=int, default=2)
    cli.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    options = cli.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 100, NUM).astype(np.int16)
    images = rng.integers(0, 256, (NUM, SIZE, SIZE, 3), dtype=np.uint8)
    store = ArrayStore(images=images, labels=labels, manifest=MANIFEST)
    rows = Rows(index=np.arange(NUM, dtype=np.int32), labels=labels.astype(np.int64))
    result: dict[str, Any] = {
        "benchmark": "loader",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": 1,
        "load": os.getloadavg()[0],
        "commit": git_state(),
        "versions": {"python": sys.version.split()[0], **{name: version(name) for name in LIBRARIES}},
        "image_size": SIZE,
        "batch": BATCH,
        "bytes_per_image": 3 * SIZE * SIZE * 4,
        "write_bytes_per_s": write_rates(np.empty(1 << 26, np.float32), 2 * options.rounds)[1:],
    }
    out = np.empty((BATCH, 3, SIZE, SIZE), np.float32)
    tasks: dict[str, dict[str, Callable[[], int]]] = {}
    for name, arm in ARMS.items():
        both = {ahead: Loader(store, rows, arm, batch_size=BATCH, seed=0, train=True, ahead=ahead) for ahead in (0, 2)}
        tasks[name] = {
            "kernel": kernel(store, arm, out),
            "loader": partial(epoch, both[0], NUM),
            "ahead": partial(epoch, both[2], NUM),
            "peer": peer(store, arm, options.peer_images),
        }
        result[f"{name}_first_batch_ms"] = first_batches(both[2], 31)[1:]
    found: dict[str, dict[str, list[float]]] = {name: {kind: [] for kind in tasks[name]} for name in tasks}
    for number in range(options.rounds):
        for name, kinds in tasks.items():
            for kind, task in kinds.items():
                if kind == "peer" and number >= options.peer_rounds:
                    continue
                began = time.perf_counter()
                found[name][kind].append(task() / (time.perf_counter() - began))
    result |= {"images_per_s": found, "load_at_the_end": os.getloadavg()[0]}
    for name, rates in found.items():
        print(name, {kind: f"{statistics.median(values):,.0f}" for kind, values in rates.items()}, flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"loader-{datetime.now(UTC):%Y-%m-%dT%H%M}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
