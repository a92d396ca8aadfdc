"""Images a second of a whole machine that trains ResNet-50 and ViT-S/16 at 32 pixels: the study's loop, and ours.

    python -m benchmarks.step [--parts throughput,oversubscription,enforcement] [--batch 256] [--repeats 3]

`throughput`: the naive loop is one process as the study wrote it: DataLoader with two workers, torchvision's v2
transforms, float32, `.item()` twice a step, as many threads as torch takes. Ours is one trial a core with one thread
each, opened and stepped as a run is (`open_run`, `TrainingLoop.train_step`): our loader, the fused Adam, nothing read
from the loss. bfloat16, which brings channels_last with it, is measured where the processor multiplies it (AVX512_BF16
or AMX) and named as left out elsewhere.

`oversubscription`: the same trials with more threads than cores between them. `enforcement`: what keeps trials from
that, looked at from within one, see `benchmarks.step_threads`.

Arms take turns, a few steps each after a warm-up. The machine's rate is all images by the clock of the slowest trial.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.arms import augmentation
from benchmarks.calibrate import spec_of
from benchmarks.made_images import random_images
from benchmarks.measuring import (
    RESULTS,
    Failed,
    barrier,
    head,
    instructions,
    keep_to_cores,
    report,
    run_together,
    show,
    spread,
    write,
)
from benchmarks.peers import Work, torchvision_loader
from benchmarks.step_threads import measure_enforcement
from datasets.epochs import Batch
from trainable.checkpoint import RunFolder
from trainable.models import build_model
from trainable.opening import open_run
from trainable.spec import ExecSpec, ModelSpec, RunSpec
from trainable.storage import Storage
from trainable.training import TrainingRun

SIZE = 32
MODELS = ("resnet50", "vit_small_patch16_224")
IMAGES = 8_192
"""Of the made-up data set. Loops stop within its first epoch or go on with the next."""
BFLOAT16 = ("avx512_bf16", "amx_bf16")
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "numba", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """A way to train with the whole machine."""

    label: str
    precision: str = "float32"


ARMS = {
    "naive": Arm(label="the study's loop, 1 process"),
    "ours": Arm(label="ours, a trial a core"),
    "ours-bf16": Arm(label="ours, bfloat16", precision="bfloat16"),
}


def missing(arm: str) -> str | None:
    """Why an arm is not measured here."""
    if ARMS[arm].precision == "bfloat16" and not set(BFLOAT16) & set(instructions()):
        return "the processor has neither AVX512_BF16 nor AMX, so that bfloat16 would be emulated"
    return None


def throughput(options: argparse.Namespace, cores: int) -> dict[str, Any]:
    """Every arm and model in turn, then again."""
    skipped = {arm: reason for arm in options.arms if (reason := missing(arm)) is not None}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    failed: list[dict[str, str]] = []
    for _ in range(options.repeats):
        for model in options.models:
            for arm in (arm for arm in options.arms if arm not in skipped):
                trials, threads = (1, None) if arm == "naive" else (cores, 1)
                try:
                    one = _trained(options, arm, model, trials, threads, options.batch)
                except Failed as error:
                    failed.append({"model": model, "arm": arm, "why": str(error)})
                    continue
                found.setdefault((model, arm), []).append(one)
    rows = [
        {"model": model, "arm": arm, "label": ARMS[arm].label, **_summary(ones)} for (model, arm), ones in found.items()
    ]
    rates = {(row["model"], row["arm"]): row["images_per_s"]["median"] for row in rows}
    for row in rows:
        naive = rates.get((row["model"], "naive"))
        row["ratio_to_naive"] = None if naive is None else float(f"{row['images_per_s']['median'] / naive:.4g}")
    return {"batch_size": options.batch, "rows": rows, "skipped": skipped, "failed": failed}


def oversubscription(options: argparse.Namespace, cores: int) -> dict[str, Any]:
    """As many trials as cores, with one thread each, then with a thread a core each; and one trial with these."""
    cases = (("a thread each", cores, 1), ("a thread a core each", cores, cores), ("one trial", 1, cores))
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeats):
        for name, trials, threads in cases:
            found.setdefault(name, []).append(
                _trained(options, "ours", options.models[0], trials, threads, options.small_batch)
            )
    return {
        "model": options.models[0],
        "batch_size": options.small_batch,
        "cases": {
            name: {"trials": trials, "threads": threads, **_summary(found[name])} for name, trials, threads in cases
        },
    }


def _trained(
    options: argparse.Namespace, arm: str, model: str, trials: int, threads: int | None, batch: int
) -> dict[str, Any]:
    """So many processes at once, and what the machine made of it."""
    command = ["benchmarks.step", "--inside", arm, "--models", model, "--batch", str(batch)]
    command += ["--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    command += [] if threads is None else ["--threads", str(threads)]
    results, watched = run_together([command] * trials, threads)
    return {
        "images_per_s": sum(one["images"] for one in results) / watched.wall_s,
        "threads": results[0]["threads"],
        "trials": trials,
        "clean": watched.clean,
        "other_load": watched.other_load,
    }


def _summary(ones: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "trials": ones[0]["trials"],
        "threads": ones[0]["threads"],
        "images_per_s": spread(one["images_per_s"] for one in ones),
        "clean": sum(one["clean"] for one in ones),
        "other_load": [one["other_load"] for one in ones],
    }


def _measure_here(options: argparse.Namespace) -> None:
    """One process of an arm: warm-up, then steps under the clock."""
    with tempfile.TemporaryDirectory() as folder:
        model, batch = options.models[0], options.batch
        if options.inside == "naive":
            step = naive_step(model, SIZE, batch)
        else:
            settings = ExecSpec(
                device="cpu",
                data_path="",
                weights_path=None,
                cpu_threads=options.threads,
                gpu_fraction=0.0,
                save_every_s=1e9,
            )
            step, _ = our_step(model, SIZE, batch, ARMS[options.inside].precision, settings, folder)
        for _ in range(options.warm_up):
            step()
        barrier()
        began = time.perf_counter()
        images = sum(step() for _ in range(options.steps))
        report({"images": images, "seconds": time.perf_counter() - began, "threads": torch.get_num_threads()})


def naive_step(model_name: str, size: int, batch_size: int, device: str = "cpu") -> Callable[[], int]:
    """The study's loop: a function that makes one step and returns its images."""
    store = random_images(size, max(IMAGES, batch_size)).train
    work = Work(
        images=store.images,
        labels=store.labels.astype(np.int64),
        num_classes=len(store.manifest.classes),
        mean=store.manifest.mean,
        std=store.manifest.std,
        augment=augmentation("default"),
        batch_size=batch_size,
    )
    batches = _endless(torchvision_loader(work, workers=2))
    model = build_model(ModelSpec(name=model_name), work.num_classes, size).to(device)
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=1e-3), nn.CrossEntropyLoss()
    told = {"loss": 0.0, "correct": 0.0}

    def step() -> int:
        images, labels = (part.to(device) for part in next(batches))
        outputs = model(images)
        loss = criterion(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told["loss"] += loss.item()
        told["correct"] += outputs.argmax(dim=1).eq(labels).sum().item()
        return len(images)

    return step


def our_step(
    model_name: str, size: int, batch_size: int, precision: str, settings: ExecSpec, folder: str
) -> tuple[Callable[[], int], TrainingRun]:
    """A run as the project opens it: a function that makes one step and returns its images, and the run."""
    spec = spec_of(model_name, size, batch_size)
    spec = RunSpec.model_validate(spec.model_dump() | {"optim": spec.optim.model_dump() | {"precision": precision}})
    run = open_run(
        spec, settings, RunFolder(Storage(folder), spec.run_id), random_images(size, max(IMAGES, batch_size))
    )
    loop = run.loop
    loop.train_mode()
    batches: Iterator[Batch] = _endless(loop.train)

    def step() -> int:
        batch = next(batches)
        loop.train_step(batch)
        return len(batch.images)

    return step, run


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _print(result: dict[str, Any]) -> None:
    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        rate = row["images_per_s"]
        shape = f"{row['trials']} x {row['threads']}"
        return shape, f"{rate['median']:.0f}", f"{rate['low']:.0f} to {rate['high']:.0f}"

    if (trained := result.get("throughput")) is not None:
        show(
            f"whole machine, {SIZE} px, batch {trained['batch_size']}",
            ("", "trials x threads", "images/s", "low to high", "x naive", "clean"),
            [
                (f"{row['model']}: {row['label']}", *cells(row), f"{row['ratio_to_naive'] or 0:.2f}", str(row["clean"]))
                for row in trained["rows"]
            ],
        )
        for arm, reason in trained["skipped"].items():
            print(f"{arm} left out: {reason}")
        for one in trained["failed"]:
            print(f"{one['arm']} failed on {one['model']}: {one['why']}")
    if (over := result.get("oversubscription")) is not None:
        show(
            f"more threads than cores: {over['model']}, batch {over['batch_size']}",
            ("", "trials x threads", "images/s", "low to high"),
            [(name, *cells(row)) for name, row in over["cases"].items()],
        )
    if (enforced := result.get("enforcement")) is not None:
        show(
            f"a trial of {enforced['threads']} thread where the shell says {enforced['inherited']}",
            ("what a model of one's own may do", "threads at work", "in any other process", "kept"),
            [
                (name, *(str(one[key]) for key in ("threads_at_work", "threads_at_work_unkept")), _yes(one["kept"]))
                for name, one in enforced["work"].items()
            ],
        )
        for one in enforced["pools"]:
            print(f"{one['library']}: {one['threads']} thread(s)")


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


PARTS: dict[str, Callable[[argparse.Namespace, int], dict[str, Any]]] = {
    "throughput": throughput,
    "oversubscription": oversubscription,
    "enforcement": lambda options, cores: measure_enforcement(cores),
}


def _parts(text: str) -> list[str]:
    names = [name for name in text.split(",") if name]
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(PARTS)}")
    return names


