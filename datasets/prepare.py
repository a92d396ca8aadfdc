"""Turns a published archive or an image folder into memory-mapped arrays, once and atomically.

    python -m datasets.prepare cifar100 tiny-imagenet-200 [--source FILE_OR_DIR] [--data DIR]

The arrays are written below a staging name, synced, and renamed into place: `<data>/<name>` is whole or absent.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from datasets.download import download
from datasets.durable import sync_file, sync_folder
from datasets.published import PUBLISHED
from datasets.source_types import Source, SplitSource
from datasets.sources import open_source
from datasets.store import (
    FORMAT,
    NOT_PUBLISHED,
    SPLITS,
    DataError,
    Dataset,
    Manifest,
    check_name,
    content_hash,
    open_dataset,
)
from datasets.terminal import Terminal, plain


def prepare(
    name: str,
    source: Path | None,
    data_path: Path,
    *,
    image_size: int | None = None,
    replace: bool = False,
    console: Console | None = None,
) -> Dataset:
    """Prepares data set `name` below `data_path` and returns it opened and verified.

    Content that is there already is left alone. Two processes may do this at once: the second waits and finds it done.

    Raises:
        DataError: bad source, damaged or other content in place, no room; nothing half-written is left behind.
    """
    console = console or Terminal(stderr=True)
    check_name(name)
    with _no_room_is_told(data_path):
        data_path.mkdir(parents=True, exist_ok=True)
        with _lock(data_path, name, console):
            if source is None and not replace and (data_path / name).is_dir():
                return open_dataset(data_path, name)
            return _prepare_locked(name, source, data_path, image_size, replace, console)


def _prepare_locked(
    name: str, source: Path | None, data_path: Path, image_size: int | None, replace: bool, console: Console
) -> Dataset:
    for leftover in data_path.glob(f".staging-{name}.*"):  # of a killed process: we hold the lock
        shutil.rmtree(leftover)
    if source is None and name != "digits":
        source = _fetch(name, data_path, console)
    opened = open_source(name, source, image_size=image_size)
    staging = data_path / f".staging-{name}.{uuid.uuid4().hex[:8]}"
    try:
        manifest = _write(name, opened, source, staging, console)
        target = data_path / name
        if target.is_dir() and not replace:
            there = open_dataset(data_path, name)
            if there.manifest.content_sha256 != manifest.content_sha256:
                raise DataError(
                    f"{target} holds other content ({there.manifest.content_sha256[:16]} from {there.manifest.source}; "
                    f"{source} has {manifest.content_sha256[:16]}). Add --replace, or prepare into another --data DIR"
                )
            return there
        _rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return open_dataset(data_path, name)


def _rename(staging: Path, target: Path) -> None:
    old = target.with_name(f".staging-{target.name}.{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.rename(old)
    staging.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    """What was seen while a split was written."""

    num_images: int
    image_size: int
    images_sha256: str
    labels_sha256: str
    histogram: NDArray[np.int64]
    """[3, 256]: how often each value occurs in each channel."""


def _write(name: str, source: Source, path: Path | None, staging: Path, console: Console) -> Manifest:
    """Writes both splits below `staging` and returns the train split's manifest."""
    written = {
        "train": _write_split(staging / "train", source.train, f"{name} train", console),
        "test": _write_split(staging / "test", source.test, f"{name} test", console),
    }
    train, test = written["train"], written["test"]
    content = content_hash(train.images_sha256, train.labels_sha256, test.images_sha256, test.labels_sha256)
    mean, std = _statistics(train.histogram)
    archive_sha256 = None
    if path is not None and path.is_file():
        with path.open("rb") as file:
            archive_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    published = name in PUBLISHED and (source.known_files or PUBLISHED[name].content_sha256 == content)
    manifests = [
        Manifest(
            format=FORMAT,
            dataset=name,
            split=split,
            num_images=written[split].num_images,
            image_size=written[split].image_size,
            classes=source.classes,
            mean=mean,
            std=std,
            images_sha256=written[split].images_sha256,
            labels_sha256=written[split].labels_sha256,
            content_sha256=content,
            published=published,
            source=path.name if path is not None else "scikit-learn",
            source_sha256=archive_sha256,
        )
        for split in SPLITS
    ]
    if train.image_size != test.image_size:
        raise DataError(f"{path}: train images are {train.image_size} pixels wide, test images {test.image_size}")
    for manifest in manifests:
        with (staging / manifest.split / "manifest.json").open("wb") as file:
            file.write(manifest.model_dump_json(indent=1).encode())
            sync_file(file)
        sync_folder(staging / manifest.split)
    sync_folder(staging)
    return manifests[0]


