"""Resizing: Pillow's bits, OpenCV's rule, one result on every path, JPEG, and refusals in words."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from toy import photos

from datasets import reference
from datasets.resize import OPENCV_BITS, Resizer, Rule, check_resize, taps, through_jpeg

PILLOW: dict[Rule, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]


def noise(count: int, side: int, seed: int = 0) -> NDArray[np.uint8]:
    """The hardest images: noise, and noise of black and white, whose overshoot is clipped."""
    images = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images[1::2] = np.where(images[1::2] > 127, 255, 0)
    return images


def by_kernel(images: NDArray[np.uint8], size: int, rule: Rule) -> NDArray[np.uint8]:
    out = np.empty((len(images), size, size, 3), np.uint8)
    Resizer(rule, images.shape[1], size).fill(images, np.arange(len(images), dtype=np.int32), out)
    return out


def by_pillow(images: NDArray[np.uint8], size: int, rule: Rule) -> NDArray[np.uint8]:
    return np.stack([np.asarray(Image.fromarray(one).resize((size, size), PILLOW[rule])) for one in images])


def on_device(images: NDArray[np.uint8], size: int, rule: Rule, device: str = "cpu") -> NDArray[np.uint8]:
    resizer = Resizer(rule, images.shape[1], size)
    return resizer.on_device(torch.from_numpy(images).to(device)).cpu().numpy()


@pytest.mark.parametrize("rule", PILLOW)
@pytest.mark.parametrize(("side", "size"), [(64, 224), (32, 224), (64, 32), (224, 64), (96, 17), (8, 8)])
def test_bits_are_pillows(rule: Rule, side: int, size: int) -> None:
    images = noise(4, side)
    assert (by_kernel(images, size, rule) == by_pillow(images, size, rule)).all()


@given(side=st.integers(4, 60), size=st.integers(4, 60), seed=st.integers(0, 2**32), rule=st.sampled_from([*PILLOW]))
@settings(max_examples=60, deadline=None)
def test_bits_are_pillows_at_any_size(side: int, size: int, seed: int, rule: Rule) -> None:
    images = noise(2, side, seed)
    assert (by_kernel(images, size, rule) == by_pillow(images, size, rule)).all()


@given(side=st.integers(4, 12), size=st.integers(4, 16), seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_every_path_gives_the_references_bits(side: int, size: int, seed: int) -> None:
    images = noise(2, side, seed)
    rules: list[Rule] = ["bilinear", "bicubic", *(["bicubic_opencv"] if size >= side else [])]
    for rule in rules:
        expected = np.stack([reference.resized(one, taps(rule, side, size)) for one in images])
        assert (by_kernel(images, size, rule) == expected).all(), rule
        assert (on_device(images, size, rule) == expected).all(), rule


@pytest.mark.parametrize("rule", ["bilinear", "bicubic", "bicubic_opencv"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CARD)])
def test_a_device_gives_the_same_bits(rule: Rule, device: str) -> None:
    images = noise(4, 64)
    assert (on_device(images, 224, rule, device) == by_kernel(images, 224, rule)).all()


def test_some_images_of_a_store_in_the_order_asked_for() -> None:
    images, out = noise(6, 8), np.empty((3, 12, 12, 3), np.uint8)
    images.flags.writeable = False  # a memory map
    Resizer("bicubic", 8, 12).fill(images, np.array([5, 0, 5], np.int32), out)
    assert (out == by_pillow(images[[5, 0, 5]], 12, "bicubic")).all()


@pytest.mark.parametrize(("side", "size"), [(64, 224), (64, 256), (32, 224), (8, 24), (32, 33), (4, 9)])
def test_opencvs_bicubic_is_torchs_to_a_level(side: int, size: int) -> None:
    """The same kernel (a = -0.75) and edges in float64; ours has weights of 11 bits, as OpenCV's."""
    images = noise(6, side)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    exact = torch.nn.functional.interpolate(planes, size=size, mode="bicubic", align_corners=False)
    exact = exact.clamp(0, 255).permute(0, 2, 3, 1)
    off = np.abs(by_kernel(images, size, "bicubic_opencv") - exact.numpy())
    assert np.abs(by_kernel(images, size, "bicubic_opencv") - exact.round().numpy()).max() <= 1
    assert off.mean() < 0.26, "rounding alone costs a quarter of a level"


