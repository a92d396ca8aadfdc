"""An out-of-memory in a trial, and the preflight, with real Ray processes. Cards are logical: there is none here."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import ROOT, run

from trainable import records
from trainable.costs import read_costs
from trainable.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = ("--grid", "demo", "--only", "pretrained=false,mix=none", "--epochs", "2")

FAULT = '''
"""Found by every Python that starts: `small_resnet` runs out of memory below half a card, as torch would say it."""
import importlib.abc
import importlib.machinery
import sys


class Fault(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "trainable.training":
            return None
        sys.meta_path.remove(self)
        found = importlib.machinery.PathFinder.find_spec(name, path)
        load = found.loader.exec_module

        def exec_module(module):
            load(module)
            advance = module.TrainingRun.advance

            def short_of_memory(run, seconds=float("inf")):
                if run.spec.model.name == "small_resnet" and run.exec_spec.gpu_fraction < 0.5:
                    import torch
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
                return advance(run, seconds)

            module.TrainingRun.advance = short_of_memory

        found.loader.exec_module = exec_module
        return found


sys.meta_path.insert(0, Fault())
'''


def test_an_out_of_memory_is_tried_again_with_a_larger_share_and_harms_no_neighbour(
    data_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "fault").mkdir()
    (tmp_path / "fault/sitecustomize.py").write_text(FAULT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "fault"), str(ROOT)]),
        "RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": 1}),
    }
    where = ("--data", data_path, "--results", tmp_path / "results")
    done = run("tuner.run", *SHORT, "--gpu-share", "0.25", "--device", "cpu", *where, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resnet-default: out of memory; it is tried again with 0.5 of a GPU" in done.stdout
    assert "grid demo: 2 DONE" in done.stdout
    storage = Storage(str(tmp_path / "results"))
    outcomes: dict[str, list[str | None]] = {}
    errors = []
    for record in records.read_attempts(storage):
        outcomes.setdefault(record.run_id, []).append(record.outcome)
        errors.append(record.error)
    assert sorted(outcomes.values()) == [["done"], ["failed", "done"]], done.stdout
    assert [error for error in errors if error] == [
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB."
    ]


def preflight(data_path: Path, results: Path, *arguments: object) -> Any:
    where = ("--data", data_path, "--results", results)
    return run("tuner.run", *arguments, "--preflight", *where)


def test_a_preflight_measures_every_row_and_then_trains(data_path: Path, tmp_path: Path) -> None:
    done = preflight(data_path, tmp_path, *SHORT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preflight: two steps of every row" in done.stdout and "grid demo: 2 DONE" in done.stdout
    assert done.stdout.count("labels 0-4") == 4, "train and test batch of both rows"
    assert "measured over predicted (measured, 2 runs)" in done.stdout
    storage = Storage(str(tmp_path))
    shapes = {name.split("--")[0] for name in storage.names("costs")}
    found = read_costs(storage, shapes)
    assert sorted(tuple(one.source for one in costs) for costs in found.values()) == [("probe", "run")] * 2


def test_a_preflight_stops_the_studys_fault_before_anything_is_trained(
    root: Path, data_path: Path, tmp_path: Path
) -> None:
    """Batches of half the size in training, as the study's CutMix rows on Tiny-ImageNet very probably had them."""
    experiments = yaml.safe_load((root / "experiments.yaml").read_text())
    experiments["grids"] = {"demo": experiments["grids"]["demo"]}
    experiments["grids"]["demo"]["overrides"].append(
        {"when": {"model": "small_resnet", "mix": "none"}, "set": {"augment.train_crop": 4}}
    )
    (tmp_path / "faulty.yaml").write_text(yaml.safe_dump(experiments))
    done = preflight(data_path, tmp_path / "results", *SHORT, "--experiments", tmp_path / "faulty.yaml")
    assert done.returncode == 1
    fault = "resnet-default: train batches are 4x4, test batches 8x8 pixels (data.image_size 8, augment.train_crop 4)"
    assert fault in done.stdout and "vit-default: train batches" not in done.stdout
    assert "preflight: nothing was started. If a row is meant so, run without --preflight" in done.stderr
    storage = Storage(str(tmp_path / "results"))
    assert records.read_attempts(storage) == [] and storage.names("grids/demo") == []
