"""What is known of data and weights before anything runs."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from toy import run_spec

import trainable.weights
from trainable.spec import InitSpec
from trainable.storage import Storage
from tuner.facts import LocalFacts
from tuner.grid import Selection, load_grid
from tuner.ledger import survey
from tuner.summary import announce

RESNET18 = "torchvision/ResNet18_Weights.IMAGENET1K_V1"
STATE = {"x": torch.ones(2)}


def init(source: str, kind: str = "hub") -> InitSpec:
    return InitSpec(kind=kind, source=source, sha256=None, checkpoint=None, surgery=())  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Local weights, of torchvision a stand-in."""
    (tmp_path / "torchvision").mkdir()
    save_file(STATE, tmp_path / f"{RESNET18}.safetensors", metadata={"stand_in": "seed 0"})
    save_file(STATE, tmp_path / "resnet50.a1_in1k.safetensors")
    return tmp_path


def test_each_source_is_read_once(folder: Path, data_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    find = trainable.weights.find_weights

    def counted(asked: InitSpec, *others: Any, **settings: Any) -> Any:
        read[str(asked.source)] += 1
        return find(asked, *others, **settings)

    monkeypatch.setattr(trainable.weights, "find_weights", counted)
    facts = LocalFacts(data_path, folder, download=False)
    digest = trainable.weights.tensors_sha256(STATE)
    for source, mark in ((RESNET18, "seed 0"), ("resnet50.a1_in1k", None)):
        assert facts.weights_sha256(init(source)) == digest
        planned = init(source).model_copy(update={"sha256": digest})
        assert facts.stand_in(planned) == facts.stand_in(init(source)) == mark
    assert read == {RESNET18: 1, "resnet50.a1_in1k": 1}


def test_missing_weights_say_why_and_are_no_stand_in(folder: Path, data_path: Path) -> None:
    facts = LocalFacts(data_path, folder, download=False)
    wrong = f"{RESNET18[:-1]}2"
    content = facts.content_sha256("toy")
    fields = {"data.content_sha256": content, "init.kind": "hub", "init.source": wrong}
    missing = facts.missing(run_spec(fields))
    assert missing is not None and f"publishes no such weights; did you mean {RESNET18}?" in missing
    assert facts.weights_sha256(init(wrong)) is facts.stand_in(init(wrong)) is None


def test_a_file_is_not_taken_for_a_hub_source_of_the_same_name(tmp_path: Path, data_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    save_file(STATE, tmp_path / "torchvision" / "own.safetensors")
    facts = LocalFacts(data_path, tmp_path, download=False)
    assert facts.weights_sha256(init("torchvision/own")) is None
    assert facts.weights_sha256(init("torchvision/own", "file")) is not None


def test_the_command_says_which_weights_are_random(root: Path, folder: Path, tmp_path: Path, storage: Storage) -> None:
    facts = LocalFacts(tmp_path / "none", folder, download=False)
    tag = "vit_small_patch16_224.augreg_in21k_ft_in1k"
    save_file(STATE, folder / f"{tag}.safetensors", metadata={"stand_in": "seed 9"})
    grid = load_grid(root / "experiments.yaml", "paper", Selection(only=(("pretrained", "true"),)), facts)
    output = io.StringIO()
    announce(grid, survey(storage, grid), facts, storage, Console(file=output, width=400))
    lines = [line for line in output.getvalue().splitlines() if "weights " in line and "stand-ins" in line]
    assert lines == [f"  weights {tag}: random stand-ins, not the published ones (seed 9)"]