def test_opencvs_weights_by_hand() -> None:
    """From 4 to 8 pixels, pixel 3 lies at 1.25, a quarter beyond pixel 1, which weighs 1.25/64 - 2.25/16 + 1. Pixel 0
    lies at -0.25: the two pixels before the edge are the edge's, and weigh what they would."""
    one = taps("bicubic_opencv", 4, 8)
    weights = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    assert one.first[3] == 0 and one.weight[3].tolist() == [weight * 2**OPENCV_BITS for weight in weights]
    assert one.weight[0].tolist() == [(1 + 0.10546875) * 2**OPENCV_BITS, -0.10546875 * 2**OPENCV_BITS, 0, 0]
    assert (one.weight.sum(axis=1) == 2**OPENCV_BITS).all() and not one.rounds


def test_opencvs_overshoot_is_kept_between_the_passes() -> None:
    """Rounded to 8 bits in between, as Pillow's, a corner of black and white would be off by ten levels and more."""
    images = np.zeros((1, 8, 8, 3), np.uint8)
    images[0, :4, :4] = 255
    kept = by_kernel(images, 28, "bicubic_opencv").astype(int)
    clipped = taps("bicubic_opencv", 8, 28)
    across = np.zeros((8, 28))
    for x in range(28):
        row = sum(int(w) * images[0, :, clipped.first[x] + k, 0].astype(int) for k, w in enumerate(clipped.weight[x]))
        across[:, x] = np.clip(np.rint(np.asarray(row) / 2**OPENCV_BITS), 0, 255)
    down = np.stack(
        [
            sum(int(w) * across[clipped.first[y] + k] for k, w in enumerate(clipped.weight[y])) / 2**OPENCV_BITS
            for y in range(28)
        ]
    )
    assert np.abs(kept[0, :, :, 0] - np.clip(np.rint(down), 0, 255)).max() >= 10


def test_jpeg_is_pillows_encoder_at_4_2_0_and_its_decoder() -> None:
    pixels = photos(1, 64)[0]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80, subsampling=2)
    decoded = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    assert (through_jpeg(pixels, 80) == decoded).all()
    losses = [np.abs(through_jpeg(pixels, quality).astype(int) - pixels).mean() for quality in (20, 80, 95)]
    assert 0 < losses[2] < losses[1] < losses[0]


def test_every_resized_image_goes_through_jpeg() -> None:
    images, out = photos(3, 16), np.empty((3, 48, 48, 3), np.uint8)
    Resizer("bicubic_opencv", 16, 48, 70).fill(images, np.arange(3, dtype=np.int32), out)
    expected = [through_jpeg(one, 70) for one in by_kernel(images, 48, "bicubic_opencv")]
    assert (out == np.stack(expected)).all()
    with pytest.raises(ValueError, match=r"data\.jpeg_quality: is worked on the CPU; resize there"):
        Resizer("bicubic", 16, 48, 70).on_device(torch.from_numpy(images))


def test_what_cannot_be_resized_is_refused_in_words() -> None:
    for arguments, message in (
        (
            ("bicubic_opencv", 64, 32),
            r"data\.resize: bicubic_opencv only enlarges, and images of x would shrink from 64 to 32 .* bilinear",
        ),
        (
            ("none", 64, 224),
            r"data\.image_size: 224 pixels, but the images of x have 64 and data\.resize is none; set data\.resize to "
            r"bilinear, bicubic or bicubic_opencv, or data\.image_size to 64",
        ),
        (("none", 64, 64, 95), r"data\.jpeg_quality: must be null where data\.resize is none, got 95"),
    ):
        with pytest.raises(ValueError, match=message):
            check_resize(*arguments, dataset="x")  # type: ignore[arg-type]
    check_resize("none", 64, 64)
    check_resize("bicubic_opencv", 64, 64)
    check_resize("bilinear", 64, 32, 95)
