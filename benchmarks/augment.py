"""One batch's augmentation written three ways: numba (the project's), batched torch operations, and C.

    python -m benchmarks.augment [--sizes 32 64] [--repeats 5] [--out DIR]

All three take the same `BatchPlan` and must give the same bits before any of them is timed. Rates are images a second
of CPU time on one thread, so that what others do to the machine disturbs them less; the images are random, many enough
not to stay in any cache, and visited in a random order. The C source is compiled while the benchmark runs; where there
is no compiler, that one is left out. Which one is kept follows from the numbers and is printed last, see `verdict`.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import math
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import augment_c
from benchmarks.arms import ARMS, augmentation
from benchmarks.made_images import random_images
from benchmarks.measuring import (
    RESULTS,
    ROOT,
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
from datasets import cpu, gpu
from datasets.normalize import Normalization, normalization
from datasets.plan import BatchPlan, draw_plan, epoch_order

BATCH_SIZE = 256
IMAGES = {32: 50_000, 64: 20_000}
"""By side in pixels: 154 and 246 MB."""
KEPT = "numba"
"""The one that `datasets.loader` uses."""
FILES = {
    "numba": ("datasets/cpu.py", "datasets/colours.py"),
    "torch": ("datasets/gpu.py",),
    "C": ("benchmarks/augment.c", "benchmarks/augment_c.py"),
}
WORTH_A_COMPILER = 2.0
"""How many times as fast a kernel has to be that needs a compiler on every machine that trains."""
LIBRARIES = ("torch", "numpy", "numba")
Rates = dict[str, list[float]]
"""Images a CPU second of one kernel under every arm and size, in one order for all."""
Call = Callable[[BatchPlan], NDArray[np.float32]]


def verdict(rates: Rates, lines: dict[str, int]) -> str:
    """Which kernel the project keeps and why.

    The fastest of those that need no compiler, unless C is `WORTH_A_COMPILER` times as fast; by geometric means over
    arms and sizes.
    """
    best = max((name for name in rates if name != "C"), key=lambda name: _mean(rates[name]))
    others = [name for name in rates if name != best]
    beside = " and ".join(f"{_beside(rates[best], rates[name])} as many images as with {name}" for name in others)
    sizes = f"lines of code: {', '.join(f'{name} {lines[name]}' for name in (best, *others))}"
    why = f"a core makes {beside}; {sizes}" if others else f"nothing else was measured; {sizes}"
    found = best
    if "C" in rates:
        faster = _mean(rates["C"]) / _mean(rates[best])
        found = "C" if faster >= WORTH_A_COMPILER else best
        why += (
            f"; C is {faster:.2g} times as fast as {best}, and a compiler on every machine that trains would be worth"
        )
        why += f" {WORTH_A_COMPILER:g} times"
    kept = f"The project keeps {KEPT}"
    return f"{kept}: {why}." if found == KEPT else f"{kept}, but by these numbers {found} should be kept: {why}."


def _beside(own: Sequence[float], other: Sequence[float]) -> str:
    ratios = [one / two for one, two in zip(own, other, strict=True)]
    return f"{min(ratios):.2g} to {max(ratios):.2g} times (mean {_mean(own) / _mean(other):.2g})"


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def count_lines(name: str) -> int:
    """Lines of code of a kernel with what calls it: no comments, docstrings, blank lines or imports."""
    return sum(_code_lines(ROOT / file) for file in FILES[name])


def _code_lines(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".c":
        text = re.sub(r"/\*.*?\*/", lambda match: "\n" * match.group().count("\n"), text, flags=re.DOTALL)
        return sum(bool(line.strip()) and not line.startswith("#include") for line in text.splitlines())
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    left_out = {
        number
        for node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(text.splitlines(), 1)
    return sum(number not in left_out and bool(re.match(r"\s*[^#\s]", line)) for number, line in lines)


def kernels(images: NDArray[np.uint8], rule: Normalization, out_size: int, compiler: str | None) -> dict[str, Call]:
    """Every kernel as a function from a plan to the batch, [B, 3, S, S]. All but torch's write into one buffer."""
    buffer = np.empty((BATCH_SIZE, 3, out_size, out_size), np.float32)
    whole, table = torch.from_numpy(np.array(images)), torch.from_numpy(rule.table)

    def into(apply: augment_c.Apply) -> Call:
        def call(plan: BatchPlan) -> NDArray[np.float32]:
            apply(images, plan, rule, buffer)
            return buffer

        return call

    found: dict[str, Call] = {
        "numba": into(lambda images, plan, rule, out: cpu.apply_plan(images, plan, rule, torch.from_numpy(out))),
        "torch": lambda plan: gpu.apply_plan(whole, plan, table).numpy(),
    }
    if compiler is not None:
        with tempfile.TemporaryDirectory() as folder:
            found["C"] = into(augment_c.compiled(compiler, Path(folder)))
    return found


