"""What a model's forward pass consists of, against numbers known from elsewhere and against a real pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainable.models import build_model
from trainable.spec import ModelSpec
from tuner import profile as counting
from tuner.profile import Profile, profile


def test_resnet50_at_224_pixels_has_its_known_cost() -> None:
    """4.09 G multiply-adds, 25,557,032 parameters: timm's own table."""
    one = profile(ModelSpec(name="resnet50"), 1000, 224, 224)
    assert one.num_parameters == 25_557_032 and one.flops == pytest.approx(2 * 4.09e9, rel=0.02)
    assert one.convolution_flops > 0.99 * one.flops


def test_vit_small_at_224_pixels_has_its_known_cost() -> None:
    one = profile(ModelSpec(name="vit_small_patch16_224"), 1000, 224, 224)
    assert one.num_parameters == 22_050_664 and one.flops == pytest.approx(2 * 4.6e9, rel=0.05)
    assert one.other_flops > 0.98 * one.flops


def test_saved_bytes_are_those_of_a_real_forward_pass() -> None:
    """The same count with real tensors: what autograd keeps beyond the parameters and buffers."""
    model = build_model(ModelSpec(name="small_resnet"), 5, 8).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = model(torch.zeros(16, 3, 8, 8))
    assert profile(ModelSpec(name="small_resnet"), 5, 8, 8).saved_bytes == pytest.approx(
        sum(kept.values()) / 16, rel=0.05
    )
    del graph


def test_a_model_that_refuses_the_training_size_is_counted_at_its_own() -> None:
    assert profile(ModelSpec(name="small_vit"), 3, 8, 4) == profile(ModelSpec(name="small_vit"), 3, 8, 8)


def test_counts_are_kept_and_a_damaged_copy_is_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts: list[str] = []
    real = counting._count
    monkeypatch.setattr(counting, "_count", lambda *given: counts.append(given[0].name) or real(*given))

    def fresh() -> Profile:
        profile.cache_clear()
        return profile(ModelSpec(name="small_vit"), 3, 8, 8)

    first = fresh()
    assert fresh() == first and counts == ["small_vit"]
    (kept,) = (tmp_path / "grid-tuner/profiles").iterdir()
    for damage in ("", "{}", "[1]"):
        kept.write_text(damage)
        assert fresh() == first
    assert counts == ["small_vit"] * 4
    counting._code.cache_clear()
    monkeypatch.setattr(counting, "version", lambda library: "9.9")
    assert fresh() == first and len(counts) == 5, "other libraries may count otherwise"
    counting._code.cache_clear()
