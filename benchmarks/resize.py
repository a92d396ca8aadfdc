"""What resizing costs on one core, and whether enlarged images are better stored than made anew for every batch.

    OMP_NUM_THREADS=1 python -m benchmarks.resize [--images 20000] [--folder DIR] [--out DIR]

`kernels`: one image by each rule, beside Pillow and torchvision, in turn. `batches`: batches of 100 random images made
ready for a model at 224 pixels: from a memory map of images of 64 that are enlarged on the way, or from one of images
of 224 (3 GB), with their pages in memory (warm) or dropped from it before every batch (cold; the disk may have a cache
of its own). All on one thread; what else the machine did is in `load`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images
from torchvision.transforms.v2 import functional

from benchmarks.measuring import RESULTS, Watch, head, show, spread, write
from datasets.cpu import apply_plan
from datasets.normalize import Normalization
from datasets.plan import plain_plan
from datasets.resize import Resizer, Rule

LIBRARIES = ("numpy", "numba", "pillow", "torch", "torchvision")
CASES: tuple[tuple[Rule, int, int], ...] = (
    ("bicubic", 64, 224),
    ("bilinear", 64, 224),
    ("bicubic_opencv", 64, 224),
    ("bilinear", 32, 224),
    ("bicubic", 224, 64),
)
"""Rule, side before, side after."""
PILLOW = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
SIDE, IMAGE_SIZE, BATCH, JPEG_QUALITY = 64, 224, 100, 95
COLUMNS = ("ours_us", "pillow_us", "torchvision_us")
Times = dict[str, list[float]]
"""Seconds by name."""


def kernels(rounds: int) -> dict[str, Any]:
    """Microseconds an image, of all images of a batch."""
    found: dict[str, Any] = {}
    for rule, side, image_size in CASES:
        images = pictures(BATCH, side)
        out = np.empty((BATCH, image_size, image_size, 3), np.uint8)
        resizer = Resizer(rule, side, image_size)
        tasks: dict[str, Callable[[], object]] = {
            "ours": partial(resizer.fill, images, np.arange(BATCH, dtype=np.int32), out)
        }
        if rule in PILLOW:
            tasks["pillow"] = partial(by_pillow, images, image_size, PILLOW[rule])
            tasks["torchvision"] = partial(by_torchvision, images, image_size, rule)
        found[f"{rule}_{side}_to_{image_size}"] = {
            f"{name}_us": spread(1e6 * seconds / BATCH for seconds in times)
            for name, times in in_turn(tasks, rounds).items()
        }
    return found


def by_pillow(images: NDArray[np.uint8], image_size: int, filter_: Image.Resampling) -> None:
    """One after another, arrays at both ends."""
    for image in images:
        np.asarray(Image.fromarray(image).resize((image_size, image_size), filter_))


def by_torchvision(images: NDArray[np.uint8], image_size: int, rule: str) -> None:
    """All at once, on 8-bit images in torchvision's fastest layout."""
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2)
    functional.resize(pictures, [image_size, image_size], functional.InterpolationMode(rule), antialias=True)