def _measure_here(options: argparse.Namespace) -> None:
    """Every kernel in turn on one arm and size, in this process on this thread."""
    side, spec = options.side, augmentation(options.arm)
    store = random_images(side, options.images or IMAGES.get(side, 10_000)).train
    rule = normalization(spec, store.manifest, training=True)
    order = epoch_order(0, 0, len(store.labels))
    batches = min(options.batches, len(order) // BATCH_SIZE)
    chosen = [order[number * BATCH_SIZE : (number + 1) * BATCH_SIZE] for number in range(batches)]
    plans = [draw_plan(spec, 0, 0, number, index, side) for number, index in enumerate(chosen)]
    calls = kernels(store.images, rule, side, augment_c.find_compiler())
    for plan in plans:  # also the warm-up
        expected = np.array(calls[KEPT](plan))
        for name, call in calls.items():
            if call(plan).tobytes() != expected.tobytes():
                raise ValueError(f"{name} does not give the bits of {KEPT} on {options.arm} at {side} pixels")
    barrier()
    report({name: _timed(call, plans, options.seconds) for name, call in calls.items()})


def _timed(call: Call, plans: list[BatchPlan], seconds: float) -> dict[str, float]:
    """Images a second of CPU time and of the clock."""
    began, cpu_began, batches = time.perf_counter(), time.process_time(), 0
    for plan in itertools.cycle(plans):
        call(plan)
        batches += 1
        if batches >= len(plans) and time.perf_counter() - began >= seconds:
            break
    images = batches * BATCH_SIZE
    return {
        "images_per_cpu_s": images / (time.process_time() - cpu_began),
        "images_per_s": images / (time.perf_counter() - began),
    }


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Arms and sizes in turn, then again; every one a process with one thread."""
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    loads: dict[tuple[int, str], list[float | None]] = {}
    for _ in range(options.repeats):
        for key in itertools.product(options.sizes, options.arms):
            side, arm = key
            command = ["benchmarks.augment", "--inside", "--side", str(side), "--arm", arm]
            command += ["--images", str(options.images), "--batches", str(options.batches)]
            (one,), watched = run_together([[*command, "--seconds", str(options.seconds)]], threads=1)
            found.setdefault(key, []).append(one)
            loads.setdefault(key, []).append(watched.other_load)
    return [
        {
            "image_size": side,
            "arm": arm,
            "kernels": {
                name: {key: spread(one[name][key] for one in ones) for key in ("images_per_cpu_s", "images_per_s")}
                for name in ones[0]
            },
            "other_load": loads[side, arm],
        }
        for (side, arm), ones in found.items()
    ]


def _compiler_version(compiler: str | None) -> str | None:
    if compiler is None:
        return None
    told = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return f"{told[0] if told else compiler} {' '.join(augment_c.FLAGS)}"


def main(argv: list[str] | None = None) -> None:
    """Measures, prints, writes."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.augment", description=str(__doc__).splitlines()[0])
    cli.add_argument("--sizes", type=int, nargs="+", default=list(IMAGES), metavar="PIXELS")
    cli.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    cli.add_argument("--repeats", type=int, default=5, metavar="N")
    cli.add_argument("--images", type=int, default=0, metavar="N", help="to draw from (default: 154 or 246 MB of them)")
    cli.add_argument("--batches", type=int, default=40, metavar="N", help="of 256 images, gone through again and again")
    cli.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of every measurement (default: 1)")
    cli.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    cli.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    cli.add_argument("--side", type=int, help=argparse.SUPPRESS)
    cli.add_argument("--arm", help=argparse.SUPPRESS)
    options = cli.parse_args(argv)
    if options.inside:
        _measure_here(options)
        return
    keep_to_cores(None)
    compiler = augment_c.find_compiler()
    result = head("augment", threads=1, libraries=LIBRARIES)
    result |= {"batch_size": BATCH_SIZE, "repeats": options.repeats, "compiler": _compiler_version(compiler)}
    if compiler is None:
        print("C: left out, there is no C compiler here (set CC, or install gcc or clang)")
    rows = measure(options)
    names = list(rows[0]["kernels"])
    lines = {name: count_lines(name) for name in names}
    rates = {name: [row["kernels"][name]["images_per_cpu_s"]["median"] for row in rows] for name in names}
    result |= {"lines_of_code": lines, "verdict": verdict(rates, lines), "rows": rows}
    _print(rows, names, lines)
    print(result["verdict"])
    print(f"written: {write(result, options.out)}")


def _print(rows: list[dict[str, Any]], names: list[str], lines: dict[str, int]) -> None:
    def cell(measured: dict[str, Any]) -> str:
        rate = measured["images_per_cpu_s"]
        return f"{short(rate['median'])} ({short(rate['low'])} to {short(rate['high'])})"

    table = [(f"{row['image_size']} px, {row['arm']}", *(cell(row["kernels"][name]) for name in names)) for row in rows]
    table.append(("lines of code", *(str(lines[name]) for name in names)))
    show("images a second and core, median (low to high)", ("", *names), table)


if __name__ == "__main__":
    main()
