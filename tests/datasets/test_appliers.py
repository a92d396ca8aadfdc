"""One contract for everything that applies a plan, and our mixing against timm's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from toy import augment

from datasets import cpu, gpu, reference
from datasets.normalize import Normalization
from datasets.plan import BRIGHTNESS, CONTRAST, FIXED_ONE, HUE_SECTOR, SATURATION, BatchPlan, draw_plan, turn_by

Applier = Callable[[NDArray[np.uint8], BatchPlan, Normalization], NDArray[np.float32]]


def by_loops(images: NDArray[np.uint8], plan: BatchPlan, rule: Normalization) -> NDArray[np.float32]:
    return reference.apply_plan(images, plan, rule.table)


def fused(images: NDArray[np.uint8], plan: BatchPlan, rule: Normalization) -> NDArray[np.float32]:
    return fused_tensor(images, plan, rule).numpy()


def fused_nhwc(images: NDArray[np.uint8], plan: BatchPlan, rule: Normalization) -> NDArray[np.float32]:
    return fused_tensor(images, plan, rule, channels_last=True).numpy()


def fused_tensor(
    images: NDArray[np.uint8],
    plan: BatchPlan,
    rule: Normalization,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> torch.Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    out = torch.empty((len(plan.index), 3, plan.out_size, plan.out_size), dtype=dtype, memory_format=layout)
    cpu.apply_plan(images, plan, rule, out.fill_(torch.nan))
    return out


def batched(
    images: NDArray[np.uint8], plan: BatchPlan, rule: Normalization, device: str = "cpu", **how: Any
) -> NDArray[np.float32]:
    on_device = [torch.from_numpy(array).to(device) for array in (images, rule.table)]
    return gpu.apply_plan(on_device[0], plan, on_device[1], **how).cpu().numpy()


def batched_nhwc(images: NDArray[np.uint8], plan: BatchPlan, rule: Normalization) -> NDArray[np.float32]:
    return batched(images, plan, rule, channels_last=True)


def on_card(images: NDArray[np.uint8], plan: BatchPlan, rule: Normalization) -> NDArray[np.float32]:
    return batched(images, plan, rule, device="cuda")


CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
APPLIERS = [
    pytest.param(by_loops, id="reference"),
    pytest.param(fused, id="cpu"),
    pytest.param(fused_nhwc, id="cpu-channels-last"),
    pytest.param(batched, id="gpu-code-on-cpu"),
    pytest.param(batched_nhwc, id="gpu-code-on-cpu-channels-last"),
    pytest.param(on_card, id="gpu", marks=CARD),
]
EVERYTHING = {
    "pad_crop": 2,
    "hflip_prob": 0.5,
    "jitter": (0.4, 0.4, 0.4, 0.5),
    "rotate_deg": 60.0,
    "erase_prob": 0.6,
}


def assert_same_bits(apply: Applier, found: NDArray[np.float32], expected: NDArray[np.float32], blends: bool) -> None:
    """To the bit, but for MixUp on a card: a compiler may round its products only once they are added."""
    if apply is on_card and blends:
        assert np.abs(found - expected).max() <= 2e-7 * np.abs(expected).max()
    else:
        assert found.dtype == np.float32 and (found == expected).all()


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def rule() -> Normalization:
    rng = np.random.default_rng(1)
    return Normalization(scale=rng.normal(size=3).astype(np.float32), bias=rng.normal(size=3).astype(np.float32))


def normalised(pixels: NDArray[np.uint8], rule: Normalization) -> NDArray[np.float32]:
    """[B, S, S, 3] to [B, 3, S, S]."""
    return np.stack([rule.table[c][pixels[..., c]] for c in range(3)], axis=1)


def flat(*colours: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Images of one colour each, [n, 4, 4, 3]."""
    return np.ascontiguousarray(np.broadcast_to(np.array(colours, np.uint8)[:, None, None], (len(colours), 4, 4, 3)))


LEVELS = Normalization(scale=np.ones(3, np.float32), bias=np.zeros(3, np.float32))
"""Shows pixel values as they are."""


