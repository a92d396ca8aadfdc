"""The paper grid's cells on one card: the loader, a step made three ways, several trials at once, the whole grid.

    python -m benchmarks.card [--parts loader,cells,packing] [--seconds 5] [--together 1,2,4,8]

`loader`: images a second of the batches that are made on the card, and of those that the CPU makes and sends.
`cells`: for every model and image size the study's loop; ours one kernel after another; ours replayed as a CUDA graph
(which a run does by itself); that in float32, and without deterministic kernels. Each in a process of its own, from
whose start the first step is timed. `packing`: as many such processes at once, each with its share of the card's
memory. From the best of these the time of all 24 rows is predicted.

With `--device cpu` everything but the graphs runs on a CPU, which shows that the benchmark works and nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks.arms import augmentation
from benchmarks.made_images import random_images
from benchmarks.measuring import RESULTS, Failed, barrier, head, report, run_together, show, spread, write
from benchmarks.step import naive_step, our_step
from datasets.device_loader import DeviceLoader, resident
from datasets.epochs import Epochs
from datasets.loader import Loader
from datasets.subset import Rows
from trainable import provenance
from trainable.spec import ExecSpec, ModelSpec
from tuner.profile import profile

MODELS = ("resnet50", "vit_small_patch16_224")
EPOCH_IMAGES = {32: 50_000, 64: 100_000}
"""Training images of the paper's data sets, by their size in pixels."""
TEST_IMAGES = 10_000
EPOCHS, ROWS_A_CELL = 50, 6
ARMS = {
    "naive": "the study's loop, float32",
    "plain": "ours, bfloat16, a kernel at a time",
    "recorded": "ours, bfloat16, replayed",
    "float32": "ours, float32, replayed",
    "free": "ours, bfloat16, replayed, not deterministic",
}
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "RTX 3090": 71.0}
"""Of dense bfloat16 matrix products with float32 sums, by part of the card's name."""
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "numba", "triton")


