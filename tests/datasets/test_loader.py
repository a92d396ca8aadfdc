"""The loader: what it yields, where it stands, and that its thread neither hangs nor stays."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from toy import augment, run_spec

from datasets import reference
from datasets.epochs import EVALUATION_EPOCH
from datasets.loader import Loader
from datasets.normalize import normalization
from datasets.plan import draw_plan, epoch_order
from datasets.resize import Resizer
from datasets.spec import AugmentSpec
from datasets.store import Dataset
from datasets.subset import select_rows

MIXED = {"augment.mix": "cutmix", "augment.mix_alpha": 1.0, "augment.pad_crop": 1, "augment.hflip_prob": 0.5}
Copy = tuple[torch.Tensor, ...]


def make(
    toy: Dataset, *, train: bool = True, ahead: int = 2, threads: int = 1, batch_size: int = 16, **fields: object
) -> Loader:
    spec = run_spec({**(MIXED if train else {}), **fields})
    rows = select_rows(spec.data, toy)
    store, chosen = (toy.train, rows.train) if train else (toy.test, rows.test)
    settings: dict[str, Any] = {"batch_size": batch_size, "seed": 3, "train": train}
    return Loader(store, chosen, spec.augment, **settings, ahead=ahead, threads=threads)


def copies(loader: Loader, limit: int | None = None) -> Iterator[Copy]:
    for number, batch in enumerate(loader):
        if number == limit:
            return
        yield tuple(part.clone() for part in (batch.images, batch.label_a, batch.label_b, batch.lam, batch.index))


def equal(one: list[Copy], other: list[Copy]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)
    )


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader-")]


def test_an_epoch_visits_every_image_once_and_keeps_the_short_last_batch(toy: Dataset) -> None:
    loader = make(toy)
    batches = list(copies(loader))
    assert [len(batch[0]) for batch in batches] == [16, 16, 16, 12] and len(loader) == 4
    assert sorted(torch.cat([batch[4] for batch in batches]).tolist()) == list(range(60))


def test_labels_belong_to_images(toy: Dataset) -> None:
    for _, label_a, label_b, lam, index in copies(make(toy)):
        assert (label_a.numpy() == toy.train.labels[index.numpy()]).all()
        assert 0 <= float(lam.min()) <= float(lam.max()) <= 1
        assert set(label_b.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_the_second_label_is_that_of_the_image_mixed_in(toy: Dataset, mix: str) -> None:
    """Every image of the toy data is made of its own label's value alone, so that pixels tell the labels' shares."""
    spec = run_spec({"augment.mix": mix, "augment.mix_alpha": 1.0, "augment.normalize": "none"})
    values = np.array([0, 100, 200], np.uint8)
    images = np.broadcast_to(values[toy.train.labels][:, None, None, None], toy.train.images.shape)
    store = dataclasses.replace(toy.train, images=np.ascontiguousarray(images))
    loader = Loader(store, select_rows(spec.data, toy).train, spec.augment, batch_size=16, seed=3, train=True)
    mixed = 0
    for pixels, label_a, label_b, lam, _ in copies(loader):
        own, other = (torch.from_numpy(values[label.numpy()]) / 255 for label in (label_a, label_b))
        assert torch.allclose(pixels.mean(dim=(1, 2, 3)), lam * own + (1 - lam) * other, atol=1e-6)
        mixed += int(((label_a != label_b) & (lam < 1)).sum())
    assert mixed > 10


def test_evaluation_is_in_order_and_plain(toy: Dataset) -> None:
    batches = list(copies(make(toy, train=False)))
    assert torch.cat([batch[4] for batch in batches]).tolist() == list(range(30))
    assert all(torch.equal(label_a, label_b) and (lam == 1).all() for _, label_a, label_b, lam, _ in batches)


def test_epochs_differ_and_repeat(toy: Dataset) -> None:
    loader = make(toy)
    first, second = list(copies(loader)), list(copies(loader))
    assert not equal(first, second)
    again = make(toy)
    assert equal(first, list(copies(again))) and equal(second, list(copies(again)))


def test_threads_change_nothing(toy: Dataset) -> None:
    """Three threads for four batches, five of which one has nothing to do, and one that is not to be."""
    plain = list(copies(make(toy, ahead=0)))
    for ahead, threads in ((3, 1), (1, 2), (2, 3), (1, 5), (0, 2)):
        assert equal(plain, list(copies(make(toy, ahead=ahead, threads=threads))))


@pytest.mark.parametrize(("ahead", "threads"), [(0, 1), (1, 1), (3, 1), (1, 3)])
@pytest.mark.parametrize("stop_at", [0, 1, 2, 3, 4, 5, 7, 8])
def test_resume_anywhere_yields_the_next_eight_batches(toy: Dataset, ahead: int, threads: int, stop_at: int) -> None:
    """Epochs have 4 batches: first, middle, last, and across the epoch's end."""
    whole = make(toy, ahead=ahead, threads=threads)
    stream = [batch for _ in range(4) for batch in copies(whole)]
    stopped = make(toy, ahead=ahead, threads=threads)
    for epoch in range(2):
        for number, _ in enumerate(stopped):
            if epoch * 4 + number + 1 == stop_at:
                break
        if epoch * 4 + 4 >= stop_at:
            break
    if stop_at == 0:
        stopped = make(toy, ahead=ahead, threads=threads)
    resumed = make(toy, ahead=ahead, threads=threads)
    resumed.load_state_dict(stopped.state_dict())
    following = [batch for _ in range(3) for batch in copies(resumed)][:8]
    assert equal(following, stream[stop_at : stop_at + 8])
    stopped.close()
    resumed.close()


