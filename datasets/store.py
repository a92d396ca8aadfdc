"""`ArrayStore`: one prepared split as memory-mapped arrays with a manifest that says what they must hold.

Layout: `<data>/<name>/{train,test}/{images.npy,labels.npy,manifest.json}`. `prepare.py` writes it once; everything
else opens it read-only. Damage is refused; content that is intact but is not the published one is accepted and
named so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

FORMAT = 1
SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")
NAME = r"^[a-z0-9][a-z0-9_-]{0,99}$"
"""What a data set may be called: its name is a folder's."""
NOT_PUBLISHED = "not the published data"


class DataError(Exception):
    """Data a user gave cannot be used; the message names the file and the mend."""


class Manifest(BaseModel):
    """What a prepared split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: int
    dataset: str
    split: Literal["train", "test"]
    num_images: int
    image_size: int
    """Side of the square images in pixels."""
    classes: tuple[str, ...]
    """Class names; a label is a position in this list."""
    mean: tuple[float, float, float]
    """Per-channel mean of the train split, pixels scaled to [0, 1]."""
    std: tuple[float, float, float]
    """Per-channel population standard deviation of the train split, pixels scaled to [0, 1]."""
    images_sha256: str
    """Of the uint8 pixels [N, S, S, 3] in C order."""
    labels_sha256: str
    """Of the labels as little-endian int16."""
    content_sha256: str
    """Over both splits: the data set's identity, see `content_hash`."""
    published: bool
    """Whether the content is the published one."""
    source: str
    """Name of the file or folder it was read from."""
    source_sha256: str | None
    """Of the archive; None for folders and for data that come with a dependency."""


def content_hash(train_images: str, train_labels: str, test_images: str, test_labels: str) -> str:
    """The identity of a data set: SHA-256 over the hex hashes of its four arrays, joined by newlines."""
    return hashlib.sha256("\n".join((train_images, train_labels, test_images, test_labels)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayStore:
    """One prepared split."""

    images: NDArray[np.uint8]
    """[N, S, S, 3] uint8, a read-only memory map."""
    labels: NDArray[np.int16]
    """[N] int16."""
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path, *, verify: bool = True) -> ArrayStore:
        """Opens `<data>/<name>/<split>`.

        Args:
            folder: the split's folder.
            verify: hash the arrays and compare, which reads them whole; shapes and dtypes are always compared.

        Raises:
            DataError: the folder does not hold what its manifest says.
        """
        manifest = _read_manifest(folder)
        images = _map(folder / "images.npy", np.uint8, (manifest.num_images, *[manifest.image_size] * 2, 3))
        labels = np.array(_map(folder / "labels.npy", np.int16, (manifest.num_images,)))
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(manifest.classes):
            raise _damaged(folder / "labels.npy", f"labels outside 0..{len(manifest.classes) - 1}")
        if verify:
            for name, array, expected in (
                ("images.npy", images, manifest.images_sha256),
                ("labels.npy", labels, manifest.labels_sha256),
            ):
                if hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() != expected:
                    raise _damaged(folder / name, "content does not match the manifest's SHA-256")
        return cls(images=images, labels=labels, manifest=manifest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Both splits of one data set."""

    train: ArrayStore
    test: ArrayStore

    @property
    def manifest(self) -> Manifest:
        """The train split's manifest; classes, mean, std and content hash are the same in both."""
        return self.train.manifest


def check_name(name: str) -> None:
    """Refuses a name that is no plain folder name.

    Raises:
        DataError: it is not.
    """
    if name == "downloads" or not re.fullmatch(NAME, name):
        raise DataError(
            f"{json.dumps(name)} cannot be the name of a data set: use lower-case letters, digits, '-' and '_' "
            '("downloads" is taken)'
        )


def open_dataset(data_path: Path, name: str, *, verify: bool = True) -> Dataset:
    """Opens both splits of `<data_path>/<name>`.

    Raises:
        DataError: not prepared, damaged, or two splits of different data sets.
    """
    check_name(name)
    folder = data_path / name
    if not folder.is_dir():
        raise DataError(
            f"{name} is not prepared in {data_path}; run: python -m datasets.prepare {name} --data {data_path}"
        )
    train, test = (ArrayStore.open(folder / split, verify=verify) for split in SPLITS)
    if train.manifest.content_sha256 != test.manifest.content_sha256:
        raise _damaged(folder, "train and test splits come from different data sets")
    return Dataset(train=train, test=test)


def read_manifest(data_path: Path, name: str, split: str = "train") -> Manifest | None:
    """The manifest of a prepared split without touching the arrays; None where nothing is prepared.

    Raises:
        DataError: the folder is there but its manifest is damaged.
    """
    check_name(name)
    return _read_manifest(data_path / name / split) if (data_path / name).is_dir() else None


def _read_manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    if not path.is_file():  # also a pipe, which would be waited for
        raise _damaged(path, "missing")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except (ValidationError, ValueError) as error:
        raise _damaged(path, f"not a manifest of this project ({error.__class__.__name__})") from None
    if manifest.format != FORMAT:
        raise _damaged(path, f"format {manifest.format}, this version reads format {FORMAT}")
    return manifest


def _map(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    if not path.is_file():
        raise _damaged(path, "missing")
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            found, fortran, held = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        if held != dtype or found != shape or fortran:
            raise ValueError(f"{held} {list(found)}, the manifest says {np.dtype(dtype)} {list(shape)}")
        return np.asarray(np.memmap(path, dtype, mode="r", offset=start, shape=shape))
    except (ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"{path}: {error.strerror}") from error
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); mend that, then run the same command again"
        ) from error


def _damaged(path: Path, why: str) -> DataError:
    folder = path.parent.parent if path.suffix else path  # of the data set
    return DataError(
        f"{path}: {why}; the prepared data are damaged. Prepare them again (images of your own with --source): "
        f"python -m datasets.prepare {folder.name} --data {folder.parent} --replace"
    )
