"""What a jitter, a turn and an erased box mean: Pillow's and torchvision's own, on photographs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torchvision.transforms import functional
from toy import augment, photos

from datasets import cpu
from datasets.normalize import Normalization
from datasets.plan import FIXED_ONE, HUE_SECTOR, BatchPlan, draw_plan

NUM, SIZE = 24, 32
ENHANCE = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


@pytest.fixture(scope="module")
def tiles() -> NDArray[np.uint8]:
    return photos(NUM, SIZE)


def plan_of(seed: int = 0, **fields: object) -> BatchPlan:
    return draw_plan(augment(**fields), seed, 0, 0, np.arange(NUM, dtype=np.int32), SIZE)


def difference(ours: NDArray[np.uint8], theirs: list[Image.Image]) -> NDArray[np.int64]:
    return np.abs(ours.astype(np.int64) - np.stack([np.asarray(one) for one in theirs]))


@pytest.mark.parametrize("operation", range(3))
def test_brightness_contrast_and_saturation_are_pillows(operation: int, tiles: NDArray[np.uint8]) -> None:
    """Pillow blends in float32 and cuts off: a product next to a whole number can fall on its other side."""
    strengths = [0.0, 0.0, 0.0, 0.0]
    strengths[operation] = 0.9
    plan = plan_of(jitter=tuple(strengths))
    theirs = [
        ENHANCE[operation](Image.fromarray(tile)).enhance(factor / FIXED_ONE)
        for tile, factor in zip(tiles, plan.jitter[:, operation].tolist(), strict=True)
    ]
    off = difference(cpu.seen_windows(tiles, plan), theirs)
    assert off.max() <= 1 and (off > 0).mean() < 0.001
    assert difference(tiles, theirs).mean() > 5, "the operation does something"


def test_the_hue_is_torchvisions_on_floating_point_images(tiles: NDArray[np.uint8]) -> None:
    plan = plan_of(jitter=(0.0, 0.0, 0.0, 0.5))
    ours = cpu.seen_windows(tiles, plan)
    for tile, turn, mine in zip(tiles, plan.jitter[:, 3].tolist(), ours, strict=True):
        picture = torch.from_numpy(tile).permute(2, 0, 1) / 255
        theirs = functional.adjust_hue(picture, turn / (6 * HUE_SECTOR)).permute(1, 2, 0) * 255
        assert np.abs(mine - theirs.numpy()).max() < 0.51, "rounded to the nearest level"


def test_the_hue_is_near_pillows_which_counts_in_8_bits(tiles: NDArray[np.uint8]) -> None:
    """Pillow's HSV has 256 hues and saturations, and 255 of them to the circle: some levels lie in between."""
    plan = plan_of(jitter=(0.0, 0.0, 0.0, 0.1))
    theirs = [
        functional.adjust_hue(Image.fromarray(tile), turn / (6 * HUE_SECTOR))
        for tile, turn in zip(tiles, plan.jitter[:, 3].tolist(), strict=True)
    ]
    off = difference(cpu.seen_windows(tiles, plan), theirs)
    assert off.mean() < 0.7 and off.max() <= 8
    assert difference(tiles, theirs).mean() > 4 * off.mean()


@pytest.mark.parametrize("degrees", [10.0, 180.0])
def test_turned_images_are_pillows_to_the_bit(degrees: float, tiles: NDArray[np.uint8]) -> None:
    plan = plan_of(rotate_deg=degrees)
    angles = degrees * (2 * _shares() - 1)
    theirs = [Image.fromarray(tile).rotate(angle) for tile, angle in zip(tiles, angles.tolist(), strict=True)]
    assert difference(cpu.seen_windows(tiles, plan), theirs).max() == 0


def _shares() -> NDArray[np.float64]:
    from datasets.plan import Purpose, generator

    return generator(0, Purpose.ROTATE, 0, 0).random(NUM)


def test_all_of_it_is_torchvisions_pipeline(tiles: NDArray[np.uint8]) -> None:
    """Padding, crop, mirror, jitter, rotation on Pillow images, then to [0, 1], normalised, erased, as study 4 did."""
    fields = {"pad_crop": 4, "hflip_prob": 0.5, "jitter": (0.2, 0.2, 0.2, 0.1), "rotate_deg": 10.0, "erase_prob": 0.5}
    plan = plan_of(**fields)
    mean, std = np.array([0.5071, 0.4867, 0.4408]), np.array([0.2675, 0.2565, 0.2761])
    ours = np.empty((NUM, 3, SIZE, SIZE), np.float32)
    cpu.apply_plan(tiles, plan, Normalization.by(mean, std), torch.from_numpy(ours))
    angles = 10.0 * (2 * _shares() - 1)
    for i, tile in enumerate(tiles):
        image = functional.pad(Image.fromarray(tile), [4])
        image = functional.crop(image, int(plan.top[i]) + 4, int(plan.left[i]) + 4, SIZE, SIZE)
        image = functional.hflip(image) if plan.flip[i] else image
        for operation in plan.jitter_order[i]:
            amount = int(plan.jitter[i, operation])
            if operation == 3:
                image = functional.adjust_hue(image, amount / (6 * HUE_SECTOR))
            else:
                image = ENHANCE[operation](image).enhance(amount / FIXED_ONE)
        picture = functional.normalize(
            functional.to_tensor(functional.rotate(image, float(angles[i]))), mean.tolist(), std.tolist()
        )
        top, left, bottom, right = (int(value) for value in plan.erase_box[i])
        if bottom > top:
            picture = functional.erase(picture, top, left, bottom - top, right - left, torch.tensor(0.0))
        off = np.abs(ours[i] - picture.numpy())
        assert off.mean() < 1.5 / 255 / 0.25 and off.max() < 10 / 255 / 0.25, i
        assert ((ours[i] == 0) == (picture.numpy() == 0)).all(), "erased where it is, nowhere else"
