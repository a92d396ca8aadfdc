"""The loader that keeps its images on a device: the CPU loader's batches bit for bit, wherever it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from toy import augment, run_spec

from datasets import device_loader
from datasets.device_loader import DeviceLoader, resident
from datasets.epochs import Epochs
from datasets.loader import Loader
from datasets.spec import AugmentSpec
from datasets.store import Dataset
from datasets.subset import select_rows

Copy = tuple[torch.Tensor, ...]
CARD = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")]
DEVICES = [pytest.param("cpu", id="cpu"), pytest.param("cuda", id="cuda", marks=CARD)]
EVERYTHING = {"pad_crop": 2, "hflip_prob": 0.5, "jitter": (0.4, 0.4, 0.4, 0.2), "rotate_deg": 30.0, "erase_prob": 0.5}
PLAIN = {"pad_crop": 1, "hflip_prob": 0.5}


def both(
    toy: Dataset, spec: AugmentSpec, device: str = "cpu", batch_size: int = 16, **how: object
) -> tuple[Loader, DeviceLoader]:
    """The same batches, made on the CPU and on the device."""
    rows = select_rows(run_spec().data, toy).train
    settings: dict[str, object] = {"batch_size": batch_size, "seed": 3, "train": True, **how}
    images = resident(toy.train, torch.device(device))
    return (
        Loader(toy.train, rows, spec, **settings),  # type: ignore[arg-type]
        DeviceLoader(images, toy.manifest, rows, spec, **settings),  # type: ignore[arg-type]
    )


def copies(loader: Epochs[object]) -> Iterator[Copy]:
    for batch in loader:
        parts = (batch.images, batch.label_a, batch.label_b, batch.lam, batch.index)
        yield tuple(part.cpu().clone() for part in parts)


def assert_same(ours: list[Copy], expected: list[Copy]) -> None:
    assert len(ours) == len(expected)
    for one, other in zip(ours, expected, strict=True):
        for found, wanted in zip(one, other, strict=True):
            assert found.dtype == wanted.dtype and torch.equal(found, wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mix", ["none", "mixup", "cutmix", "switch"])
@pytest.mark.parametrize("fields", [PLAIN, EVERYTHING], ids=["plain", "everything"])
def test_two_epochs_are_the_cpu_loaders(
    toy: Dataset, mix: str, fields: dict[str, object], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In groups of three batches, so that an epoch of four ends within one."""
    monkeypatch.setattr(device_loader, "GROUP_PIXELS", 48 * 64)
    spec = augment(**fields, mix=mix, mix_alpha=None if mix == "none" else 1.0)
    cpu, ours = both(toy, spec, device)
    for _ in range(2):
        assert_same(list(copies(ours)), list(copies(cpu)))


@pytest.mark.parametrize("how", [{"train": False}, {"train": False, "augmented": True}, {"drop_last": True}])
def test_evaluations_and_dropped_batches_are_the_cpu_loaders(toy: Dataset, how: dict[str, object]) -> None:
    cpu, ours = both(toy, augment(**EVERYTHING, train_crop=5), **how)
    assert len(ours) == len(cpu) and ours.num_images == cpu.num_images
    assert_same(list(copies(ours)), list(copies(cpu)))


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("ahead", [0, 2])
def test_resume_anywhere_yields_the_same_batches_in_other_groups(
    toy: Dataset, stop_at: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by one kind of loader, resumed by the other: a run may go on where there is no card."""
    monkeypatch.setattr(device_loader, "GROUP_PIXELS", 48 * 64)
    spec = augment(**PLAIN, mix="cutmix", mix_alpha=1.0)
    stream = [batch for loader in both(toy, spec)[:1] for _ in range(4) for batch in copies(loader)]
    stopped, resumed = both(toy, spec, ahead=ahead)
    for done in range(stop_at):
        if done % 4 == 0:
            batches = iter(stopped)
        next(batches)
    for state in (stopped.state_dict(), {"version": 1, "epoch": stop_at // 4, "batch": stop_at % 4}):
        resumed.load_state_dict(state)  # type: ignore[arg-type]
        assert_same([batch for _ in range(3) for batch in copies(resumed)][:8], stream[stop_at : stop_at + 8])
    stopped.close()


def test_a_stop_within_a_group_counts_single_batches(toy: Dataset) -> None:
    _, ours = both(toy, augment(**PLAIN))
    for number, _ in enumerate(ours):
        if number == 1:
            break
    assert ours.state_dict() == {"version": 1, "epoch": 0, "batch": 2}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_and_layout_are_the_cpu_loaders(toy: Dataset, channels_last: bool) -> None:
    how = {"dtype": torch.bfloat16, "channels_last": channels_last}
    cpu, ours = both(toy, augment(**PLAIN, mix="mixup", mix_alpha=0.2), **how)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for one, other in zip(cpu, ours, strict=True):
        assert one.images.dtype == torch.bfloat16 and torch.equal(one.images, other.images)
        assert one.images.is_contiguous(memory_format=layout) and other.images.is_contiguous(memory_format=layout)


def test_a_split_is_uploaded_whole_in_parts(toy: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_loader, "_UPLOAD_BYTES", 1000)
    assert np.array_equal(resident(toy.train, torch.device("cpu")).numpy(), toy.train.images)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_pinned_batches_survive_until_their_copies_are_made(toy: Dataset) -> None:
    """Copies that nobody waits for, of more batches than there are slots, after a long piece of work on the card."""
    rows = select_rows(run_spec().data, toy).train
    spec = augment(**PLAIN)
    expected = list(copies(Loader(toy.train, rows, spec, batch_size=4, seed=3, train=True)))
    pinned = Loader(toy.train, rows, spec, batch_size=4, seed=3, train=True, pin=True)
    busy = torch.rand(4096, 4096, device="cuda")
    for _ in range(50):
        busy = busy @ busy
    found = [batch.images.to("cuda", non_blocking=True) for batch in pinned]
    assert all(torch.equal(one.cpu(), other[0]) for one, other in zip(found, expected, strict=True))