def batches(rounds: int, num: int, folder: Path) -> dict[str, Any]:
    """Images a second into normalised float32 batches, by where images of 224 pixels come from."""
    small, large = folder / "small.npy", folder / "large.npy"
    resizer = Resizer("bicubic_opencv", SIDE, IMAGE_SIZE)
    written_s = write_sets(small, large, resizer, num)
    rng, rule = np.random.default_rng(1), Normalization.by((0.0,) * 3, (1.0,) * 3)
    slot = torch.empty((BATCH, 3, IMAGE_SIZE, IMAGE_SIZE))
    buffer = np.empty((BATCH, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)

    def rows() -> NDArray[np.int32]:
        return rng.integers(0, num, BATCH).astype(np.int32)

    def resized(by: Resizer) -> None:
        by.fill(np.asarray(np.load(small, mmap_mode="r")), rows(), buffer)
        apply_plan(buffer, plain_plan(np.arange(BATCH, dtype=np.int32), IMAGE_SIZE), rule, slot)

    def stored() -> None:
        apply_plan(np.asarray(np.load(large, mmap_mode="r")), plain_plan(rows(), IMAGE_SIZE), rule, slot)

    for path in (small, large):
        path.read_bytes()
    times = in_turn({"resized_warm": partial(resized, resizer), "stored_warm": stored}, rounds)
    cold: dict[str, Callable[[], object]] = {"resized_cold": partial(resized, resizer), "stored_cold": stored}
    times |= in_turn(cold, rounds, before=lambda: drop(small, large))
    jpeg = Resizer("bicubic_opencv", SIDE, IMAGE_SIZE, JPEG_QUALITY)
    times |= in_turn({"resized_and_jpeg": partial(resized, jpeg)}, 5)
    return {
        "images": num,
        "batch": BATCH,
        "rule": "bicubic_opencv",
        "small_bytes": small.stat().st_size,
        "large_bytes": large.stat().st_size,
        "written_s": written_s,
        "images_per_s": {name: spread(BATCH / seconds for seconds in values) for name, values in times.items()},
    }


def write_sets(small: Path, large: Path, resizer: Resizer, num: int) -> float:
    """Writes both arrays through to the disk; seconds that the large one took."""
    images = np.lib.format.open_memmap(small, "w+", np.uint8, (num, SIDE, SIDE, 3))
    images[:] = pictures(500, SIDE)[np.random.default_rng(0).integers(0, 500, num)]
    images.flush()
    began = time.perf_counter()
    enlarged = np.lib.format.open_memmap(large, "w+", np.uint8, (num, IMAGE_SIZE, IMAGE_SIZE, 3))
    for start in range(0, num, BATCH):
        rows = np.arange(start, min(start + BATCH, num), dtype=np.int32)
        resizer.fill(images, rows, enlarged[start : start + len(rows)])
    enlarged.flush()
    return time.perf_counter() - began


def drop(*paths: Path) -> None:
    """Asks the system to forget what it holds of files that are safe on the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pictures(num: int, side: int) -> NDArray[np.uint8]:
    """Random pieces of two photographs, [num, side, side, 3]: what JPEG costs depends on what is seen."""
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    pieces = []
    for number in range(num):
        photograph = photographs[number % 2]
        top, left = (rng.integers(0, length - side) for length in photograph.shape[:2])
        pieces.append(photograph[top : top + side, left : left + side])
    return np.stack(pieces)


def in_turn(tasks: dict[str, Callable[[], object]], rounds: int, before: Callable[[], object] = lambda: None) -> Times:
    """Seconds of each task in so many rounds after one that is not counted; `before` each of them, not counted."""
    found: Times = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            before()
            began = time.perf_counter()
            task()
            if number:
                found[name].append(time.perf_counter() - began)
    return found


def main() -> None:
    """Runs both parts, prints medians and writes all that was measured."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.resize", description=str(__doc__).splitlines()[0])
    cli.add_argument("--images", type=int, default=20_000, help="of the stored sets (default: 20,000, which is 3 GB)")
    cli.add_argument("--rounds", type=int, default=25)
    cli.add_argument("--folder", type=Path, help="where the sets are written and removed (default: a temporary folder)")
    cli.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    options = cli.parse_args()
    torch.set_num_threads(1)
    result = head("resize", threads=1, libraries=LIBRARIES) | {"rounds": options.rounds}
    watch = Watch()
    result["kernels"] = kernels(options.rounds)
    result["kernels_other_load"] = watch.stop().other_load
    watch = Watch()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result["batches"] = batches(options.rounds, options.images, Path(folder))
    result["batches_other_load"] = watch.stop().other_load
    _print(result)
    print(f"written: {write(result, options.out)}")


def _print(result: dict[str, Any]) -> None:
    rows = [
        [name, *(f"{measured[key]['median']:.0f}" if key in measured else "" for key in COLUMNS)]
        for name, measured in result["kernels"].items()
    ]
    show("microseconds an image, one thread", ["rule", *COLUMNS], rows)
    rates = result["batches"]["images_per_s"]
    show("images/s", ["", "median", "low", "high"], [[name, *_shown(one)] for name, one in rates.items()])


def _shown(one: dict[str, Any]) -> list[str]:
    return [f"{one[key]:,.0f}" for key in ("median", "low", "high")]


if __name__ == "__main__":
    main()
