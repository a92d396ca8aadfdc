"""The loader: what it yields, where it stands, and that its thread neither hangs nor stays."""

from __future__ import annotations

import dataclasses
import threading
import traceback
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from toy import run_spec

from datasets.loader import Loader
from datasets.store import Dataset
from datasets.subset import select_rows

MIXED = {"augment.mix": "cutmix", "augment.mix_alpha": 1.0, "augment.pad_crop": 1, "augment.hflip_prob": 0.5}
Copy = tuple[torch.Tensor, ...]


def make(toy: Dataset, *, train: bool = True, ahead: int = 2, batch_size: int = 16, **fields: object) -> Loader:
    spec = run_spec({**(MIXED if train else {}), **fields})
    rows = select_rows(spec.data, toy)
    store, chosen = (toy.train, rows.train) if train else (toy.test, rows.test)
    return Loader(store, chosen, spec.augment, batch_size=batch_size, seed=3, train=train, ahead=ahead)


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


def test_the_thread_changes_nothing(toy: Dataset) -> None:
    assert equal(list(copies(make(toy, ahead=0))), list(copies(make(toy, ahead=3))))


@pytest.mark.parametrize("ahead", [0, 1, 3])
@pytest.mark.parametrize("stop_at", [0, 1, 2, 3, 4, 5, 7, 8])
def test_resume_anywhere_yields_the_next_eight_batches(toy: Dataset, ahead: int, stop_at: int) -> None:
    """Epochs have 4 batches: first, middle, last, and across the epoch's end."""
    whole = make(toy, ahead=ahead)
    stream = [batch for _ in range(4) for batch in copies(whole)]
    stopped = make(toy, ahead=ahead)
    for epoch in range(2):
        for number, _ in enumerate(stopped):
            if epoch * 4 + number + 1 == stop_at:
                break
        if epoch * 4 + 4 >= stop_at:
            break
    if stop_at == 0:
        stopped = make(toy, ahead=ahead)
    resumed = make(toy, ahead=ahead)
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


def test_leaving_a_loop_leaves_no_thread(toy: Dataset) -> None:
    for _ in make(toy):
        break
    assert not loader_threads()


def test_slots_are_reused(toy: Dataset) -> None:
    addresses = {batch.images.data_ptr() for batch in make(toy, ahead=2)}
    assert len(addresses) <= 3


def test_class_subset_and_limits(toy: Dataset) -> None:
    spec = run_spec({"data.classes": [0, 2], "data.limit_train": 10, "data.limit_eval": 7})
    rows = select_rows(spec.data, toy)
    assert rows.classes.tolist() == [0, 2]
    assert np.bincount(rows.train.labels).tolist() == [5, 5]
    assert sorted(np.bincount(rows.test.labels).tolist()) == [3, 4]
    assert (toy.train.labels[rows.train.index] == rows.classes[rows.train.labels]).all()
