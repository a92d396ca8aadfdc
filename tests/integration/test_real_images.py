"""The paper's rows on real images, a few steps long; and pretrained rows with local weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from processes import run
from rich.console import Console
from safetensors.torch import save_file

from datasets.prepare import prepare
from trainable import records
from trainable.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SHORT = ("--epochs", "1", "--limit-train", "128", "--limit-eval", "200")
TAG = "vit_small_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture(scope="module")
def data(shared: Path, cifar100_path: Path) -> Path:
    """CIFAR-100 and the subset of Tiny-ImageNet."""
    prepare("tiny-imagenet-200", shared / "tiny-imagenet-200-mini.zip", cifar100_path, console=Console(quiet=True))
    return cifar100_path


def test_paper_rows_with_gaps_where_weights_are_missing(data: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    given = ("--grid", "paper", "--only", "model=vit_small_patch16_224,mix=cutmix", *SHORT)
    done = run("tuner.run", *given, "--data", data, "--results", results, timeout=500)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "grid paper: 2 DONE, 2 BLOCKED" in done.stdout
    assert f"BLOCKED Exp-12, Exp-16: weights {TAG}" in done.stdout
    assert "tiny-imagenet-200: not the published data" in done.stdout
    table = run("analysis.tables", "--results", results, "--out", tmp_path / "out")
    assert table.returncode == 0, table.stderr
    rows = {line.split()[0]: line for line in table.stdout.splitlines() if line.startswith(("Exp-", "Control-"))}
    assert len(rows) == 24 and "18.63" in rows["Exp-4"] and "—" in rows["Exp-12"]
    assert "tiny-imagenet-200*" in rows["Exp-8"] and "* tiny-imagenet-200: not the published data" in table.stdout
    assert "SHORT OR CHANGED RUN" in table.stdout


def test_a_pretrained_row_runs_from_local_weights(data: Path, tmp_path: Path) -> None:
    """Random weights in timm's own format and of timm's own shape stand in for the hub's file."""
    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    state = timm.create_model("vit_small_patch16_224", pretrained=False).state_dict()
    save_file(state, tmp_path / "weights" / f"{TAG}.safetensors")
    results = tmp_path / "results"
    given = ("--grid", "paper", "--label", "Exp-12", *SHORT, "--data", data, "--results", results)
    blocked = run("trainable.run", *given)
    assert blocked.returncode == 1 and f"Exp-12 is blocked: weights {TAG}" in blocked.stderr
    done = run("trainable.run", *given, "--weights", tmp_path / "weights", timeout=300)
    assert done.returncode == 0, done.stderr
    storage = Storage(str(results))
    (commit,) = records.read_commits(storage).values()
    (provenance,) = records.read_table(storage, "provenance", [commit]).to_pylist()
    assert '"pos_embed": "resampled from 197 to 5 tokens"' in provenance["weights_report_json"]
    (trial,) = records.read_table(storage, "trials", [commit]).to_pylist()
    assert trial["num_parameters"] == 21_630_436 and trial["init_kind"] == "hub"