def main(argv: list[str] | None = None) -> None:
    """Runs the parts, prints and writes them."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.step", description=str(__doc__).splitlines()[0])
    cli.add_argument("--parts", type=_parts, default=list(PARTS), metavar="A,B", help=f"of {', '.join(PARTS)}")
    cli.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME")
    cli.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    cli.add_argument("--batch", type=int, default=256, metavar="N", help="images a step, the study's 256")
    cli.add_argument("--small-batch", type=int, default=64, metavar="N", help="of the oversubscribed trials (64)")
    cli.add_argument("--repeats", type=int, default=3, metavar="N")
    cli.add_argument("--steps", type=int, default=4, metavar="N", help="under the clock (default: 4)")
    cli.add_argument("--warm-up", type=int, default=2, metavar="N", help="steps before them (default: 2)")
    cli.add_argument("--cores", type=int, metavar="N", help="of the machine to use (default: all)")
    cli.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    cli.add_argument("--inside", help=argparse.SUPPRESS)
    cli.add_argument("--threads", type=int, default=os.cpu_count(), help=argparse.SUPPRESS)
    options = cli.parse_args(argv)
    if options.inside:
        _measure_here(options)
        return
    cores = keep_to_cores(options.cores)
    result = head("step", threads=1, libraries=LIBRARIES)
    result["bfloat16"] = sorted(set(BFLOAT16) & set(instructions()))
    for name in options.parts:
        result[name] = PARTS[name](options, cores)
    _print(result)
    print(f"written: {write(result, options.out)}")


if __name__ == "__main__":
    main()
