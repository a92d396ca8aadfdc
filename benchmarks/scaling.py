"""How costs grow: loader, training step, planning, store and analysis at 1, 10 and 100 times the images, rows or runs.

    python -m benchmarks.scaling [--parts loader,step,plan,store,analysis] [--scales 1 10 100] [--stores DIR]

Of every cost the growth exponent is printed, the slope of log cost over log size: 1 is linear, 0 does not grow. Costs
of whole commands begin with their imports, so the slope of the last two sizes stands beside that of all. Costs are CPU
seconds of one thread, which other load disturbs less than the clock; steps and plans go by the clock. Stores are of
made-up runs (`made_store.py`), and their tables are measured as in `benchmarks.analysis`; building the largest takes
longer than everything else, and `--stores` keeps those of the last part for the next time.

What loads torch does so in a process of its own: a child's peak of memory is never below its parent's.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import analysis, schedule
from benchmarks.measuring import RESULTS, barrier, head, keep_to_cores, report, run_together, show, write

LOADER_BATCH, LOADER_SIZE = 256, 32
STEP_MODEL, STEP_SIZE = "small_vit", 8
"""A step of milliseconds, so that what does not belong to the arithmetic would show."""
STEP_BATCH = 20
"""Where the data set grows, as in grid `demo`."""
STORE_IMAGES = 200
"""Test images of a made-up run: what grows with runs is to be seen, not their predictions."""
MIN_SECONDS = 1.0
LIBRARIES = ("torch", "numpy", "numba", "pyarrow")


def growth(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The slope of log cost over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def _row(what: str, per: str, unit: str, sizes: Sequence[int], costs: Sequence[float]) -> dict[str, Any]:
    return {
        "what": what,
        "per": per,
        "unit": unit,
        "sizes": list(sizes),
        "costs": [float(f"{cost:.4g}") for cost in costs],
        "exponent": round(growth(sizes, costs), 3),
        "exponent_of_last": round(growth(sizes[-2:], costs[-2:]), 3),
    }


def _inside(name: str, size: int, repeats: int) -> float:
    """Median of the seconds that processes of this module report."""
    command = ["benchmarks.scaling", "--inside", name, "--size", str(size)]
    return median(float(run_together([command], threads=1)[0][0]["seconds"]) for _ in range(repeats))


def loader(options: argparse.Namespace, stores: Path) -> list[dict[str, Any]]:
    """An epoch of our loader, and what every trial does before it: opening the split and verifying its hashes."""
    sizes = [options.images * scale for scale in options.scales]
    epochs = [_inside("loader", size, options.repeats) for size in sizes]
    opened = [_inside("open", size, options.repeats) for size in sizes]
    return [
        _row("loader: an epoch", "images", "CPU s", sizes, epochs),
        _row("datasets: opening a split", "images", "CPU s", sizes, opened),
    ]


def step(options: argparse.Namespace, stores: Path) -> list[dict[str, Any]]:
    """A training step, loader included, of larger batches and of larger data sets."""
    batches = [options.batch * scale for scale in options.scales]
    sizes = [options.images * scale for scale in options.scales]
    of_batch = [_inside("batch", size, options.repeats) for size in batches]
    of_data = [_inside("data", size, options.repeats) for size in sizes]
    return [
        _row("training: a step", "images of its batch", "s", batches, of_batch),
        _row(f"training: a step of {STEP_BATCH}", "images of the data set", "s", sizes, of_data),
    ]


def plan(options: argparse.Namespace, stores: Path) -> list[dict[str, Any]]:
    """Expanding, hashing, surveying and planning a grid."""
    schedule.plan_rows(1, 1)  # counts what is in the models, if that was never done by this version of the code
    found = [schedule.plan_rows(options.seeds * scale, options.repeats) for scale in options.scales]
    sizes = [one["runs"] for one in found]
    memory = [max(one["peak_mb"]) for one in found]
    return [
        _row("tuner: a plan", "rows", "s", sizes, [median(one["seconds"]) for one in found]),
        _row("tuner: peak memory of a plan", "rows", "MB", sizes, memory),
    ]


def store(options: argparse.Namespace, stores: Path) -> list[dict[str, Any]]:
    """Committing runs of 50 epochs, what they take on a disk, and looking at what is done."""
    sizes, made, taken, looked = [], [], [], []
    for scale in options.scales:
        seeds = options.seeds * scale
        with tempfile.TemporaryDirectory() as folder:  # for its time: a store that is kept may be there already
            size = ["--seeds", str(seeds), "--images", str(STORE_IMAGES), "--epochs", str(analysis.EPOCHS)]
            made.append(_cpu_s(analysis.measure(["benchmarks.made_store", folder, *size], 1)))
            files = [file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()]
            taken.append(float(sum(files)))
            status = ["tuner.status", "--grid", "paper", "--results", folder, "--json"]
            looked.append(_cpu_s(analysis.measure(status, 1)))
            sizes.append(sum(1 for _ in Path(folder, "commits").iterdir()))
    return [
        _row("store: committing runs", "runs", "CPU s", sizes, made),
        _row("store: bytes", "runs", "bytes", sizes, taken),
        _row("tuner.status", "runs", "CPU s", sizes, looked),
    ]


def tables(options: argparse.Namespace, stores: Path) -> list[dict[str, Any]]:
    """T1 from the runs' own files, their compaction, and T1 from that."""
    found = []
    for scale in options.scales:
        results, runs = analysis.store_of(stores, options.seeds * scale, num_images=STORE_IMAGES)
        found.append(analysis.measure_tables(results, runs, options.repeats))
    sizes = [one["runs"] for one in found]
    named = {"T1 from files": "t1_of_files", "compact": "compact", "T1 from a compaction": "t1_compacted"}
    rows = [
        _row(f"analysis: {what}", "runs", "CPU s", sizes, [_cpu_s(one[key]) for one in found])
        for what, key in named.items()
    ]
    memory = [max(one["t1_of_files"]["peak_mb"]) for one in found]
    return [*rows, _row("analysis: peak memory of T1 from files", "runs", "MB", sizes, memory)]


