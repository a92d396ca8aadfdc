"""A real card, shared by real trials through Ray. Skipped where torch sees none; nothing here was run without one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from processes import run

from trainable import records
from trainable.costs import CostRecord
from trainable.storage import Storage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card"),
]


def costs_of(storage: Storage) -> list[CostRecord]:
    return [CostRecord.model_validate_json(storage.read(f"costs/{name}")) for name in storage.names("costs")]


@pytest.mark.skipif((os.cpu_count() or 1) < 8, reason="eight trials want eight cores")
def test_eight_trials_share_a_card_within_their_shares_and_none_starves(data_path: Path, tmp_path: Path) -> None:
    given = ("--grid", "demo", "--only", "pretrained=false", "--seeds", "1,2", "--device", "cuda")
    done = run(
        "tuner.run", *given, "--gpu-share", "0.125", "--data", data_path, "--results", tmp_path / "results", timeout=800
    )
    assert done.returncode == 0 and "grid demo: 12 DONE" in done.stdout, done.stdout + done.stderr
    assert "measured over predicted" in done.stdout
    storage = Storage(str(tmp_path / "results"))
    attempts = records.read_attempts(storage)
    assert [attempt.outcome for attempt in attempts] == ["done"] * 12
    total = torch.cuda.get_device_properties(0).total_memory
    costs = costs_of(storage)
    assert len(costs) == 12 and {cost.device for cost in costs} == {"cuda"}
    assert all(cost.gpu_fraction == 0.125 and cost.peak_memory_bytes <= 0.125 * total for cost in costs)
    by_shape: dict[str, list[float]] = {}
    for cost in costs:
        by_shape.setdefault(cost.shape, []).append(cost.seconds_per_step)
    assert all(max(seconds) < 5 * min(seconds) for seconds in by_shape.values()), by_shape


def test_a_trial_that_overruns_its_share_is_tried_again_with_more(cifar100_path: Path, tmp_path: Path) -> None:
    """A share of about 1 GiB, whatever the card, for a ResNet-50 that takes more."""
    share = 2**30 / torch.cuda.get_device_properties(0).total_memory
    given = ("--grid", "paper", "--only", "label=Control-1", "--steps", "4", "--limit-train", "1024")
    short = ("--limit-eval", "200", "--device", "cuda", "--gpu-share", f"{share:.4f}")
    done = run("tuner.run", *given, *short, "--data", cifar100_path, "--results", tmp_path / "results", timeout=800)
    assert done.returncode == 0 and "grid paper: 1 DONE" in done.stdout, done.stdout + done.stderr
    assert "Control-1: out of memory; it is tried again with" in done.stdout
    outcomes = [attempt.outcome for attempt in records.read_attempts(Storage(str(tmp_path / "results")))]
    assert outcomes[-1] == "done" and set(outcomes[:-1]) == {"failed"}


@pytest.mark.parametrize("grid", ["paper", "paper_bf16"])
def test_a_card_and_a_cpu_differ_by_rounding_and_say_where_they_ran(
    grid: str, cifar100_path: Path, tmp_path: Path
) -> None:
    losses = {}
    for device in ("cpu", "cuda"):
        results = tmp_path / device
        given = ("--grid", grid, "--only", "label=Control-2", "--steps", "3", "--limit-train", "768")
        share = ("--gpu-share", "1") if device == "cuda" else ()
        done = run(
            "tuner.run",
            *given,
            *share,
            "--limit-eval",
            "200",
            "--device",
            device,
            "--data",
            cifar100_path,
            "--results",
            results,
            timeout=800,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        storage = Storage(str(results))
        commits = records.read_commits(storage).values()
        (row,) = records.read_table(storage, "provenance", commits).to_pylist()
        assert f'"device": "{device}"' in row["numerics_json"]
        epochs = records.read_table(storage, "epochs", commits).to_pylist()
        losses[device] = [one["loss_nats"] for one in epochs if one["split"] == "train"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=5e-2 if grid == "paper_bf16" else 1e-2)
