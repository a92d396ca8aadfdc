"""The fused kernel where its ways part: windows as wide as the images and not, sides that are whole vectors and not,
targets on a cache line and beside one, of every type and layout."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from toy import augment

from datasets import colours, cpu, reference
from datasets.normalize import Normalization
from datasets.plan import BatchPlan, draw_plan, plain_plan

STORED = 4
RULE = Normalization.by((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def boxes(rng: np.random.Generator, num: int, size: int) -> NDArray[np.int16]:
    """Top, left, bottom, right; some are empty."""
    corners = np.sort(rng.integers(0, size + 1, (2, 2, num)), axis=0)
    return np.concatenate([corners[0], corners[1]]).T.astype(np.int16, order="C")


def any_plan(rng: np.random.Generator, side: int, size: int, reach: int, mix: str, erase: bool) -> BatchPlan:
    """Windows up to `reach` pixels beside the image, every image with its own partner, weight and boxes."""
    num = int(rng.integers(1, 6))
    plan = plain_plan(rng.integers(0, STORED, num).astype(np.int32), size)
    changes: dict[str, Any] = {
        "top": rng.integers(-reach, reach + 1, num).astype(np.int16),
        "left": rng.integers(-reach, reach + 1, num).astype(np.int16),
        "flip": rng.random(num) < 0.5,
    }
    if mix != "none":
        changes["partner"] = rng.permutation(num).astype(np.int32)
    if mix == "mixup":
        changes["blend"] = np.where(rng.random(num) < 0.7, rng.random(num), 1).astype(np.float32)
    if mix == "cutmix":
        changes["mix_box"] = boxes(rng, num, size)
    if erase:
        changes["erase_box"] = boxes(rng, num, size)
    return replace(plan, **changes)


@pytest.mark.parametrize("side", [5, 7, 8, 12, 16, 32])
@given(
    seed=st.integers(0, 2**32 - 1),
    narrower=st.sampled_from([0, 0, 1, 4, -3]),
    reach=st.sampled_from([0, 1, 4, 40]),
    mix=st.sampled_from(["none", "mixup", "cutmix"]),
    erase=st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_every_way_through_the_kernel_gives_the_references_bits(
    seed: int, narrower: int, reach: int, mix: str, erase: bool, side: int
) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (STORED, side, side, 3), np.uint8)
    size = side - narrower
    plan = any_plan(rng, side, size, reach, mix, erase)
    expected = torch.from_numpy(reference.apply_plan(images, plan, RULE.table))
    num = len(plan.index)
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            out = torch.empty((num, 3, size, size), dtype=dtype, memory_format=layout)
            cpu.apply_plan(images, plan, RULE, out)
            assert torch.equal(out, expected.to(dtype)), (dtype, layout)


@pytest.mark.parametrize("offset", [0, 1, 4, 16])
def test_a_target_may_lie_anywhere_and_nothing_beside_it_is_written(offset: int) -> None:
    """Only from a cache line on whole lines are written past the caches."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (STORED, 8, 8, 3), np.uint8)
    plan = any_plan(rng, 8, 8, 2, "mixup", erase=True)
    count = len(plan.index) * 3 * 64
    room = torch.full((count + 64,), 7.0)
    assert room.data_ptr() % 64 == 0
    cpu.apply_plan(images, plan, RULE, room[offset : offset + count].view(-1, 3, 8, 8))
    expected = torch.from_numpy(reference.apply_plan(images, plan, RULE.table)).flatten()
    assert torch.equal(room[offset : offset + count], expected)
    assert (room[:offset] == 7).all() and (room[offset + count :] == 7).all()


def test_two_threads_at_once_make_the_same_bits_as_one() -> None:
    """And another thread reads them at once. That the fence is needed no test on x86 would show: locks flush, too."""
    images = np.random.default_rng(2).integers(0, 256, (64, 32, 32, 3), np.uint8)
    plan = plain_plan(np.arange(64, dtype=np.int32), 32)
    expected = torch.empty((64, 3, 32, 32))
    cpu.apply_plan(images, plan, RULE, expected)

    def made() -> torch.Tensor:
        out = torch.zeros((64, 3, 32, 32))
        cpu.apply_plan(images, plan, RULE, out)
        return out

    with ThreadPoolExecutor(2) as pool:
        assert all(torch.equal(found, expected) for found in pool.map(lambda _: made(), range(50)))


def test_no_drawn_plan_makes_the_kernel_compile_again() -> None:
    """A compilation takes longer than many an epoch: rows that lie otherwise, or may be written to, would ask for one."""
    store, out = np.zeros((8, 32, 32, 3), np.uint8), torch.empty(8, 3, 32, 32)
    whole = {"pad_crop": 4, "hflip_prob": 0.5, "jitter": (0.2, 0.2, 0.2, 0.1), "rotate_deg": 10.0, "erase_prob": 1.0}
    mixes: list[dict[str, Any]] = [{"mix": "mixup"}, {"mix": "cutmix"}, {"mix": "switch", "mix_scope": "sample"}]
    specs = [augment(), augment(**whole), augment(erase_prob=1.0), augment(rotate_deg=10.0)]
    specs += [
        augment(mix_alpha=1.0, mix_partner=partner, **mix) for mix in mixes for partner in ("permutation", "reverse")
    ]
    index = np.arange(8, dtype=np.int32)
    cpu.apply_plan(store, plain_plan(index, 32), RULE, out)
    before = {cpu._fill: set(cpu._fill.signatures)}
    for spec in specs:
        cpu.apply_plan(store, draw_plan(spec, 1, 0, 0, index, 32), RULE, out)
        for kernel in (cpu._fill, cpu._cut, colours._change):
            if kernel.signatures:
                assert set(kernel.signatures) == before.setdefault(kernel, set(kernel.signatures)), spec
