"""One contract for everything that applies a plan, and our mixing against timm's."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toy import augment

from datasets import cpu, reference
from datasets.plan import BatchPlan, draw_plan
from datasets.store import Dataset

Applier = Callable[[NDArray[np.uint8], BatchPlan, NDArray[np.float32]], NDArray[np.float32]]


def fused(images: NDArray[np.uint8], plan: BatchPlan, table: NDArray[np.float32]) -> NDArray[np.float32]:
    out = np.full((len(plan.index), 3, plan.out_size, plan.out_size), np.nan, np.float32)
    cpu.apply_plan(images, plan, table, out)
    return out


APPLIERS = {"reference": reference.apply_plan, "cpu": fused}


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def table() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(3, 256)).astype(np.float32)


@pytest.mark.parametrize("name", APPLIERS)
class TestContract:
    def test_without_augmentation_it_is_a_table_lookup(
        self, name: str, images: NDArray[np.uint8], table: NDArray[np.float32]
    ) -> None:
        rows = np.array([3, 1, 39], np.int32)
        out = APPLIERS[name](images, draw_plan(augment(), 1, 0, 0, rows, 12), table)
        expected = np.stack([table[c][images[rows][..., c]] for c in range(3)], axis=1)
        assert (out == expected).all()

    def test_flip_mirrors_columns(self, name: str, images: NDArray[np.uint8], table: NDArray[np.float32]) -> None:
        rows = np.arange(4, dtype=np.int32)
        plain = APPLIERS[name](images, draw_plan(augment(), 1, 0, 0, rows, 12), table)
        flipped = APPLIERS[name](images, draw_plan(augment(hflip_prob=1.0), 1, 0, 0, rows, 12), table)
        assert (flipped == plain[..., ::-1]).all()

    def test_padding_is_black(self, name: str, images: NDArray[np.uint8], table: NDArray[np.float32]) -> None:
        rows = np.arange(16, dtype=np.int32)
        plan = draw_plan(augment(pad_crop=3), 1, 0, 0, rows, 12)
        out = APPLIERS[name](images, plan, table)
        padded = np.pad(images[rows], ((0, 0), (3, 3), (3, 3), (0, 0)))
        for i in range(16):
            top, left = plan.top[i] + 3, plan.left[i] + 3
            window = padded[i, top : top + 12, left : left + 12]
            assert (out[i] == np.stack([table[c][window[..., c]] for c in range(3)])).all()

    def test_mixup_is_lam_x_plus_the_rest(
        self, name: str, images: NDArray[np.uint8], table: NDArray[np.float32]
    ) -> None:
        rows = np.arange(8, dtype=np.int32)
        plan = draw_plan(augment(mix="mixup", mix_alpha=1.0), 1, 0, 0, rows, 12)
        plain = APPLIERS[name](images, draw_plan(augment(), 1, 0, 0, rows, 12), table)
        lam = plan.lam[0]
        assert (APPLIERS[name](images, plan, table) == lam * plain + (1 - lam) * plain[plan.partner]).all()

    def test_cutmix_pastes_the_partners_box(
        self, name: str, images: NDArray[np.uint8], table: NDArray[np.float32]
    ) -> None:
        rows = np.arange(8, dtype=np.int32)
        plan = draw_plan(augment(mix="cutmix", mix_alpha=1.0), 3, 0, 1, rows, 12)
        plain = APPLIERS[name](images, draw_plan(augment(), 1, 0, 0, rows, 12), table)
        top, left, bottom, right = plan.mix_box[0]
        assert bottom > top and right > left
        expected = plain.copy()
        expected[:, :, top:bottom, left:right] = plain[plan.partner][:, :, top:bottom, left:right]
        assert (APPLIERS[name](images, plan, table) == expected).all()


COMBINATIONS = list(
    itertools.product(
        ("none", "mixup", "cutmix", "switch"),
        ("batch", "sample"),
        ("permutation", "reverse"),
        ((0, None), (2, None), (0, 7), (3, 16)),
    )
)


@pytest.mark.parametrize(("mix", "scope", "partner", "crop"), COMBINATIONS)
def test_the_fast_path_equals_the_reference_to_the_bit(
    mix: str,
    scope: str,
    partner: str,
    crop: tuple[int, int | None],
    images: NDArray[np.uint8],
    table: NDArray[np.float32],
) -> None:
    spec = augment(
        mix=mix,
        mix_alpha=None if mix == "none" else 0.7,
        mix_scope=scope,
        mix_partner=partner,
        mix_prob=0.8,
        pad_crop=crop[0],
        train_crop=crop[1],
        hflip_prob=0.5,
    )
    rows = np.random.default_rng(2).integers(0, 40, 9).astype(np.int32)
    for batch in range(3):
        plan = draw_plan(spec, 7, 1, batch, rows, 12)
        assert (fused(images, plan, table) == reference.apply_plan(images, plan, table)).all()


def test_normalisation_is_by_the_datas_own_statistics(toy: Dataset) -> None:
    rows = np.arange(len(toy.train.labels), dtype=np.int32)
    out = fused(
        toy.train.images, draw_plan(augment(), 1, 0, 0, rows, 8), cpu.normalize_table("dataset", toy.train.manifest)
    )
    assert np.abs(out.mean(axis=(0, 2, 3))).max() < 1e-4
    assert np.abs(out.std(axis=(0, 2, 3)) - 1).max() < 1e-4


def test_normalisation_none_scales_to_one(toy: Dataset) -> None:
    table = cpu.normalize_table("none", toy.train.manifest)
    assert table[0, 0] == 0 and table[2, 255] == 1


def test_constant_channel_is_refused(toy: Dataset) -> None:
    flat = toy.train.manifest.model_copy(update={"std": (0.1, 0.0, 0.1)})
    with pytest.raises(ValueError, match=r"augment\.normalize: dataset divides by .* choose imagenet or none"):
        cpu.normalize_table("dataset", flat)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_agrees_with_timm_in_distribution(mix: str) -> None:
    """timm pairs with the reversed batch; the law of the mixed share of the image is the same."""
    from timm.data.mixup import Mixup

    num, size, batches = 4, 16, 600
    own = np.repeat(np.arange(num, dtype=np.uint8)[:, None, None, None], size, axis=1)
    images = np.ascontiguousarray(np.broadcast_to(own, (num, size, size, 3)))
    identity = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    ours, pasted = [], []
    for batch in range(batches):
        plan = draw_plan(
            augment(mix=mix, mix_alpha=1.0, mix_partner="reverse"), 11, 0, batch, np.arange(num, dtype=np.int32), size
        )
        out = fused(images, plan, identity)
        ours.append(float(plan.lam[0]))
        pasted.append((out[0, 0].mean() - 0) / 3)  # image 0 is black, its partner is 3: share of the partner
    assert np.allclose(1 - np.array(ours), pasted, atol=1e-5), "lam is the share of the image's own pixels"

    np.random.seed(0)  # timm draws from numpy's global generator
    theirs = []
    mixer = Mixup(
        mixup_alpha=1.0 if mix == "mixup" else 0.0,
        cutmix_alpha=1.0 if mix == "cutmix" else 0.0,
        label_smoothing=0.0,
        num_classes=num,
    )
    for _ in range(batches):
        batch_images = torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32).copy())
        mixed, _ = mixer(batch_images, torch.arange(num))
        theirs.append(1 - float(mixed[0, 0].mean()) / 3)
    from scipy.stats import ks_2samp

    assert ks_2samp(ours, theirs).pvalue > 0.001