def _write_split(folder: Path, split: SplitSource, what: str, console: Console) -> _Written:
    """Streams blocks into images.npy: written, not memory-mapped, so that a full disk is an error and not a signal."""
    folder.mkdir(parents=True)
    total = len(split.labels)
    digest = hashlib.sha256()
    histogram = np.zeros((3, 256), np.int64)
    side = 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (folder / "images.npy").open("wb") as file, Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=total)
        for block in split.blocks():
            if not side:
                side = block.shape[1]
                _write_header(file, np.uint8, (total, side, side, 3))
            data = np.ascontiguousarray(block)
            file.write(data.data)
            digest.update(data.data)
            for channel in range(3):
                histogram[channel] += np.bincount(block[..., channel].ravel(), minlength=256)
            progress.advance(task, len(block))
        sync_file(file)
    labels = split.labels.astype("<i2")
    with (folder / "labels.npy").open("wb") as file:
        _write_header(file, np.int16, (total,))
        file.write(labels.tobytes())
        sync_file(file)
    return _Written(
        num_images=total,
        image_size=side,
        images_sha256=digest.hexdigest(),
        labels_sha256=hashlib.sha256(labels.tobytes()).hexdigest(),
        histogram=histogram,
    )


def _write_header(file: object, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})  # type: ignore[arg-type]


Triple = tuple[float, float, float]


def _statistics(histogram: NDArray[np.int64]) -> tuple[Triple, Triple]:
    """Per-channel mean and population standard deviation of pixels scaled to [0, 1], exact from the counts."""
    values = np.arange(256) / 255
    count = histogram.sum(axis=1)
    mean = histogram @ values / count
    variance = histogram @ values**2 / count - mean**2
    std = np.sqrt(np.maximum(variance, 0))
    return (float(mean[0]), float(mean[1]), float(mean[2])), (float(std[0]), float(std[1]), float(std[2]))


def _fetch(name: str, data_path: Path, console: Console) -> Path:
    published = PUBLISHED.get(name)
    if published is None or published.url is None or published.archive_md5 is None:
        raise DataError(
            f"{name} is no published data set (those are {', '.join(PUBLISHED)}); "
            "for images of your own add --source FOLDER_OR_ZIP with train/<class>/ and test/<class>/ in it"
        )
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(published.url, total=None)
        return download(
            published.url,
            published.archive_md5,
            data_path / "downloads",
            lambda have, total: progress.update(task, completed=have, total=total),
        )


@contextmanager
def _lock(data_path: Path, name: str, console: Console) -> Iterator[None]:
    lock = FileLock(data_path / f".lock-{name}")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        console.print(f"{name}: another process is preparing it in {data_path}; waiting")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _no_room_is_told(data_path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        free = shutil.disk_usage(data_path).free if data_path.exists() else 0
        raise DataError(
            f"--data {data_path}: cannot write there ({os.strerror(error.errno or 0)}; {free:,} bytes free). "
            "Nothing half-written is left; make room or choose another --data DIR"
        ) from None


def describe(data: Dataset) -> str:
    """What is in a prepared data set, for people: counts, hashes, mean and standard deviation."""
    manifest = data.manifest
    numbers = [" ".join(f"{value:.6f}" for value in triple) for triple in (manifest.mean, manifest.std)]
    mark = "the published data" if manifest.published else NOT_PUBLISHED
    lines = [
        f"{manifest.dataset}: {len(data.train.labels):,} train and {len(data.test.labels):,} test images, "
        f"{manifest.image_size}x{manifest.image_size}, {len(manifest.classes)} classes; {mark}",
        f"  content      {manifest.content_sha256}",
        f"  train images {manifest.images_sha256}",
        f"  train labels {manifest.labels_sha256}",
        f"  test images  {data.test.manifest.images_sha256}",
        f"  test labels  {data.test.manifest.labels_sha256}",
        f"  mean {numbers[0]}   std {numbers[1]}",
        f"  from {manifest.source}" + (f" (SHA-256 {manifest.source_sha256})" if manifest.source_sha256 else ""),
    ]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m datasets.prepare`."""
    cli = argparse.ArgumentParser(prog="python -m datasets.prepare", description=(__doc__ or "").splitlines()[0])
    cli.add_argument("names", nargs="+", metavar="NAME", help=f"{', '.join(PUBLISHED)}, or any name for own images")
    cli.add_argument("--source", type=Path, help="archive or folder to read; published data are downloaded without it")
    cli.add_argument("--data", type=Path, default=Path("data"), help="where prepared data live (default: data)")
    cli.add_argument("--image-size", type=int, help="own images: resize to this side in pixels")
    cli.add_argument("--replace", action="store_true", help="prepare again and replace what is there")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0 when everything asked for is prepared, 2 when not."""
    options = parser().parse_args(argv)
    if options.source is not None and len(options.names) > 1:
        print("--source goes with one NAME; prepare the others in calls of their own", file=sys.stderr)
        return 2
    for name in options.names:
        try:
            data = prepare(name, options.source, options.data, image_size=options.image_size, replace=options.replace)
        except DataError as error:
            print(plain(f"datasets.prepare: {error}"), file=sys.stderr)
            return 2
        print(plain(describe(data)))
        print(f"  in {options.data / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