def test_a_batch_counts_as_consumed_once_yielded(toy: Dataset) -> None:
    loader = make(toy)
    assert loader.state_dict() == {"version": 1, "epoch": 0, "batch": 0}
    for number, _ in enumerate(loader):
        expected = (1, 0) if number == 3 else (0, number + 1)
        assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == expected


def test_state_of_another_version_is_refused(toy: Dataset) -> None:
    with pytest.raises(ValueError, match=r"loader state: version 2 cannot be resumed .* start it anew"):
        make(toy).load_state_dict({"version": 2, "epoch": 0, "batch": 0})


def test_position_that_does_not_exist_is_refused(toy: Dataset) -> None:
    with pytest.raises(ValueError, match="epoch 0 batch 4 does not exist; an epoch here has 4 batches"):
        make(toy).load_state_dict({"version": 1, "epoch": 0, "batch": 4})


def test_an_error_in_the_thread_reaches_the_caller_with_its_traceback(
    toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no such pixel")

    monkeypatch.setattr("datasets.loader.apply_plan", broken)
    loader = make(toy)
    with pytest.raises(RuntimeError, match="no such pixel") as caught:
        list(loader)
    text = "".join(traceback.format_exception(caught.value))
    assert "in broken" in text and "_prepare" in text
    assert "in the loader's thread, preparing batch 0 of epoch 0" in text
    assert not loader_threads()


def test_close_leaves_no_thread(toy: Dataset) -> None:
    loader = make(toy)
    iterator = iter(loader)
    next(iterator)
    assert loader_threads()
    loader.close()
    assert not loader_threads()


@pytest.mark.parametrize("threads", [1, 3])
def test_leaving_a_loop_leaves_no_thread(threads: int, toy: Dataset) -> None:
    for _ in make(toy, threads=threads):
        break
    assert not loader_threads()


def test_who_changes_a_batchs_labels_changes_no_other_epoch(toy: Dataset) -> None:
    loader = make(toy, train=False)
    plain = list(copies(loader))
    for batch in loader:
        batch.label_a.fill_(2)
        batch.lam.fill_(0)
    assert equal(list(copies(loader)), plain)


def test_slots_are_reused(toy: Dataset) -> None:
    for threads in (1, 2):
        loader = make(toy, ahead=1, threads=threads, batch_size=5)
        assert len({batch.images.data_ptr() for batch in loader}) <= 2 * threads < len(loader)


def test_class_subset_and_limits(toy: Dataset) -> None:
    spec = run_spec({"data.classes": [0, 2], "data.limit_train": 10, "data.limit_eval": 7})
    rows = select_rows(spec.data, toy)
    assert rows.classes.tolist() == [0, 2]
    assert np.bincount(rows.train.labels).tolist() == [5, 5]
    assert sorted(np.bincount(rows.test.labels).tolist()) == [3, 4]
    assert (toy.train.labels[rows.train.index] == rows.classes[rows.train.labels]).all()


EVERYTHING = {
    "pad_crop": 2,
    "hflip_prob": 0.5,
    "jitter": (0.4, 0.4, 0.4, 0.2),
    "rotate_deg": 30.0,
    "erase_prob": 0.5,
    "mix": "cutmix",
    "mix_alpha": 1.0,
}


def on_toy(toy: Dataset, spec: AugmentSpec | None = None, **how: object) -> Loader:
    """A loader of the toy's training images."""
    rows = select_rows(run_spec().data, toy).train
    settings: dict[str, object] = {"batch_size": 16, "seed": 3, "train": True, "ahead": 2, **how}
    return Loader(toy.train, rows, spec or augment(**EVERYTHING), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", ["bilinear", "bicubic", "bicubic_opencv"])
def test_batches_are_resized_then_augmented(toy: Dataset, rule: str) -> None:
    """The plan is drawn for the resized side; windows, boxes and partners are those of resized images."""
    spec = augment(**{**EVERYTHING, "train_crop": 10})
    resizer = Resizer(rule, 8, 12)  # type: ignore[arg-type]
    table = normalization(spec, toy.train.manifest, training=True).table
    order = epoch_order(3, 0, 60)
    for number, batch in enumerate(copies(on_toy(toy, spec, image_size=12, resize=rule), limit=2)):
        index = order[16 * number : 16 * number + 16]
        assert batch[4].tolist() == index.tolist()
        resized = np.empty((16, 12, 12, 3), np.uint8)
        resizer.fill(toy.train.images, index, resized)
        plan = draw_plan(spec, 3, 0, number, np.arange(16, dtype=np.int32), 12)
        assert (batch[0].numpy() == reference.apply_plan(resized, plan, table)).all()
        assert batch[0].shape == (16, 3, 10, 10)


def test_resized_images_go_through_jpeg_before_anything_else(toy: Dataset) -> None:
    spec = augment(normalize="none")
    resized = np.empty((60, 16, 16, 3), np.uint8)
    Resizer("bicubic_opencv", 8, 16, 50).fill(toy.train.images, np.arange(60, dtype=np.int32), resized)
    loader = on_toy(toy, spec, train=False, image_size=16, resize="bicubic_opencv", jpeg_quality=50)
    found = torch.cat([batch[0] for batch in copies(loader)])
    assert torch.equal((found * 255).round().to(torch.uint8), torch.from_numpy(resized).permute(0, 3, 1, 2))
    assert (found.shape[0], len(loader)) == (60, 4), "the short last batch too"


def test_a_resized_evaluation_does_not_hang_on_the_batch_size_or_the_thread(toy: Dataset) -> None:
    passes = [
        torch.cat([batch[0] for batch in copies(on_toy(toy, train=False, image_size=12, resize="bicubic", **how))])
        for how in ({}, {"batch_size": 7}, {"ahead": 0}, {"batch_size": 60})
    ]
    assert all(torch.equal(passes[0], one) for one in passes[1:])


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("stop_at", [1, 4, 6])
def test_a_resized_augmented_loader_resumes_to_the_same_bits(toy: Dataset, ahead: int, stop_at: int) -> None:
    how = {"image_size": 12, "resize": "bicubic", "jpeg_quality": 90, "ahead": ahead}
    whole = on_toy(toy, **how)
    stream = [batch for _ in range(3) for batch in copies(whole)]
    resumed = on_toy(toy, **how)
    resumed.load_state_dict({"version": 1, "epoch": stop_at // 4, "batch": stop_at % 4})
    following = [batch for _ in range(3) for batch in copies(resumed)]
    assert equal(following[:6], stream[stop_at : stop_at + 6])


def test_an_augmented_evaluation_sees_the_rows_in_order_and_the_same_bits_in_every_pass(toy: Dataset) -> None:
    loader = on_toy(toy, train=False, augmented=True)
    first, second = list(copies(loader)), list(copies(loader))
    assert torch.cat([batch[4] for batch in first]).tolist() == list(range(60))
    assert equal(first, second)
    plain = list(copies(on_toy(toy, train=False)))
    assert all((one[0] != other[0]).any() for one, other in zip(first, plain, strict=True))
    table = normalization(augment(**EVERYTHING), toy.train.manifest, training=True).table
    plan = draw_plan(augment(**EVERYTHING), 3, EVALUATION_EPOCH, 1, np.arange(16, 32, dtype=np.int32), 8)
    assert (first[1][0].numpy() == reference.apply_plan(toy.train.images, plan, table)).all()


def test_an_augmented_evaluation_shares_no_draw_with_training(toy: Dataset) -> None:
    """With the same images in the same places, no epoch's plan is the evaluation's."""
    rows = np.arange(16, dtype=np.int32)
    evaluation = draw_plan(augment(**EVERYTHING), 3, EVALUATION_EPOCH, 0, rows, 8)
    for epoch, batch in itertools.product(range(20), range(4)):
        training = draw_plan(augment(**EVERYTHING), 3, epoch, batch, rows, 8)
        assert (training.jitter != evaluation.jitter).any() and (training.turn != evaluation.turn).any()


def test_training_images_unaugmented_are_shuffled_and_plain(toy: Dataset) -> None:
    batch = next(copies(on_toy(toy, augment(normalize="none", pad_crop=2), augmented=False)))
    images = toy.train.images[batch[4].numpy()].transpose(0, 3, 1, 2)
    assert torch.equal((batch[0] * 255).round().to(torch.uint8), torch.from_numpy(images))
    assert batch[4].tolist() != sorted(batch[4].tolist())


def test_an_evaluation_sees_whole_images_where_training_sees_windows(toy: Dataset) -> None:
    spec = augment(normalize="none", train_crop=5)
    shapes = [next(copies(on_toy(toy, spec, **how)))[0].shape for how in ({}, {"train": False})]
    assert [tuple(shape) for shape in shapes] == [(16, 3, 5, 5), (16, 3, 8, 8)]
    whole = next(copies(on_toy(toy, spec, train=False)))[0]
    assert ((whole * 255).round().numpy() == toy.train.images[:16].transpose(0, 3, 1, 2)).all()


def test_training_images_may_be_normalised_otherwise(toy: Dataset) -> None:
    spec = augment(normalize="dataset", train_normalize="none")
    largest = [
        float(torch.cat([batch[0] for batch in copies(on_toy(toy, spec, **how))]).max())
        for how in ({}, {"train": False}, {"train": False, "augmented": True})
    ]
    assert largest[0] <= 1 < largest[1] and largest[2] == largest[0]


def test_dropping_the_last_batch_leaves_whole_ones(toy: Dataset) -> None:
    loader = on_toy(toy, drop_last=True)
    first, second = list(copies(loader)), list(copies(loader))
    assert [len(batch[0]) for batch in first + second] == [16] * 6 and len(loader) == 3
    kept = list(copies(on_toy(toy)))
    assert equal(first, kept[:3]), "the others are as they would be"
    assert loader.state_dict() == {"version": 1, "epoch": 2, "batch": 0}
    with pytest.raises(ValueError, match="epoch 0 batch 3 does not exist; an epoch here has 3 batches"):
        loader.load_state_dict({"version": 1, "epoch": 0, "batch": 3})


def test_dropping_the_only_batch_is_refused(toy: Dataset) -> None:
    message = r"drop_last: 60 images are less than one batch of 61, .* keep the last batch"
    with pytest.raises(ValueError, match=message):
        on_toy(toy, drop_last=True, batch_size=61)
    assert len(on_toy(toy, drop_last=True, batch_size=60)) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"image_size": 12}, r"data\.image_size: 12 pixels, but the images of toy have 8 and data\.resize is none"),
        (
            {"image_size": 6, "resize": "bicubic_opencv"},
            r"data\.resize: bicubic_opencv only enlarges, .* of toy .* 8 to 6",
        ),
        ({"jpeg_quality": 90}, r"data\.jpeg_quality: must be null where data\.resize is none"),
    ],
)
def test_sizes_that_cannot_be_are_refused(toy: Dataset, how: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_toy(toy, **how)