def main(argv: list[str] | None = None) -> None:
    """Runs the parts, prints and writes them."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.card", description=str(__doc__).splitlines()[0])
    cli.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    cli.add_argument("--parts", type=_words, default=["loader", "cells", "packing"], metavar="A,B")
    cli.add_argument("--models", type=_words, default=list(MODELS), metavar="A,B")
    cli.add_argument("--sizes", type=_numbers, default=list(EPOCH_IMAGES), metavar="N,N", help="pixels (32,64)")
    cli.add_argument("--arms", type=_words, default=list(ARMS), metavar="A,B", help=f"of {', '.join(ARMS)}")
    cli.add_argument("--together", type=_numbers, default=[1, 2, 4, 8], metavar="N,N", help="trials at once (1,2,4,8)")
    cli.add_argument("--batch", type=int, default=256, metavar="N")
    cli.add_argument("--images", type=int, default=16_384, metavar="N", help="of the made-up data set")
    cli.add_argument("--seconds", type=float, default=5.0, metavar="S", help="under the clock (default: 5)")
    cli.add_argument("--warm-up", type=int, default=20, metavar="N", help="steps before them (default: 20)")
    cli.add_argument("--repeats", type=int, default=3, metavar="N")
    cli.add_argument("--peak-tflops", type=float, metavar="X", help="of the card's matrix units in bfloat16")
    cli.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    cli.add_argument("--inside", help=argparse.SUPPRESS)
    cli.add_argument("--share", type=float, default=0.0, help=argparse.SUPPRESS)
    options = cli.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        cli.error("torch sees no CUDA card here; --device cpu shows that the benchmark works")
    if options.inside:
        _loader_here(options) if options.inside.startswith("loader:") else _cell_here(options)
        return
    result = head("card", threads=1, libraries=LIBRARIES)
    result |= {"card": _card_name(options.device), "batch_size": options.batch, "repeats": options.repeats}
    result["peak_tflops"] = options.peak_tflops or next(
        (peak for name, peak in PEAK_TFLOPS.items() if name in result["card"]), None
    )
    measured: dict[str, Callable[[argparse.Namespace, dict[str, Any]], Any]] = {
        "loader": _loaders,
        "cells": _cells,
        "packing": _packings,
    }
    for name in options.parts:
        result[name] = measured[name](options, result)
    result["grid"] = _grid(result)
    _print(result)
    print(f"written: {write(result, options.out)}")


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _card_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def _inside(options: argparse.Namespace, what: str, model: str, size: int, count: int = 1) -> list[dict[str, Any]]:
    """So many processes that measure the same at once."""
    command = ["benchmarks.card", "--inside", what, "--device", options.device, "--models", model]
    command += ["--sizes", str(size), "--batch", str(options.batch), "--images", str(options.images)]
    command += ["--seconds", str(options.seconds), "--warm-up", str(options.warm_up), "--share", str(1 / count)]
    found, _ = run_together([command] * count, threads=1)
    return found


def _repeated(options: argparse.Namespace, what: str, model: str, size: int, count: int = 1) -> dict[str, Any]:
    """Repeats of one measurement, or why there are none."""
    try:
        repeats = [_inside(options, what, model, size, count) for _ in range(options.repeats)]
    except Failed as error:
        return {"failed": str(error)}
    first = repeats[0][0]
    return {
        **{key: value for key, value in first.items() if key not in ("images_per_s", "first_step_s")},
        "images_per_s": spread(sum(one["images_per_s"] for one in ones) for ones in repeats),
        "first_step_s": spread(max(one["first_step_s"] for one in ones) for ones in repeats),
    }


def _loaders(options: argparse.Namespace, _: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for size, arm, where in itertools.product(
        options.sizes, ("default", "crop_flip", "mixup", "cutmix"), ("device", "host")
    ):
        found = _repeated(options, f"loader:{where}:{arm}", "-", size)
        rows.append({"image_size": size, "arm": arm, "made": where, **found})
    return rows


def _cells(options: argparse.Namespace, result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for model, size, arm in itertools.product(options.models, options.sizes, options.arms):
        found = _repeated(options, arm, model, size)
        if "images_per_s" in found and result["peak_tflops"]:
            flops = 3 * profile(ModelSpec(name=model), 100, size, size).flops
            share = found["images_per_s"]["median"] * flops / (result["peak_tflops"] * 1e12)
            found["share_of_peak"] = float(f"{share:.4g}")
        rows.append({"model": model, "image_size": size, "arm": arm, **found})
    return rows


def _packings(options: argparse.Namespace, _: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"model": model, "image_size": size, "together": count, **_repeated(options, "recorded", model, size, count)}
        for model, size, count in itertools.product(options.models, options.sizes, options.together)
    ]


def _grid(result: dict[str, Any]) -> dict[str, Any] | None:
    """Hours of all rows of the paper's length, each cell at its best packing; None where a cell was not measured."""
    best: dict[tuple[str, int], dict[str, Any]] = {}
    for row in result.get("packing", []):
        key = (row["model"], row["image_size"])
        if "images_per_s" in row and (
            key not in best or row["images_per_s"]["median"] > best[key]["images_per_s"]["median"]
        ):
            best[key] = row
    if set(best) != set(itertools.product(MODELS, EPOCH_IMAGES)):
        return None
    cells = []
    for (model, size), row in best.items():
        # a forward pass is a third of a step
        images = ROWS_A_CELL * EPOCHS * (EPOCH_IMAGES[size] + TEST_IMAGES / 3)
        minutes = images / row["images_per_s"]["median"] / 60
        cells.append({"model": model, "image_size": size, "together": row["together"], "minutes": round(minutes, 2)})
    return {"cells": cells, "minutes": round(sum(cell["minutes"] for cell in cells), 2)}


def _since_start_s() -> float:
    return time.time() - psutil.Process().create_time()


