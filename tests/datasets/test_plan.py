"""Plans: randomness by position, and mixing exactly as the first study does it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toy import augment

from datasets.plan import Purpose, draw_plan, epoch_order, generator


def index(num: int) -> np.ndarray:
    return np.arange(num, dtype=np.int32)


def test_order_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    first = epoch_order(1, 0, 1000)
    assert sorted(first) == list(range(1000))
    assert (first == epoch_order(1, 0, 1000)).all()
    others = [epoch_order(1, 1, 1000), epoch_order(2, 0, 1000), epoch_order(0, 1, 1000)]
    assert all((first != other).any() for other in others)


def test_seed_0_epoch_1_is_not_seed_1_epoch_0() -> None:
    assert (epoch_order(0, 1, 100) != epoch_order(1, 0, 100)).any()


def test_positions_never_share_a_draw() -> None:
    seen = set()
    for seed in (0, 1):
        for purpose in (Purpose.ORDER, Purpose.MIX):
            for epoch in (0, 1):
                for batch in (0, 1):
                    seen |= set(generator(seed, purpose, epoch, batch).integers(2**63, size=50).tolist())
    assert len(seen) == 16 * 50


def test_draws_are_pinned() -> None:
    """Numpy may change its streams; results would change with it, so SPEC_VERSION would have to rise."""
    assert epoch_order(223, 3, 10).tolist() == ORDER_223_3
    plan = draw_plan(augment(mix="cutmix", mix_alpha=1.0, pad_crop=2, hflip_prob=0.5), 223, 3, 7, index(4), 32)
    assert (plan.top.tolist(), plan.flip.tolist(), plan.partner.tolist()) == (TOP, FLIP, PARTNER)
    assert plan.lam.tolist() == pytest.approx([LAM] * 4)


ORDER_223_3 = [5, 9, 6, 2, 4, 3, 1, 8, 7, 0]
TOP, FLIP, PARTNER = [-2, 2, 0, 1], [True, True, False, True], [0, 1, 2, 3]
LAM = 0.7265625


def test_default_plan_changes_nothing() -> None:
    plan = draw_plan(augment(), 1, 0, 0, index(5), 32)
    assert not plan.flip.any() and not plan.top.any() and not plan.left.any()
    assert (plan.lam == 1).all() and (plan.blend == 1).all() and (plan.partner == index(5)).all()


@given(seed=st.integers(0, 2**63 - 1), batch=st.integers(0, 10_000), size=st.integers(4, 96))
@settings(max_examples=60, deadline=None)
def test_cutmix_box_and_lambda(seed: int, batch: int, size: int) -> None:
    plan = draw_plan(augment(mix="cutmix", mix_alpha=1.0), seed, 0, batch, index(6), size)
    top, left, bottom, right = plan.mix_box[0].astype(int)
    assert (plan.mix_box == plan.mix_box[0]).all(), "the same box for the whole batch"
    assert 0 <= top <= bottom <= size and 0 <= left <= right <= size
    assert plan.lam[0] == np.float32(1 - (bottom - top) * (right - left) / size**2)
    assert (plan.blend == 1).all()
    assert sorted(plan.partner) == list(range(6))


def test_cutmix_follows_the_study_by_hand() -> None:
    """lam 0.75 on 32 pixels: ratio 0.5, side 16, half 8; centre (3, 20) is clipped to rows 0..11, columns 12..28."""
    from datasets.plan import _cut_boxes

    box = _cut_boxes(np.array([0.75]), np.array([[3], [20]]), 32)
    assert box.tolist() == [[0, 12, 11, 28]]
    odd = _cut_boxes(np.array([1 - (7.5 / 32) ** 2]), np.array([[16], [16]]), 32)  # side int(7.5) = 7, half 3
    assert odd.tolist() == [[13, 13, 19, 19]]


def test_mixup_lambda_is_uniform_for_alpha_one_and_the_same_in_a_batch() -> None:
    spec = augment(mix="mixup", mix_alpha=1.0)
    plans = [draw_plan(spec, 5, 0, batch, index(4), 8) for batch in range(2000)]
    assert all((plan.lam == plan.lam[0]).all() and (plan.blend == plan.lam).all() for plan in plans)
    assert stats.kstest([plan.lam[0] for plan in plans], "uniform").pvalue > 0.001


def test_mixup_lambda_follows_beta() -> None:
    spec = augment(mix="mixup", mix_alpha=0.2)
    lam = [draw_plan(spec, 5, 0, batch, index(2), 8).lam[0] for batch in range(2000)]
    assert stats.kstest(lam, stats.beta(0.2, 0.2).cdf).pvalue > 0.001


def test_other_conventions() -> None:
    sample = draw_plan(augment(mix="mixup", mix_alpha=1.0, mix_scope="sample"), 1, 0, 0, index(64), 8)
    assert len(set(sample.lam.tolist())) == 64
    reverse = draw_plan(augment(mix="mixup", mix_alpha=1.0, mix_partner="reverse"), 1, 0, 0, index(4), 8)
    assert reverse.partner.tolist() == [3, 2, 1, 0]
    never = draw_plan(augment(mix="mixup", mix_alpha=1.0, mix_prob=0.0), 1, 0, 0, index(4), 8)
    assert (never.lam == 1).all() and (never.partner == index(4)).all()
    switch = [draw_plan(augment(mix="switch", mix_alpha=1.0), 1, 0, batch, index(4), 8) for batch in range(400)]
    blended = sum(bool((plan.blend < 1).any()) for plan in switch)
    boxed = sum(bool(plan.mix_box.any()) for plan in switch)
    assert 150 < blended < 250 and boxed > 100
    assert not any((plan.blend < 1).any() and plan.mix_box.any() for plan in switch)


def test_crop_offsets_cover_the_padded_range_evenly() -> None:
    plan = draw_plan(augment(pad_crop=4), 1, 0, 0, index(9000), 32)
    values, counts = np.unique(plan.top, return_counts=True)
    assert values.tolist() == list(range(-4, 5))
    assert stats.chisquare(counts).pvalue > 0.001
    assert (plan.top != plan.left).any()


def test_train_crop_stays_inside() -> None:
    plan = draw_plan(augment(train_crop=32), 1, 0, 0, index(2000), 64)
    assert plan.out_size == 32 and plan.top.min() == 0 and plan.top.max() == 32


def test_crop_that_does_not_fit_says_so() -> None:
    with pytest.raises(ValueError, match=r"augment\.train_crop: 40 pixels do not fit .* lower train_crop or raise"):
        draw_plan(augment(train_crop=40), 1, 0, 0, index(2), 32)
