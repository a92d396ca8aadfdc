"""Images a second of our loader beside others', over the same epoch, augmentation and cores.

    python -m benchmarks.loader --data DIR [--datasets cifar100 tiny-imagenet-200] [--repeats 5] [--loaders a,b]
    python -m benchmarks.loader --data DIR --trials 4 --loaders ""     # the memory of four loaders at once, alone

A loader's work ends when a batch of 256 is a normalised float tensor in the model's layout. Every measurement is a
process of its own: one epoch to warm up, whose mean says whether the images are the right ones, then one or more (for
a second at least) with the clock running from the request for the first batch, which is also timed apart, to the last.
All loaders take their turn, then again. The bandwidth of the same minutes stands below: memory written by one thread,
large and within the cache.

With `--trials`, so many of our loaders run as processes over one memory map, see `benchmarks.loader_memory`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers
from benchmarks.arms import ARMS, STUDY_ARMS, augmentation
from benchmarks.ffcv_loader import ffcv
from benchmarks.loader_memory import measure_trials
from benchmarks.measuring import (
    RESULTS,
    Failed,
    barrier,
    head,
    keep_to_cores,
    report,
    run_together,
    short,
    show,
    spread,
    write,
)
from benchmarks.peers import Epoch, Work
from datasets.loader import Loader
from datasets.store import ArrayStore, DataError, open_dataset
from datasets.subset import Rows

NAME = Path(__file__).stem
BATCH_SIZE = 256
OURS, PEER = "ours", "torchvision-2"
"""What ratios are to."""
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "numba", "ffcv")
MIN_SECONDS = 1.0
"""A fast loader makes several epochs under the clock: CPU time is counted in hundredths of a second."""
BUFFER_BYTES = 1 << 28
"""What is written to measure the memory's bandwidth: far more than any cache."""
SLOTS = 2
"""Recycled buffers of a loader, which it writes in turn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A loader that can be measured."""

    label: str
    make: Callable[[Work, ArrayStore], Epoch]
    all_cores: bool = False
    """Whether torch and numba may use every core within the process; the others have one thread, and their worker
    processes."""


def ours(work: Work, store: ArrayStore, **settings: Any) -> Epoch:
    """The project's loader as a training opens it: its thread prepares a batch ahead."""
    rows = Rows(index=np.arange(len(work.images), dtype=np.int32), labels=work.labels)
    loader = Loader(store, rows, work.augment, batch_size=work.batch_size, seed=0, train=True, **settings)
    return lambda: (batch.images for batch in loader)


def _peer(make: Callable[..., Epoch], **settings: Any) -> Callable[[Work, ArrayStore], Epoch]:
    return lambda work, store: make(work, **settings)


ENTRIES = {
    "ours": Entry(label="ours, 1 thread", make=ours),
    "ours-2": Entry(label="ours, 2 threads", make=partial(ours, threads=2)),
    "ours-bf16": Entry(
        label="ours, bfloat16 channels_last", make=partial(ours, dtype=torch.bfloat16, channels_last=True)
    ),
    "torchvision-0": Entry(label="DataLoader+v2, 0 workers", make=_peer(peers.torchvision, workers=0)),
    "torchvision-2": Entry(label="DataLoader+v2, 2 workers", make=_peer(peers.torchvision, workers=2)),
    "timm": Entry(label="timm, 2 workers", make=_peer(peers.timm, fast=False)),
    "timm-fast": Entry(label="timm fast_collate, 2 workers", make=_peer(peers.timm, fast=True)),
    "airbench": Entry(label="airbench, whole epochs", make=_peer(peers.airbench), all_cores=True),
    "gather": Entry(label="torch gather of uint8", make=_peer(peers.gather), all_cores=True),
    "ffcv-1": Entry(label="FFCV, 1 worker", make=_peer(ffcv, workers=1)),
    "ffcv-2": Entry(label="FFCV, 2 workers", make=_peer(ffcv, workers=2), all_cores=True),
}


