"""A program that trains one run again and again, and kills it at its first write, its second, and so on.

    python killing.py SPEC DATA ROOT

`ROOT/whole` is the undisturbed run, `ROOT/<n>` the one that was killed at its n-th write and then continued. Prints a
line for every kill: its number, and what was being written. All are children of one process, which imports torch once.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import DropPath
from torch import nn
from toy import exec_spec

from datasets.loader import Loader
from datasets.store import open_dataset
from datasets.subset import Rows
from trainable import models, opening, provenance
from trainable import storage as storage_module
from trainable.attempt import Attempt
from trainable.optim import build_optimizer
from trainable.spec import RunSpec
from trainable.storage import Storage


class Drawing(nn.Module):
    """A small model that draws: dropout, and stochastic depth."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.2))
        self.path = DropPath(0.3)
        self.head = nn.Linear(8 * size * size, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] to logits [B, C]."""
        found = self.stem(images)
        logits: torch.Tensor = self.head((found + self.path(self.block(found))).flatten(1))
        return logits


def in_child(act: Callable[[], None]) -> int:
    """Acts in a forked child. Returns its exit code, negative where a signal ended it."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def warm_up(spec: RunSpec, data: Path) -> None:
    """Compiles, imports and asks what every child would have to by itself. No backward pass: torch refuses one in the
    children of a process that made one."""
    import sklearn.metrics  # noqa: F401

    provenance.describe(torch.device("cpu"))
    store = open_dataset(data, spec.data.dataset).train
    rows = Rows(index=np.arange(8, dtype=np.int32), labels=store.labels[:8].astype(np.int64))
    for train in (True, False):
        list(Loader(store, rows, spec.augment, batch_size=8, seed=0, train=train, ahead=0))
    build_optimizer(spec.optim, models.build_model(spec.model, 3, spec.data.image_size))


def prepare(spec: RunSpec, data: Path) -> None:
    """Makes this process fit to be forked into many that train the run."""
    torch.set_num_threads(1)
    models.MODELS[spec.model.name] = Drawing
    opening.reset_peak_memory = lambda device: None  # a garbage collection each, of a process that lives a second
    os.fsync = lambda descriptor: None  # processes die here, not the machine
    warm_up(spec, data)


def train(spec: RunSpec, data: Path, results: Path, **how: Any) -> None:
    """Trains to the end."""
    attempt = Attempt(spec, exec_spec(data, **how), Storage(str(results)))
    while not attempt.done:
        attempt.advance(0.0)


def at_write(last: int, act: Callable[[str], None]) -> None:
    """Acts when this process is in the middle of its n-th write (or is about to delete, for the n-th time)."""
    written: list[str] = []
    place, delete, sync = Storage._place, Storage.delete, storage_module.sync_file

    def noting(self: Storage, base: Path, path: str, content: bytes, *, replace: bool) -> None:
        written.append(path)
        place(self, base, path, content, replace=replace)

    def deleting(self: Storage, path: str) -> None:
        written.append(f"delete {path}")
        if len(written) == last:
            act(written[-1])
        delete(self, path)

    def syncing(file: Any) -> None:  # the file is written, and not yet in its place
        if len(written) == last:
            act(written[-1])
        sync(file)

    Storage._place, Storage.delete, storage_module.sync_file = noting, deleting, syncing  # type: ignore[method-assign]


def killed_at_write(last: int, spec: RunSpec, data: Path, results: Path) -> None:
    """Trains, saving after every batch, and dies at the n-th write."""

    def kill(path: str) -> None:
        print(last, path, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    at_write(last, kill)
    train(spec, data, results, save_every_s=1e-9)


def main(spec: RunSpec, data: Path, root: Path) -> None:
    """See the module."""
    prepare(spec, data)
    assert in_child(lambda: train(spec, data, root / "whole")) == 0
    for number in range(1, 1000):
        results = root / str(number)
        killed = in_child(partial(killed_at_write, number, spec, data, results))
        if killed == 0:
            return
        assert killed == -signal.SIGKILL, killed
        assert in_child(partial(train, spec, data, results)) == 0


if __name__ == "__main__":
    main(RunSpec.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
