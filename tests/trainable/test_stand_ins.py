"""Random weights in place of published ones: the real names and shapes, the same bytes again, and never unmarked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from processes import run
from safetensors.torch import load_file, save_file
from toy import exec_spec, run_spec

from datasets.store import Dataset
from trainable import evaluate, records, stand_ins
from trainable.attempt import Attempt
from trainable.models import build_model
from trainable.spec import InitSpec, ModelSpec
from trainable.stand_ins import StandInError, main, stand_in, write_stand_in
from trainable.storage import Storage
from trainable.weights import MissingWeights, find_weights, stand_in_of, tensors_sha256

RESNET18 = "torchvision/ResNet18_Weights.IMAGENET1K_V1"
DEIT = "deit_tiny_patch16_224.fb_in1k"
SHIPPED = (
    "resnet50.a1_in1k",
    "vit_small_patch16_224.augreg_in21k_ft_in1k",
    DEIT,
    RESNET18,
    "torchvision/ViT_B_16_Weights.IMAGENET1K_V1",
)


def hub(source: str, kind: str = "hub") -> InitSpec:
    return InitSpec(kind=kind, source=source, sha256=None, checkpoint=None, surgery=())  # type: ignore[arg-type]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear layer in place of every model."""
    monkeypatch.setattr(stand_ins, "_builder", lambda source: lambda: torch.nn.Linear(3, 2))


def test_names_and_shapes_are_those_of_the_library() -> None:
    theirs = timm.create_model(DEIT, pretrained=False).state_dict()
    ours = stand_in(DEIT, 0)
    assert {name: value.shape for name, value in ours.items()} == {name: v.shape for name, v in theirs.items()}
    assert ours["head.weight"].shape == (1000, 192) and ours["pos_embed"].shape == (1, 197, 192)
    ours = stand_in(RESNET18, 0)
    model = torchvision.models.resnet18()
    model.load_state_dict(ours, strict=True)
    told = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["num_params"]
    assert sum(parameter.numel() for parameter in model.parameters()) == told


def test_a_model_of_a_larger_image_has_its_own_positions() -> None:
    with torch.device("meta"):
        build = stand_ins._builder("torchvision/ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1")
        state = build().state_dict()
    assert state["encoder.pos_embedding"].shape == (1, 1 + (384 // 16) ** 2, 768)


@pytest.mark.parametrize("source", SHIPPED)
def test_the_sources_of_the_shipped_grids_are_known(source: str, tmp_path: Path) -> None:
    stand_ins._check(tmp_path, source)


@pytest.mark.parametrize("source", SHIPPED)
def test_a_stand_in_is_found_and_says_what_it_is(source: str, tmp_path: Path, tiny: None) -> None:
    path, digest = write_stand_in(tmp_path, source, 7)
    found = find_weights(hub(source), tmp_path, download=False)
    assert (found.path, found.sha256, found.stand_in) == (path, digest, "seed 7")
    assert path == tmp_path / f"{source}.safetensors" and stand_in_of(path) == "seed 7"
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == [path.name], "nothing else is left"


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    path, digest = write_stand_in(tmp_path / "one", DEIT, 1)
    again, same = write_stand_in(tmp_path / "two", DEIT, 1)
    assert path.read_bytes() == again.read_bytes() and digest == same == tensors_sha256(load_file(path))
    other, another = write_stand_in(tmp_path / "two", DEIT, 2)
    assert other == again and another != digest, "a stand-in may be written again"
    assert stand_in_of(other) == "seed 2"
    assert torch.equal(torch.get_rng_state(), before), "the generator of the run is left alone"


def test_the_command_writes_the_same_in_another_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "one"), DEIT, "--seed", "3"]) == 0
    shown = capsys.readouterr().out
    done = run("trainable.stand_ins", tmp_path / "two", DEIT, "--seed", "3")
    assert done.returncode == 0 and done.stdout.replace("/two/", "/one/") == shown
    path = tmp_path / "one" / f"{DEIT}.safetensors"
    assert shown == f"{tensors_sha256(load_file(path))}  {path}: random stand-in, seed 3\n"
    assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


@pytest.mark.parametrize(
    "place", ["{}.safetensors", "{}.pth", "{}/model.safetensors", "models--timm--{}/snapshots/a/pytorch_model.bin"]
)
def test_weights_that_are_no_stand_in_are_neither_replaced_nor_hidden(place: str, tmp_path: Path, tiny: None) -> None:
    real = tmp_path / place.format(DEIT)
    real.parent.mkdir(parents=True, exist_ok=True)
    state = {"x": torch.ones(2)}
    save_file(state, real) if real.suffix == ".safetensors" else torch.save(state, real)
    before = sorted(tmp_path.rglob("*")), real.read_bytes()
    with pytest.raises(
        StandInError, match=rf"{DEIT}: {real} is no stand-in and is neither replaced nor hidden; move it"
    ):
        write_stand_in(tmp_path, DEIT, 0)
    assert (sorted(tmp_path.rglob("*")), real.read_bytes()) == before


def test_torchvisions_own_file_is_not_hidden(tmp_path: Path, tiny: None) -> None:
    torch.save({"x": torch.ones(2)}, tmp_path / "resnet18-f37072fd.pth")
    with pytest.raises(StandInError, match="is no stand-in"):
        write_stand_in(tmp_path, RESNET18, 0)