def _cell_here(options: argparse.Namespace) -> None:
    """One process: first step, warm-up, then steps for a while."""
    arm, model, size = options.inside, options.models[0], options.sizes[0]
    with tempfile.TemporaryDirectory() as folder:
        loop = None
        if arm == "naive":
            step = naive_step(model, size, options.batch, options.device)
        else:
            settings = ExecSpec(
                device=options.device,
                data_path="",
                weights_path=None,
                cpu_threads=1,
                gpu_fraction=options.share if options.device == "cuda" else 0.0,
                save_every_s=1e9,
            )
            precision = "float32" if arm == "float32" else "bfloat16"
            step, run = our_step(model, size, options.batch, precision, settings, folder)
            loop = run.loop
            if arm == "plain":
                loop._record = None
            if arm == "free":
                torch.use_deterministic_algorithms(False)
        step()
        _wait(options.device)
        first_step_s = _since_start_s()
        for _ in range(options.warm_up):
            step()
        _wait(options.device)
        barrier()
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < options.seconds:
            images += sum(step() for _ in range(4))
            if images // options.batch % 64 == 0:
                _wait(options.device)  # or the clock would run ahead of the card
        _wait(options.device)
        report(
            {
                "images_per_s": images / (time.perf_counter() - began),
                "first_step_s": first_step_s,
                "peak_memory_bytes": provenance.peak_memory_bytes(torch.device(options.device)),
                "recorded": loop is not None and loop._recorded is not None,
                "not_recorded": loop.not_recorded if loop is not None else None,
            }
        )


def _loader_here(options: argparse.Namespace) -> None:
    """One process: batches of one arm, epoch after epoch, on the card when the clock stops."""
    _, where, arm = options.inside.split(":")
    device = torch.device(options.device)
    data = random_images(options.sizes[0], options.images).train
    rows = Rows(index=np.arange(options.images, dtype=np.int32), labels=data.labels.astype(np.int64))
    spec = augmentation(arm)
    loader: Epochs[Any]
    if where == "device":
        images = resident(data, device)
        loader = DeviceLoader(images, data.manifest, rows, spec, batch_size=options.batch, seed=0, train=True)
    else:
        pin = options.device == "cuda"
        loader = Loader(data, rows, spec, batch_size=options.batch, seed=0, train=True, pin=pin)

    def epoch() -> int:
        count = 0
        for batch in loader:
            parts = (batch.images, batch.label_a, batch.label_b, batch.lam)
            sent = [part.to(device, non_blocking=True) for part in parts]
            count += len(sent[0])
        return count

    epoch()
    _wait(options.device)
    first_step_s = _since_start_s()
    barrier()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < options.seconds:
        count += epoch()
        _wait(options.device)
    report({"images_per_s": count / (time.perf_counter() - began), "first_step_s": first_step_s})


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _print(result: dict[str, Any]) -> None:
    def rate(row: dict[str, Any]) -> tuple[str, str]:
        if "failed" in row:
            return "failed", row["failed"][:40]
        found = row["images_per_s"]
        return f"{found['median']:,.0f}", f"{found['low']:,.0f} to {found['high']:,.0f}"

    if "loader" in result:
        show(
            f"loader on {result['card']}, batch {result['batch_size']}",
            ("pixels", "arm", "made on", "images/s", "low to high"),
            [(str(row["image_size"]), row["arm"], row["made"], *rate(row)) for row in result["loader"]],
        )
    if "cells" in result:
        naive = {
            (row["model"], row["image_size"]): row["images_per_s"]["median"]
            for row in result["cells"]
            if row["arm"] == "naive" and "failed" not in row
        }
        lines = []
        for row in result["cells"]:
            base = naive.get((row["model"], row["image_size"]))
            ratio = row["images_per_s"]["median"] / base if base and "failed" not in row else 0.0
            first = f"{row['first_step_s']['median']:.1f}" if "failed" not in row else ""
            share = f"{100 * row.get('share_of_peak', 0):.1f}"
            lines.append(
                (row["model"], str(row["image_size"]), ARMS[row["arm"]], *rate(row), f"{ratio:.2f}", share, first)
            )
        show(
            "one trial",
            ("model", "pixels", "", "images/s", "low to high", "x naive", "% of peak", "first step, s"),
            lines,
        )
        for reason in sorted({row["not_recorded"] for row in result["cells"] if row.get("not_recorded")}):
            print(reason)
    if "packing" in result:
        show(
            "trials at once",
            ("model", "pixels", "trials", "images/s of all", "low to high"),
            [(row["model"], str(row["image_size"]), str(row["together"]), *rate(row)) for row in result["packing"]],
        )
    if result["grid"] is not None:
        print(f"all 24 rows, {EPOCHS} epochs: {result['grid']['minutes']:.1f} minutes predicted")


if __name__ == "__main__":
    main()