def _cpu_s(measured: analysis.Measured) -> float:
    return median(user + system for user, system in zip(measured["user_s"], measured["system_s"], strict=True))


def _epoch_here(size: int) -> None:
    from benchmarks.arms import augmentation
    from benchmarks.made_images import random_images
    from datasets.loader import Loader
    from datasets.subset import Rows

    images = random_images(LOADER_SIZE, size).train
    rows = Rows(index=np.arange(size, dtype=np.int32), labels=images.labels.astype(np.int64))
    batches = Loader(images, rows, augmentation("crop_flip"), batch_size=LOADER_BATCH, seed=0, train=True)
    for _ in batches:
        pass
    barrier()
    began, clock, epochs = time.process_time(), time.perf_counter(), 0
    while not epochs or time.perf_counter() - clock < MIN_SECONDS:
        for _ in batches:
            pass
        epochs += 1
    report({"seconds": (time.process_time() - began) / epochs})


def _open_here(size: int) -> None:
    from benchmarks.made_images import random_images
    from datasets.store import ArrayStore

    store = random_images(LOADER_SIZE, size).train
    hashes = {
        "images_sha256": hashlib.sha256(store.images.data).hexdigest(),
        "labels_sha256": hashlib.sha256(store.labels.data).hexdigest(),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", store.images)
        np.save(folder / "labels.npy", store.labels)
        (folder / "manifest.json").write_text(store.manifest.model_copy(update=hashes).model_dump_json())
        ArrayStore.open(folder)
        began = time.process_time()
        ArrayStore.open(folder)
        report({"seconds": time.process_time() - began})


def _step_here(batch: int, count: int) -> None:
    from benchmarks.calibrate import measure

    report({"seconds": measure(STEP_MODEL, STEP_SIZE, batch, steps=20, count=count)})


PARTS: dict[str, Callable[[argparse.Namespace, Path], list[dict[str, Any]]]] = {
    "loader": loader,
    "step": step,
    "plan": plan,
    "store": store,
    "analysis": tables,
}


def main(argv: list[str] | None = None) -> None:
    """Runs the parts, prints and writes them."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=str(__doc__).splitlines()[0])
    cli.add_argument("--parts", default=",".join(PARTS), metavar="A,B", help=f"default: {','.join(PARTS)}")
    cli.add_argument("--scales", type=int, nargs="+", default=[1, 10, 100], metavar="N", help="two at least")
    cli.add_argument("--images", type=int, default=1_000, metavar="N", help="at scale 1 (default: 1,000)")
    cli.add_argument("--batch", type=int, default=4, metavar="N", help="at scale 1 (default: 4)")
    cli.add_argument("--seeds", type=int, default=4, metavar="N", help="of the 24 rows, at scale 1 (default: 4)")
    cli.add_argument("--repeats", type=int, default=3, help="of what is not slow (default: 3)")
    cli.add_argument("--stores", type=Path, metavar="DIR", help="keep the stores there (default: a temporary folder)")
    cli.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    cli.add_argument("--inside", help=argparse.SUPPRESS)
    cli.add_argument("--size", type=int, help=argparse.SUPPRESS)
    options = cli.parse_args(argv)
    inner: dict[str, Callable[[int], None]] = {
        "loader": _epoch_here,
        "open": _open_here,
        "batch": lambda size: _step_here(size, 4 * size),
        "data": lambda size: _step_here(STEP_BATCH, size),
    }
    if options.inside:
        inner[options.inside](options.size)
        return
    keep_to_cores(None)
    result = head("scaling", threads=1, libraries=LIBRARIES)
    result |= {"scales": options.scales, "epochs": analysis.EPOCHS, "rows": []}
    with ExitStack() as stack:
        stores = options.stores or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for name in options.parts.split(","):
            rows = PARTS[name](options, stores)
            result["rows"] += rows
            _print(name, rows)
    print(f"written: {write(result, options.out)}")


def _print(name: str, rows: list[dict[str, Any]]) -> None:
    scales = max(len(row["sizes"]) for row in rows)
    show(
        name,
        ("", *(f"size {number + 1}" for number in range(scales)), "exponent", "of the last two"),
        [
            (
                f"{row['what']} by {row['per']}, {row['unit']}",
                *(f"{size:,}: {cost:.3g}" for size, cost in zip(row["sizes"], row["costs"], strict=True)),
                f"{row['exponent']:.2f}",
                f"{row['exponent_of_last']:.2f}",
            )
            for row in rows
        ],
    )


if __name__ == "__main__":
    main()