def test_all_faults_are_told_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / f"{DEIT}.safetensors").write_bytes(b"garbage")
    wrong = ["resnet50.a1_in1", f"{RESNET18}2", "../x", DEIT, "resnet50.a1_in1k", "resnet18"]
    assert main([str(tmp_path), *wrong, "--seed", "-1"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 6
    assert "--seed: -1 is not 0 to 2^63 - 1" in told[0]
    assert "resnet50.a1_in1: timm publishes no such weights; did you mean resnet50.a1_in1k?" in told[1]
    assert f"{RESNET18}2: torchvision publishes no such weights; did you mean {RESNET18}?" in told[2]
    assert "must be a name within --weights" in told[3] and "not a readable weight file" in told[4]
    assert "resnet18: timm publishes no such weights" in told[5], "a name without a tag is no source"
    assert [path.name for path in tmp_path.iterdir()] == [f"{DEIT}.safetensors"]


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert main([str(tmp_path / "file"), DEIT]) == 2
    assert f"trainable.stand_ins: {tmp_path}/file: cannot be written (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("told", "shown"),
    [("", "unknown"), ("a\nb\x1b[2J", "a b\\x1b[2J"), ("x" * 1000, "x" * 100), ("seed 5", "seed 5")],
)
def test_what_a_file_says_of_itself_fits_a_line(told: str, shown: str, tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"stand_in": told})
    assert find_weights(hub("x", "file"), tmp_path, download=False).stand_in == shown
    assert stand_in_of(tmp_path / "x.safetensors") == shown


def test_other_files_say_nothing(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    torch.save({"x": torch.ones(2)}, tmp_path / "y.pth")
    assert stand_in_of(tmp_path / "x.safetensors") is None and stand_in_of(tmp_path / "y.pth") is None
    assert find_weights(hub("y", "file"), tmp_path, download=False).stand_in is None
    (tmp_path / "z.safetensors").write_bytes(b"garbage")
    with pytest.raises(MissingWeights, match=r"z\.safetensors: not a readable weight file"):
        stand_in_of(tmp_path / "z.safetensors")


class TestTheMarkTravels:
    """From the file into the record of the run, and of every run after it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """Local weights of `small_vit`: the same tensors, one file of which says that they are a stand-in."""
        state = build_model(ModelSpec(name="small_vit"), 3, 8).state_dict()
        save_file(state, tmp_path / "random.safetensors", metadata={"stand_in": "seed 4"})
        save_file(state, tmp_path / "real.safetensors")
        return tmp_path

    def train(self, storage: Storage, data_path: Path, toy: Dataset, folder: Path, fields: dict[str, Any]) -> str:
        """A run, stopped once on its way; its id."""
        content = {"data.content_sha256": toy.manifest.content_sha256}
        spec = run_spec({**content, "budget.epochs": 2, "evaluate.select": ["best_on_test"], **fields})
        how = exec_spec(data_path, weights_path=str(folder))
        attempt = Attempt(spec, how, storage)
        attempt.advance()
        attempt.stop()
        attempt = Attempt(spec, how, storage)
        while not attempt.done:
            attempt.advance()
        return spec.run_id

    def mark(self, storage: Storage, run_id: str) -> str | None:
        commit = records.read_commits(storage)[run_id]
        (trial,) = records.read_table(storage, "trials", [commit]).to_pylist()
        (provenance,) = records.read_table(storage, "provenance", [commit]).to_pylist()
        told = f'"stand_in": "{trial["init_stand_in"]}"' if trial["init_stand_in"] else '"stand_in": null'
        assert told in provenance["weights_report_json"]
        found: str | None = trial["init_stand_in"]
        return found

    def test_to_children_and_grandchildren(
        self,
        storage: Storage,
        data_path: Path,
        toy: Dataset,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        digest = tensors_sha256(load_file(folder / "real.safetensors"))

        def of_file(name: str, seed: int) -> str:
            fields = {"init.kind": "file", "init.source": f"{name}.safetensors", "init.sha256": digest, "seed": seed}
            return self.train(storage, data_path, toy, folder, fields)

        def of_parent(parent: str, checkpoint: str) -> str:
            fields = {"init.kind": "parent", "init.source": parent, "init.checkpoint": checkpoint}
            return self.train(storage, data_path, toy, folder, fields)

        random, real, scratch = (
            of_file("random", 1),
            of_file("real", 1),
            self.train(storage, data_path, toy, folder, {}),
        )
        assert [self.mark(storage, run_id) for run_id in (random, real, scratch)] == ["seed 4", None, None]
        child, other = of_parent(random, "last"), of_parent(real, "last")
        best = of_parent(random, "best_on_test")
        grandchild = of_parent(best, "best_on_test")
        assert [self.mark(storage, one) for one in (child, best, grandchild, other)] == ["seed 4"] * 3 + [None]
        for run_id, told in ((grandchild, True), (other, False)):
            for checkpoint in ("last", "best_on_test"):
                given = [run_id, "--checkpoint", checkpoint, "--data", str(data_path), "--results", storage.uri]
                assert evaluate.main(given) == 0
                shown = capsys.readouterr().out
                assert ("initial weights: random stand-ins, not the published ones (seed 4)" in shown) == told
