"""The paper's rows on real images, a few steps long; and pretrained rows with local weights."""

from __future__ import annotations

import json
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
    """CIFAR-100 and the subsets of CIFAR-10 and Tiny-ImageNet."""
    prepare("cifar10", shared / "cifar10-jpeg-mini.zip", cifar100_path, console=Console(quiet=True))
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


def test_a_chain_across_data_sets_hands_its_weights_over(data: Path, tmp_path: Path) -> None:
    """The fourth study's ViT, pretrained on CIFAR-100 and fine-tuned on CIFAR-10, a few steps long."""
    results = tmp_path / "results"
    given = ("--grid", "vit_transfer", "--only", "label=vit-oc-cifar100-ft", "--steps", "3")
    short = ("--limit-train", "256", "--limit-eval", "100", "--data", data, "--results", results)
    done = run("tuner.run", *given, *short)
    assert done.returncode == 0 and "grid vit_transfer: 2 DONE" in done.stdout, done.stdout + done.stderr
    storage = Storage(str(results))
    trials = records.read_table(storage, "trials", records.read_commits(storage).values()).to_pylist()
    parent, child = sorted(trials, key=lambda row: str(row["dataset"]), reverse=True)
    assert (parent["dataset"], child["dataset"], child["init_source"]) == ("cifar100", "cifar10", parent["run_id"])
    assert (parent["num_parameters"], child["num_parameters"]) == (1_519_636, 1_506_586)
    assert (parent["steps"], child["steps"]) == (3, 3) and parent["best_on_test_step"] in (1, 2, 3)
    commit = records.read_commits(storage, [child["run_id"]])[child["run_id"]]
    (row,) = records.read_table(storage, "provenance", [commit]).to_pylist()
    report = json.loads(row["weights_report_json"])
    assert len(report["new"]) == 4 == len(report["dropped"]) and "stand_in" in report, "LayerNorm and Linear are new"
    table = run("analysis.tables", "--grid", "vit_transfer", "--results", results, "--out", tmp_path / "out")
    assert table.returncode == 0 and "65.00" in table.stdout and "87.33" in table.stdout, table.stderr


def test_ablations_keep_every_step_and_the_first_training_images(data: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    labels = ("toy-dilated", "resnet18-aug", "vitn-12x256-8x8-lt")
    given = ("--grid", "ablations", "--only", ",".join(f"label={label}" for label in labels), "--steps", "2")
    short = ("--limit-train", "256", "--limit-eval", "100", "--data", data, "--results", results)
    done = run("tuner.run", *given, *short)
    assert done.returncode == 0 and "grid ablations: 3 DONE" in done.stdout, done.stdout + done.stderr
    storage = Storage(str(results))
    commits = list(records.read_commits(storage).values())
    steps = records.read_table(storage, "steps", commits).to_pylist()
    assert len(steps) == 6 and {row["step"] for row in steps} == {1, 2}
    assert all(row["loss_nats"] > 6 and row["grad_norm"] > 0 for row in steps), "over 1,000 outputs: log 1000 is 6.9"
    epochs = records.read_table(storage, "epochs", commits).to_pylist()
    assert {row["split"] for row in epochs} == {"train", "train_200", "test"}
    trials = records.read_table(storage, "trials", commits).to_pylist()
    assert {row["num_parameters"] for row in trials} == {61_896, 11_689_512, 10_805_748}
    taus = [value for row in trials for name, value in json.loads(row["final_scalars_json"]).items() if "temp" in name]
    assert len(taus) == 12 and all(0.9 < value < 1.1 for value in taus)
    table = run("analysis.tables", "--grid", "ablations", "--results", results, "--out", tmp_path / "out")
    assert table.returncode == 0 and "40.77" in table.stdout and "train_200" in table.stdout, table.stderr