def plan_for(num: int, size: int = 4, **arrays: Any) -> BatchPlan:
    """A plan that does nothing but what the arrays say."""
    plain = draw_plan(augment(), 1, 0, 0, np.arange(num, dtype=np.int32), size)
    return replace(plain, **{name: np.array(value, getattr(plain, name).dtype) for name, value in arrays.items()})


def jitter_plan(operation: int, amount: int, *, size: int = 4) -> BatchPlan:
    """One image, one operation."""
    jitter = [FIXED_ONE, FIXED_ONE, FIXED_ONE, 0]
    jitter[operation] = amount
    return plan_for(1, size, jitter=[jitter])


@pytest.mark.parametrize("apply", APPLIERS)
class TestContract:
    def test_without_augmentation_it_is_a_table_lookup(
        self, apply: Applier, images: NDArray[np.uint8], rule: Normalization
    ) -> None:
        rows = np.array([3, 1, 39], np.int32)
        out = apply(images, draw_plan(augment(), 1, 0, 0, rows, 12), rule)
        assert (out == normalised(images[rows], rule)).all()

    def test_flip_mirrors_columns(self, apply: Applier, images: NDArray[np.uint8], rule: Normalization) -> None:
        rows = np.arange(4, dtype=np.int32)
        flipped = apply(images, draw_plan(augment(hflip_prob=1.0), 1, 0, 0, rows, 12), rule)
        assert (flipped == normalised(images[rows], rule)[..., ::-1]).all()

    def test_padding_is_black(self, apply: Applier, images: NDArray[np.uint8], rule: Normalization) -> None:
        rows = np.arange(16, dtype=np.int32)
        plan = draw_plan(augment(pad_crop=3), 1, 0, 0, rows, 12)
        out = apply(images, plan, rule)
        padded = np.pad(images[rows], ((0, 0), (3, 3), (3, 3), (0, 0)))
        for i in range(16):
            top, left = plan.top[i] + 3, plan.left[i] + 3
            assert (out[i] == normalised(padded[i : i + 1, top : top + 12, left : left + 12], rule)[0]).all()

    def test_a_window_beyond_the_image_is_black(self, apply: Applier, rule: Normalization) -> None:
        out = apply(flat((9, 9, 9)), plan_for(1, top=[-4], left=[4], flip=[True]), rule)
        assert (out == rule.table[:, 0][None, :, None, None]).all()

    def test_brightness_by_hand(self, apply: Applier) -> None:
        """1.5 x (101, 200, 3) = (151.5, 300, 4.5): rounded down, clipped."""
        out = apply(flat((101, 200, 3)), jitter_plan(BRIGHTNESS, 3 * FIXED_ONE // 2), LEVELS)
        assert out[0, :, 2, 3].tolist() == [151, 255, 4]

    def test_saturation_by_hand(self, apply: Applier) -> None:
        """Grey of (200, 100, 0) is (19595 x 200 + 38470 x 100) / 65536 = 118.5 less a little, so 118: half way to it, and
        as far again away."""
        half = apply(flat((200, 100, 0)), jitter_plan(SATURATION, FIXED_ONE // 2), LEVELS)
        assert half[0, :, 0, 0].tolist() == [159, 109, 59]
        twice = apply(flat((200, 100, 0)), jitter_plan(SATURATION, 2 * FIXED_ONE), LEVELS)
        assert twice[0, :, 0, 0].tolist() == [255, 82, 0]

    def test_without_saturation_every_colour_is_pillows_grey(self, apply: Applier) -> None:
        """To the bit: one unit in 65,536 of a weight shows in one of some hundred colours."""
        image = np.random.default_rng(6).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
        out = apply(image, jitter_plan(SATURATION, 0, size=64), LEVELS)
        assert (out[0] == np.asarray(Image.fromarray(image[0]).convert("L"))).all()

    def test_contrast_by_hand(self, apply: Applier) -> None:
        """Twelve pixels of 10 and four of 21: mean 12.75, so 13; twice as far from 13: 7 and 29."""
        image = flat((10, 10, 10))
        image[0, 1] = 21
        out = apply(image, jitter_plan(CONTRAST, 2 * FIXED_ONE), LEVELS)
        assert (out[0, :, 1] == 29).all() and (out[0, :, [0, 2, 3]] == 7).all()

    def test_contrast_counts_the_padding_of_the_window(self, apply: Applier) -> None:
        """Half the window is padding: the mean of 100 and 0 is 50; contrast 0 makes everything that."""
        plan = replace(jitter_plan(CONTRAST, 0), top=np.array([-2], np.int16))
        assert (apply(flat((100, 100, 100)), plan, LEVELS) == 50).all()

    def test_hue_by_hand(self, apply: Applier) -> None:
        """Red a third of the circle on is green, half of it on cyan; an orange a sixth on is a yellow green."""
        for colour, sectors, expected in (
            ((255, 0, 0), 2, [0, 255, 0]),
            ((255, 0, 0), 3, [0, 255, 255]),
            ((255, 0, 0), -2, [0, 0, 255]),
            ((200, 100, 50), 1, [150, 200, 50]),  # hue 20 degrees; at 80 red lacks a third of the chroma 150
            ((77, 77, 77), 2, [77, 77, 77]),
        ):
            out = apply(flat(colour), jitter_plan(3, sectors * HUE_SECTOR), LEVELS)
            assert out[0, :, 1, 1].tolist() == expected, (colour, sectors)

    def test_every_colour_survives_a_turn_by_nothing_and_by_a_circle(self, apply: Applier) -> None:
        """Through the hue's arithmetic, which a turn of 0 alone would skip."""
        size = 4 if apply is by_loops else 64
        image = np.random.default_rng(5).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
        image[0, 0] = 255
        out = apply(image, jitter_plan(3, 6 * HUE_SECTOR, size=size), LEVELS)
        assert (out == image.transpose(0, 3, 1, 2)).all()

    def test_operations_follow_their_order(self, apply: Applier) -> None:
        """Brightness 2 then contrast 0 of (0, 100) is the mean of (0, 200); the other way round twice the mean of 50."""
        image = flat((0, 0, 0))
        image[0, :2] = 90
        jitter = [[2 * FIXED_ONE, 0, FIXED_ONE, 0]]
        bright_first = apply(image, plan_for(1, jitter=jitter, jitter_order=[[0, 1, 2, 3]]), LEVELS)
        contrast_first = apply(image, plan_for(1, jitter=jitter, jitter_order=[[3, 1, 0, 2]]), LEVELS)
        assert (bright_first == 90).all() and (contrast_first == 90).all()
        jitter = [[3 * FIXED_ONE, 0, FIXED_ONE, 0]]  # 270 is clipped to 255 where brightness comes first
        bright_first = apply(image, plan_for(1, jitter=jitter, jitter_order=[[0, 1, 2, 3]]), LEVELS)
        contrast_first = apply(image, plan_for(1, jitter=jitter, jitter_order=[[1, 0, 2, 3]]), LEVELS)
        assert (bright_first == 128).all() and (contrast_first == 135).all()

    def test_a_quarter_turn_is_counter_clockwise(self, apply: Applier, images: NDArray[np.uint8]) -> None:
        plan = plan_for(3, 12, turn=turn_by(np.array([90.0, 180.0, -90.0]), 12))
        out = apply(images, plan, LEVELS)
        for i, quarters in enumerate((1, 2, -1)):
            assert (out[i] == np.rot90(images[i], quarters).transpose(2, 0, 1)).all()

    def test_corners_that_turn_out_of_sight_are_black(self, apply: Applier, rule: Normalization) -> None:
        out = apply(flat((9, 9, 9)), plan_for(1, turn=turn_by(np.array([45.0]), 4)), rule)
        assert (out[0, :, [0, 0, 3, 3], [0, 3, 0, 3]] == rule.table[:, 0]).all()
        assert (out[0, :, 1:3, 1:3].reshape(3, 4) == rule.table[:, [9]]).all()

    def test_erased_is_zero_after_normalising(
        self, apply: Applier, images: NDArray[np.uint8], rule: Normalization
    ) -> None:
        out = apply(images, plan_for(2, 12, erase_box=[[2, 3, 5, 12], [0, 0, 0, 0]]), rule)
        expected = normalised(images[:2], rule)
        expected[0, :, 2:5, 3:12] = 0
        assert (out == expected).all()

    def test_mixup_is_lam_x_plus_the_rest(self, apply: Applier, images: NDArray[np.uint8], rule: Normalization) -> None:
        rows = np.arange(8, dtype=np.int32)
        plan = draw_plan(augment(mix="mixup", mix_alpha=1.0), 1, 0, 0, rows, 12)
        plain, lam = normalised(images[:8], rule), plan.lam[0]
        expected = lam * plain + (1 - lam) * plain[plan.partner]
        assert_same_bits(apply, apply(images, plan, rule), expected, blends=True)

    def test_cutmix_pastes_the_partners_box(
        self, apply: Applier, images: NDArray[np.uint8], rule: Normalization
    ) -> None:
        rows = np.arange(8, dtype=np.int32)
        plan = draw_plan(augment(mix="cutmix", mix_alpha=1.0), 3, 0, 1, rows, 12)
        top, left, bottom, right = plan.mix_box[0]
        assert bottom > top and right > left
        expected = normalised(images[:8], rule)
        expected[:, :, top:bottom, left:right] = expected[plan.partner][:, :, top:bottom, left:right]
        assert (apply(images, plan, rule) == expected).all()

    def test_the_partner_comes_as_it_was_augmented(
        self, apply: Applier, images: NDArray[np.uint8], rule: Normalization
    ) -> None:
        """Mixing follows everything else, erasing too: a batch mixed equals the batch unmixed, then mixed."""
        rows = np.arange(8, dtype=np.int32)
        for mix in ("mixup", "cutmix"):
            plan = draw_plan(augment(**EVERYTHING, mix=mix, mix_alpha=1.0), 4, 0, 2, rows, 12)
            plain = apply(images, draw_plan(augment(**EVERYTHING), 4, 0, 2, rows, 12), rule)
            expected, other = plain.copy(), plain[plan.partner]
            if mix == "mixup":
                expected = plan.lam[0] * plain + (1 - plan.lam[0]) * other
            else:
                top, left, bottom, right = plan.mix_box[0]
                expected[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
                assert plan.mix_box[0].any()
            assert plan.erase_box.any() and (plan.partner != np.arange(8)).any()
            assert_same_bits(apply, apply(images, plan, rule), expected, blends=mix == "mixup")


FAST = (fused, batched, batched_nhwc)
COMBINATIONS = list(
    itertools.product(
        ("none", "mixup", "cutmix", "switch"),
        ("batch", "sample"),
        ("permutation", "reverse"),
        ((0, None), (2, None), (0, 7), (3, 16)),
    )
)


@pytest.mark.parametrize(("mix", "scope", "partner", "crop"), COMBINATIONS)
def test_the_fast_paths_equal_the_reference_to_the_bit(
    mix: str,
    scope: str,
    partner: str,
    crop: tuple[int, int | None],
    images: NDArray[np.uint8],
    rule: Normalization,
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
    for batch in range(2):
        plan = draw_plan(spec, 7, 1, batch, rows, 12)
        expected = by_loops(images, plan, rule)
        for apply in FAST:
            assert (apply(images, plan, rule) == expected).all(), apply


@st.composite
def specs(draw: st.DrawFn) -> dict[str, Any]:
    strength = st.sampled_from([0.0, 0.1, 0.5, 1.0])
    mix = draw(st.sampled_from(["none", "mixup", "cutmix", "switch"]))
    hue = draw(st.sampled_from([0.0, 0.1, 0.5]))
    return {
        "pad_crop": draw(st.integers(0, 3)),
        "train_crop": draw(st.sampled_from([None, 4, 7])),
        "hflip_prob": draw(st.sampled_from([0.0, 0.5])),
        "jitter": draw(st.none() | st.tuples(strength, strength, strength, st.just(hue))),
        "rotate_deg": draw(st.sampled_from([0.0, 5.0, 180.0])),
        "erase_prob": draw(st.sampled_from([0.0, 0.7, 1.0])),
        "mix": mix,
        "mix_alpha": None if mix == "none" else 1.0,
        "mix_scope": draw(st.sampled_from(["batch", "sample"])),
        "mix_partner": draw(st.sampled_from(["permutation", "reverse"])),
        "mix_prob": draw(st.sampled_from([0.6, 1.0])),
    }


@pytest.mark.parametrize("appliers", [pytest.param(FAST, id="on-cpu"), pytest.param((on_card,), id="gpu", marks=CARD)])
@given(fields=specs(), seed=st.integers(0, 2**63 - 1), num=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_any_plan_gives_the_references_bits(
    fields: dict[str, Any],
    seed: int,
    num: int,
    appliers: tuple[Applier, ...],
    images: NDArray[np.uint8],
    rule: Normalization,
) -> None:
    rows = np.random.default_rng(seed).integers(0, 40, num).astype(np.int32)
    plan = draw_plan(augment(**fields), seed, 2, 3, rows, 12)
    expected = by_loops(images, plan, rule)
    for apply in appliers:
        assert_same_bits(apply, apply(images, plan, rule), expected, blends=bool((plan.blend < 1).any()))


@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_is_rounded_once_and_the_layout_is_as_asked(
    mix: str, channels_last: bool, images: NDArray[np.uint8], rule: Normalization
) -> None:
    spec = augment(**EVERYTHING, mix=mix, mix_alpha=None if mix == "none" else 1.0)
    plan = draw_plan(spec, 7, 1, 0, np.arange(6, dtype=np.int32), 12)
    store, table = torch.from_numpy(images), torch.from_numpy(rule.table)
    expected = torch.from_numpy(by_loops(images, plan, rule))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for dtype in (torch.float32, torch.bfloat16):
        for out in (
            gpu.apply_plan(store, plan, table, dtype=dtype, channels_last=channels_last),
            fused_tensor(images, plan, rule, dtype, channels_last),
        ):
            assert torch.equal(out, expected.to(dtype)) and out.is_contiguous(memory_format=layout)


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even(images: NDArray[np.uint8]) -> None:
    """Slopes of whole powers of two make ties of every pixel value above 255, torch's rounding is the reference."""
    plan = draw_plan(augment(), 1, 0, 0, np.arange(40, dtype=np.int32), 12)
    for scale in (257.0, 1.0 + 2.0**-8, 2.0**-9 + 1):
        rule = Normalization(
            scale=np.array([scale, -scale, 0.0], np.float32), bias=np.array([0.0, 1.0, -1.0], np.float32)
        )
        exact = fused_tensor(images, plan, rule)
        assert torch.equal(fused_tensor(images, plan, rule, torch.bfloat16), exact.to(torch.bfloat16))
        ties = (exact.view(torch.int32) & 0xFFFF) == 0x8000
        assert ties.any(), "there was nothing to decide"


def test_images_that_would_be_copied_every_time_are_refused(images: NDArray[np.uint8], rule: Normalization) -> None:
    plan = draw_plan(augment(), 1, 0, 0, np.arange(2, dtype=np.int32), 6)
    with pytest.raises(AssertionError, match="a copy of the whole store"):
        fused(images[:, ::2, ::2], plan, rule)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_agrees_with_timm_in_distribution(mix: str) -> None:
    """timm pairs with the reversed batch; the law of the mixed share of the image is the same."""
    from timm.data.mixup import Mixup

    num, size, batches = 4, 16, 600
    own = np.repeat(np.arange(num, dtype=np.uint8)[:, None, None, None], size, axis=1)
    images = np.ascontiguousarray(np.broadcast_to(own, (num, size, size, 3)))
    identity = Normalization(scale=np.ones(3, np.float32), bias=np.zeros(3, np.float32))
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