def missing(name: str) -> str | None:
    """Why a loader cannot be measured here."""
    if name.startswith("ffcv"):
        try:
            import ffcv  # noqa: F401
        except Exception as error:  # its extension may be there and not load
            return f"not installed ({type(error).__name__}: {error})"
    return None


def measure(options: argparse.Namespace, cores: int) -> dict[str, Any]:
    """Every loader under every arm on every data set, interleaved; the bandwidth once a repeat."""
    reasons = {name: missing(name) for name in options.loaders}
    skipped = {name: reason for name, reason in reasons.items() if reason is not None}
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    bandwidth: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    for repeat in range(options.repeats):
        for dataset in options.datasets:
            for arm in options.arms:
                for name in (name for name in options.loaders if name not in skipped):
                    _say(f"repeat {repeat + 1} of {options.repeats}: {dataset}, {arm}, {name}")
                    arguments = ["--dataset", dataset, "--arm", arm, "--images", str(options.images or 0)]
                    threads = cores if ENTRIES[name].all_cores else 1
                    try:
                        one = _inside(options, name, *arguments, threads=threads)
                    except Failed as error:
                        failed.append({"dataset": dataset, "arm": arm, "loader": name, "why": str(error)})
                        continue
                    found.setdefault((dataset, arm, name), []).append({**one, "threads": threads})
        bandwidth.append(_inside(options, "bandwidth", threads=1))
    _say("")
    results = [
        {"dataset": dataset, "arm": arm, "loader": name, "label": ENTRIES[name].label, **_summary(ones)}
        for (dataset, arm, name), ones in found.items()
    ]
    written = {
        key: spread(one[key] for one in bandwidth)
        for key in ("memory_bytes_per_s", "copy_bytes_per_s", "cache_bytes_per_s")
    }
    _add_ratios(results, written["memory_bytes_per_s"]["median"])
    return {"results": results, "bandwidth": written, "skipped": skipped, "failed": failed}


def _inside(options: argparse.Namespace, name: str, *arguments: str, threads: int) -> dict[str, Any]:
    command = [f"benchmarks.{NAME}", "--data", str(options.data), "--inside", name, *arguments]
    (measured,), watched = run_together([command], threads)
    return {**measured, "cpu_s": watched.cpu_s, "clean": watched.clean, "other_load": watched.other_load}


def _summary(ones: list[dict[str, Any]]) -> dict[str, Any]:
    loads = [one["other_load"] for one in ones if one["other_load"] is not None]
    return {
        "threads": ones[0]["threads"],
        "images": ones[0]["images"],
        "image_bytes": ones[0]["image_bytes"],
        "mean": ones[0]["mean"],
        "epochs": [one["epochs"] for one in ones],
        "images_per_s": spread(one["images_per_s"] for one in ones),
        "images_per_cpu_s": spread(one["images"] * one["epochs"] / max(one["cpu_s"], 0.01) for one in ones),
        "first_batch_s": spread(one["first_batch_s"] for one in ones),
        "clean": sum(one["clean"] for one in ones),
        "other_load": spread(loads) if loads else None,
    }


def _add_ratios(results: list[dict[str, Any]], written: float) -> None:
    """Sets every loader beside ours, beside torchvision's with two workers, and beside what the memory takes."""
    rates = {(one["dataset"], one["arm"], one["loader"]): one["images_per_s"]["median"] for one in results}
    for one in results:
        rate = one["images_per_s"]["median"]
        for key, name in (("ratio_to_ours", OURS), ("ratio_to_torchvision_2", PEER)):
            base = rates.get((one["dataset"], one["arm"], name))
            one[key] = None if base is None else float(f"{rate / base:.4g}")
        one["share_of_bandwidth"] = float(f"{rate * one['image_bytes'] / written:.4g}")


