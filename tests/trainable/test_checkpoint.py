"""Checkpoints: exact, whole or refused, never pickled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import run_spec

from trainable.checkpoint import (
    CheckpointError,
    RunFolder,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from trainable.models import build_model
from trainable.optim import build_optimizer
from trainable.spec import ModelSpec
from trainable.storage import Storage

META: dict[str, Any] = {"position": {"best": {}}, "num_classes": 3, "x": 0.1 + 0.2}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "model.a": torch.randn(3, 4, generator=generator),
        "model.channels_last": torch.randn(2, 3, 4, 4, generator=generator).to(memory_format=torch.channels_last),
        "rng.cpu": torch.get_rng_state(),
        "model.count": torch.tensor(5),
    }


def test_every_bit_comes_back(storage: Storage) -> None:
    save_checkpoint(storage, "c", tensors(), META)
    found = load_checkpoint(storage, "c")
    assert found.meta == {"format": 1, **META}
    expected = tensors()
    assert found.tensors.keys() == expected.keys()
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.items())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_checkpoints_are_refused(storage: Storage, share: float) -> None:
    save_checkpoint(storage, "c", tensors(), META)
    content = storage.read("c")
    storage.put("c", content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"/c: not a whole checkpoint"):
        load_checkpoint(storage, "c")


def test_any_flipped_bit_is_noticed(storage: Storage) -> None:
    save_checkpoint(storage, "c", tensors(), META)
    content = storage.read("c")
    header = int.from_bytes(content[:8], "little")
    for at in (20, header // 2, header + 8, header + 40, len(content) - 1):
        harmed = bytearray(content)
        harmed[at] ^= 1
        storage.put("c", bytes(harmed))
        with pytest.raises(CheckpointError, match=r"/c: "):
            load_checkpoint(storage, "c")


def test_other_formats_are_refused(storage: Storage) -> None:
    save_checkpoint(storage, "c", tensors(), {**META, "format": 7})
    with pytest.raises(CheckpointError, match="format 7, this version reads format 1"):
        load_checkpoint(storage, "c")


def test_absent_is_not_damaged(storage: Storage) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(storage, "c")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"optim.name": "adamw"},
        {"optim.name": "sgd", "optim.betas": None, "optim.eps": None, "optim.momentum": 0.9},
    ],
)
def test_optimiser_state_continues_exactly(storage: Storage, fields: dict[str, Any]) -> None:
    spec = run_spec(fields)

    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            generator = torch.Generator().manual_seed(number + int(optimizer.param_groups[0]["lr"] * 1e6))
            optimizer.zero_grad()
            model(torch.randn(4, 3, 8, 8, generator=generator)).square().mean().backward()
            optimizer.step()

    torch.manual_seed(0)
    model = build_model(ModelSpec(name="small_vit"), 3, 8)
    optimizer = build_optimizer(spec.optim, model)
    steps(model, optimizer, 3)
    packed, meta = pack_optimizer(optimizer)
    save_checkpoint(storage, "c", {**packed, **{f"model.{k}": v for k, v in model.state_dict().items()}}, meta)
    found = load_checkpoint(storage, "c")
    other = build_model(ModelSpec(name="small_vit"), 3, 8)
    other.load_state_dict({k.removeprefix("model."): v for k, v in found.tensors.items() if k.startswith("model.")})
    continued = build_optimizer(spec.optim, other)
    unpack_optimizer(continued, found.tensors, found.meta)
    steps(model, optimizer, 3)
    steps(other, continued, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def best_at(step: int) -> dict[str, Any]:
    return {**META, "position": {"best": {"best_on_test": {"step": step}}}}


def test_last_always_finds_its_best_weights(storage: Storage) -> None:
    folder = RunFolder(storage, "r" * 16)
    folder.save(tensors(), best_at(5), {"best_on_test": {"w": torch.ones(2)}})
    folder.save(tensors(), best_at(5), {})
    assert torch.equal(folder.load("best_on_test").tensors["model.w"], torch.ones(2))
    folder.save(tensors(), best_at(9), {"best_on_test": {"w": torch.zeros(2)}})
    assert torch.equal(folder.load("best_on_test").tensors["model.w"], torch.zeros(2))
    assert storage.names(folder.path("checkpoint/best_on_test")) == ["9.safetensors"]


def test_killed_between_best_and_last_the_old_pair_is_whole(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(storage, "r" * 16)
    folder.save(tensors(), best_at(5), {"best_on_test": {"w": torch.ones(2)}})

    def killed(path: str, content: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        put = storage.put
        patch.setattr(
            storage, "put", lambda path, content: killed(path, content) if "last" in path else put(path, content)
        )
        with pytest.raises(KeyboardInterrupt):
            folder.save(tensors(), best_at(9), {"best_on_test": {"w": torch.zeros(2)}})
    assert torch.equal(folder.load("best_on_test").tensors["model.w"], torch.ones(2))


def test_checkpoint_of_another_run_is_refused(storage: Storage) -> None:
    RunFolder(storage, "a" * 16).save(tensors(), META, {})
    path = "checkpoint/last/state.safetensors"
    storage.put(f"runs/{'b' * 16}/{path}", storage.read(f"runs/{'a' * 16}/{path}"))
    with pytest.raises(CheckpointError, match=r"belongs to run a{16}, not to b{16}"):
        RunFolder(storage, "b" * 16).load("last")


def test_a_name_that_was_never_best_is_absent(storage: Storage) -> None:
    RunFolder(storage, "a" * 16).save(tensors(), META, {})
    with pytest.raises(FileNotFoundError):
        RunFolder(storage, "a" * 16).load("best_on_val")
