"""Fits the cost model of `tuner/cost.py` to real steps on this machine's processor, one thread.

    OMP_NUM_THREADS=1 python -m benchmarks.calibrate [--out FILE]

Every model runs at several sizes and batches on random images; the fit is non-negative least squares on relative
errors. The constants go into `tuner/cost.py` by hand, the measurements into `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks.made_images import random_images
from trainable.checkpoint import RunFolder
from trainable.costs import cpu_name
from trainable.opening import open_run
from trainable.spec import ExecSpec, ModelSpec, RunSpec
from trainable.storage import Storage
from tuner.cost import step_terms
from tuner.grid import load_grid

CASES = (
    ("resnet50", 32, 64),
    ("resnet50", 32, 256),
    ("resnet50", 64, 64),
    ("vit_small_patch16_224", 32, 64),
    ("vit_small_patch16_224", 32, 256),
    ("vit_small_patch16_224", 64, 64),
    ("resnet18", 32, 128),
    ("resnet18", 64, 64),
    ("small_resnet", 8, 20),
    ("small_resnet", 8, 256),
    ("small_vit", 8, 20),
    ("small_vit", 8, 256),
)
"""Model, image size in pixels, batch."""


def measure(name: str, size: int, batch: int, steps: int, count: int | None = None) -> float:
    """Median seconds of a training step, loader included.

    Args:
        name: the model's.
        size: side of the images in pixels.
        batch: images a step.
        steps: to measure, after one to warm up.
        count: images of the data set; None has four batches of them.
    """
    spec, stores = spec_of(name, size, batch), random_images(size, count or 4 * batch)
    settings = ExecSpec(
        device="cpu", data_path="", weights_path=None, cpu_threads=1, gpu_fraction=0.0, save_every_s=1e9
    )
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(spec, settings, RunFolder(Storage(folder), spec.run_id), stores)
        run.loop.model.train()
        times: list[float] = []
        while len(times) <= steps:
            began = time.perf_counter()
            for one in run.loop.train:
                run.loop.train_step(one)
                times.append(time.perf_counter() - began)
                if len(times) > steps:
                    break
                began = time.perf_counter()
        run.close()
    return statistics.median(times[1:])


def spec_of(name: str, size: int, batch: int) -> RunSpec:
    """A run of random images: the paper's first row with another model, size and batch."""
    row = load_grid(Path(__file__).parent.parent / "experiments.yaml", "paper").runs[0].spec.model_dump(mode="json")
    row["model"]["name"] = name
    row["data"] |= {"dataset": "random", "image_size": size, "content_sha256": "0" * 64}
    row["budget"]["batch_size"] = batch
    return RunSpec.model_validate_json(json.dumps(row))


def main() -> None:
    """Measures, fits, prints, writes."""
    cli = argparse.ArgumentParser(prog="python -m benchmarks.calibrate", description=__doc__.splitlines()[0])
    cli.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="DIR")
    cli.add_argument("--steps", type=int, default=5, metavar="N")
    options = cli.parse_args()
    measured: list[dict[str, Any]] = []
    for name, size, batch in CASES:
        seconds = measure(name, size, batch, options.steps)
        terms = step_terms(ModelSpec(name=name), 100, size, size, batch)
        measured.append({"model": name, "image_size": size, "batch": batch, "seconds_per_step": seconds, **terms})
        print(f"{name:24} {size:4} px  batch {batch:4}  {seconds:8.4f} s", flush=True)
    names = list(step_terms(ModelSpec(name="small_vit"), 100, 8, 8, 1))
    matrix = np.array([[row[term] / row["seconds_per_step"] for term in names] for row in measured])
    scale = matrix.max(axis=0)
    solution, _ = nnls(matrix / scale, np.ones(len(measured)))
    constants = dict(zip(names, (solution / scale).tolist(), strict=True))
    ratios = matrix @ np.array(list(constants.values()))
    for row, ratio in zip(measured, ratios.tolist(), strict=True):
        row["predicted_over_measured"] = ratio
    print("seconds per unit:", {name: f"{value:.3g}" for name, value in constants.items()})
    print("predicted / measured:", " ".join(f"{ratio:.2f}" for ratio in ratios))
    result = {
        "benchmark": "calibrate",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": cpu_name(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "steps": options.steps,
        "seconds_per_unit": constants,
        "rows": measured,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"calibrate-{datetime.now(UTC):%Y-%m-%d}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path}")


if __name__ == "__main__":
    main()