def print_results(measured: dict[str, Any], repeats: int) -> None:
    """One table for each data set and arm, the fastest loader first."""
    results = measured["results"]
    for dataset, arm in dict.fromkeys((one["dataset"], one["arm"]) for one in results):
        rows = [one for one in results if (one["dataset"], one["arm"]) == (dataset, arm)]
        show(
            f"{dataset}, {arm}: {max(one['images'] for one in rows):,} images in batches of {BATCH_SIZE}",
            ("", "images/s", "low to high", "x ours", "x v2 2w", "per CPU-s", "first batch", "memset", "clean"),
            [_row(one, repeats) for one in sorted(rows, key=lambda one: -one["images_per_s"]["median"])],
        )
    rates = {key.removesuffix("_bytes_per_s"): value["median"] for key, value in measured["bandwidth"].items()}
    told = ", ".join(f"{name} {rate / 1e9:.1f} GB/s" for name, rate in rates.items())
    print(f"written by one thread: {told}. Column memset: what the loader writes, as a share of the first.")
    for name, reason in measured["skipped"].items():
        print(f"{name}: {reason}")
    for one in measured["failed"]:
        print(f"{one['loader']} failed on {one['dataset']}, {one['arm']}: {one['why']}")


def _row(one: dict[str, Any], repeats: int) -> tuple[str, ...]:
    rate, ratios = one["images_per_s"], (one["ratio_to_ours"], one["ratio_to_torchvision_2"])
    return (
        one["label"],
        short(rate["median"]),
        f"{short(rate['low'])} to {short(rate['high'])}",
        *("-" if ratio is None else f"{ratio:.3g}" for ratio in ratios),
        short(one["images_per_cpu_s"]["median"]),
        f"{1000 * one['first_batch_s']['median']:.1f} ms",
        f"{100 * one['share_of_bandwidth']:.1f} %",
        f"{one['clean']}/{repeats}",
    )


def _measure_here(options: argparse.Namespace) -> None:
    """One loader in this process."""
    store = open_dataset(options.data, options.dataset, verify=False).train
    count = min(options.images or len(store.labels), len(store.labels))
    work = Work(
        images=store.images[:count],
        labels=store.labels[:count].astype(np.int64),
        num_classes=len(store.manifest.classes),
        mean=store.manifest.mean,
        std=store.manifest.std,
        augment=augmentation(options.arm),
        batch_size=BATCH_SIZE,
    )
    epoch = ENTRIES[options.inside].make(work, store)
    images, mean, image_bytes = _checked(epoch(), work.side)
    barrier()
    began = time.perf_counter()
    first_s: list[float] = []
    while time.perf_counter() - began < MIN_SECONDS or not first_s:
        asked = time.perf_counter()
        seen = 0
        for batch in epoch():
            if not seen:
                first_s.append(time.perf_counter() - asked)
            seen += len(batch)
        assert seen == images, "epochs are of one length"
    seconds = time.perf_counter() - began
    report(
        {
            "images": images,
            "epochs": len(first_s),
            "images_per_s": images * len(first_s) / seconds,
            "first_batch_s": statistics.median(first_s),
            "mean": mean,
            "image_bytes": image_bytes,
        }
    )


def _checked(epoch: Iterator[torch.Tensor], side: int) -> tuple[int, float, int]:
    """Goes through an epoch: images, mean of their values, bytes of one.

    Raises:
        ValueError: a batch is not what a model takes.
    """
    images, total, item = 0, 0.0, 0
    for batch in epoch:
        dense = batch.is_contiguous() or batch.is_contiguous(memory_format=torch.channels_last)
        if batch.shape[1:] != (3, side, side) or not batch.is_floating_point() or not dense:
            raise ValueError(f"not a batch for a model: {list(batch.shape)} {batch.dtype}, dense: {dense}")
        images += len(batch)
        total += float(batch.double().sum())
        item = batch.element_size() * 3 * side * side
    return images, total / (images * 3 * side * side), item


def _bandwidth_here() -> None:
    """Memory written and copied by this thread: a buffer larger than any cache, and a loader's own recycled ones."""
    large, other = (torch.zeros(BUFFER_BYTES // 4) for _ in range(2))
    slots = [torch.zeros(BATCH_SIZE * 3 * 32 * 32) for _ in range(SLOTS)]
    barrier()
    rates = {
        "memory_bytes_per_s": _rate(large.zero_, BUFFER_BYTES),
        "copy_bytes_per_s": _rate(lambda: large.copy_(other), BUFFER_BYTES),
        "cache_bytes_per_s": _rate(lambda: [slot.zero_() for slot in slots], sum(slot.nbytes for slot in slots)),
    }
    report(rates)


def _rate(write_all: Callable[[], object], size: int, seconds: float = 0.5) -> float:
    """Bytes a second of a write that is repeated for a while."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        write_all()
        times.append(time.perf_counter() - began)
    return size / statistics.median(times)


def print_trials(trials: dict[str, Any]) -> None:
    """What each of several loaders holds for itself and shares with the others."""
    mib = 2**20
    rows = [
        (
            f"trial {number}",
            f"{trials['imports_bytes'][number] / mib:.1f} MiB",
            f"{trials['private_bytes'][number] / mib:.1f} MiB",
            *(f"{one[key] / mib:.1f} MiB" for key in ("resident_bytes", "share_bytes", "private_bytes")),
            short(trials["images_per_s"][number]),
        )
        for number, one in enumerate(trials["map"])
    ]
    size = f"{trials['map_file_bytes'] / mib:.0f} MiB ({trials['dataset']})"
    show(
        f"{trials['trials']} loaders at once over one map of {size}",
        ("", "imports", "+ loader, private", "map resident", "its share", "map private", "images/s"),
        rows,
    )


def _say(text: str) -> None:
    """What is being measured, on one line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _names(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in ENTRIES]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(ENTRIES)}")
    return names


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, writes."""
    cli = argparse.ArgumentParser(prog=f"python -m benchmarks.{NAME}", description=str(__doc__).splitlines()[0])
    cli.add_argument("--data", type=Path, default=Path("data"), help="folder of the prepared data (default: data)")
    cli.add_argument("--datasets", nargs="+", default=["cifar100", "tiny-imagenet-200"], metavar="NAME")
    cli.add_argument("--arms", nargs="+", default=list(STUDY_ARMS), choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    cli.add_argument("--loaders", type=_names, default=list(ENTRIES), metavar="A,B", help=f"of {', '.join(ENTRIES)}")
    cli.add_argument("--repeats", type=int, default=5, metavar="N")
    cli.add_argument("--images", type=int, metavar="N", help="of an epoch: the first so many (default: all)")
    cli.add_argument("--cores", type=int, default=2, metavar="N", help="that every loader may use (default: 2)")
    cli.add_argument("--trials", type=int, default=0, metavar="N", help="measure the memory of N loaders at once, too")
    cli.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    for inside in ("--inside", "--dataset", "--arm"):
        cli.add_argument(inside, help=argparse.SUPPRESS)
    options = cli.parse_args(argv)
    if options.inside:
        _bandwidth_here() if options.inside == "bandwidth" else _measure_here(options)
        return
    try:
        for dataset in options.datasets:
            open_dataset(options.data, dataset)  # verified, and read into the page cache
    except DataError as error:
        sys.exit(f"benchmarks.{NAME}: {error}")
    cores = keep_to_cores(options.cores)
    result = head(NAME, threads=1, libraries=LIBRARIES)
    result |= {"batch_size": BATCH_SIZE, "repeats": options.repeats, "arms": options.arms}
    if options.loaders:
        result |= measure(options, cores)
        print_results(result, options.repeats)
    if options.trials:
        result["trials"] = measure_trials(options.data, options.datasets[0], options.trials)
        print_trials(result["trials"])
    print(f"written: {write(result, options.out)}")


if __name__ == "__main__":
    main()
