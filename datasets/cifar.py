"""Reads the published CIFAR python archives. Their pickles are never trusted: the unpickler knows only the three names
that those files hold, and gives each a stand-in that can do nothing else."""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np

from datasets.published import PUBLISHED
from datasets.source_types import (
    BLOCK_IMAGES,
    BROKEN_ARCHIVE,
    MAX_ARCHIVE_BYTES,
    MAX_MEMBER_BYTES,
    Block,
    Source,
    SplitSource,
    broken,
)
from datasets.store import DataError


class _Dtype:
    """Stands in for numpy.dtype; only uint8 is admitted."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        if code not in (b"u1", "u1"):
            raise pickle.UnpicklingError(f"an array of dtype {code!r} (only uint8 belongs there)")

    def __setstate__(self, _: object) -> None:
        pass


class _Array:
    """Stands in for numpy.ndarray; keeps shape and bytes of a C-ordered uint8 array."""

    value: Block

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, shape, dtype, fortran, raw = state
        if fortran or not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("an array that is not C-ordered uint8")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape)


def _reconstruct(*_: object) -> _Array:
    return _Array()


_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _CifarUnpickler(pickle.Unpickler):
    """Admits the names that the published files hold, each replaced by a stand-in that can do nothing else."""

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no published CIFAR file does") from None


_MAX_MEMO = 1_000_000
"""The published files number 50,024 objects at most."""
_MAX_MEMBERS = 1_000
"""The published archives have nine."""
_MAX_HEADER_BYTES = 1 << 20
_HEADER_TYPES = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


class _Member(tarfile.TarInfo):
    """A member whose header is checked before tarfile does what it asks: a long name or attributes are read into memory
    whole, and a member that is not wanted is unpacked all the same in order to skip it."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.size > (_MAX_HEADER_BYTES if member.type in _HEADER_TYPES else MAX_MEMBER_BYTES):
            raise _TooLarge(f"a member declares {member.size:,} bytes")
        return member


class _TooLarge(Exception):
    """The archive would unpack to more than a published one."""


_CIFAR_FILES = {
    "cifar10": (
        "cifar-10-batches-py",
        [f"data_batch_{i}" for i in range(1, 6)],
        "test_batch",
        "batches.meta",
        b"labels",
        b"label_names",
    ),
    "cifar100": ("cifar-100-python", ["train"], "test", "meta", b"fine_labels", b"fine_label_names"),
}


def is_archive(name: str, path: Path) -> bool:
    """Whether a source claims to be the published archive of `name` or its unpacked folder, whole or not.

    That is any file but a zip, which the archive never is, and any folder but one that has a folder `train` somewhere
    and none of the archive's files.
    """
    if not path.is_dir():
        return not zipfile.is_zipfile(path)
    folder, train_names, test_name, meta_name, *_ = _CIFAR_FILES[name]
    members = [home / member for home in (path, path / folder) for member in (*train_names, test_name, meta_name)]
    return any(map(Path.is_file, members)) or not any(found.is_dir() for found in path.rglob("train"))


def read_cifar(name: str, path: Path) -> Source:
    """Opens `cifar10` or `cifar100`: an archive of any tar compression, or its unpacked folder.

    Raises:
        DataError: truncated, another archive, or a pickle that is not one of the published kind.
    """
    folder, train_names, test_name, meta_name, label_key, names_key = _CIFAR_FILES[name]
    files = _read_members(name, path, [*train_names, test_name, meta_name], folder)
    meta = _unpickle(path, meta_name, files[meta_name])
    names = meta.get(names_key)
    if not isinstance(names, list) or not names or not all(isinstance(text, bytes) for text in names):
        raise DataError(f"{path}: {meta_name} holds no list of class names; use the published python archive of {name}")
    train = _cifar_split(path, {key: files[key] for key in train_names}, label_key, len(names))
    test = _cifar_split(path, {test_name: files[test_name]}, label_key, len(names))
    md5 = PUBLISHED[name].member_md5
    known = bool(md5) and all(
        hashlib.md5(content, usedforsecurity=False).hexdigest() == md5[key] for key, content in files.items()
    )
    return Source(classes=tuple(text.decode() for text in names), train=train, test=test, known_files=known)


def _cifar_split(path: Path, files: dict[str, bytes], label_key: bytes, num_classes: int) -> SplitSource:
    images, labels = [], []
    for member, content in files.items():
        entry = _unpickle(path, member, content)
        data, label = entry.get(b"data"), entry.get(label_key)
        if not isinstance(data, _Array) or data.value.ndim != 2 or data.value.shape[1] != 3 * 32 * 32:
            raise DataError(f"{path}: {member} holds no array of 32x32 colour images")
        if not isinstance(label, list) or len(label) != len(data.value):
            raise DataError(f"{path}: {member} does not hold one label for each of its {len(data.value)} images")
        if not all(isinstance(number, int) and 0 <= number < num_classes for number in label):
            raise DataError(f"{path}: {member} holds labels outside 0..{num_classes - 1}")
        images.append(data.value)
        labels.extend(label)

    def blocks() -> Iterator[Block]:
        for rows in images:
            for start in range(0, len(rows), BLOCK_IMAGES):
                chunk = rows[start : start + BLOCK_IMAGES]
                yield np.ascontiguousarray(chunk.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))

    return SplitSource(labels=np.array(labels, np.int16), blocks=blocks)


def _check_memo(content: bytes) -> None:
    """Refuses a pickle that numbers its objects beyond their count: the table for them would fill the memory.

    Raises:
        pickle.UnpicklingError: it does.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > _MAX_MEMO:
            raise pickle.UnpicklingError(f"it numbers an object {argument}")


def _unpickle(path: Path, member: str, content: bytes) -> dict[bytes, object]:
    try:
        _check_memo(content)
        entry = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # an arbitrary pickle can raise anything; all of it means the same to the user
        raise DataError(
            f"{path}: {member} is not a published CIFAR file: {error}. Nothing of it was run; get the archive anew"
        ) from None
    if not isinstance(entry, dict):
        raise DataError(f"{path}: {member} is not a published CIFAR file: a {type(entry).__name__} and not a dict")
    return entry


def _read_members(name: str, path: Path, wanted: list[str], folder: str) -> dict[str, bytes]:
    """The wanted files of a CIFAR archive (any tar compression) or of its unpacked folder."""
    if path.is_dir():
        home = path / folder if (path / folder).is_dir() else path
        files = {member: home / member for member in wanted if (home / member).is_file()}
        if large := [file for file in files.values() if file.stat().st_size > MAX_MEMBER_BYTES]:
            raise DataError(f"{large[0]}: {large[0].stat().st_size:,} bytes; it is no published file of {name}")
        found = {member: file.read_bytes() for member, file in files.items()}
    elif zipfile.is_zipfile(path):
        raise DataError(
            f"{path}: a zip, but {name} is read from the published python archive (a tar) or its folder {folder}; "
            "prepare class-per-folder images under a name of your own"
        )
    else:
        found = {}
        try:
            with tarfile.open(path, tarinfo=_Member) as archive:
                for number, member in enumerate(archive, 1):
                    if number > _MAX_MEMBERS or member.offset_data + member.size > MAX_ARCHIVE_BYTES:
                        raise _TooLarge(f"{number:,} members, and more than {member.offset_data:,} bytes")
                    base = member.name.rsplit("/", 1)[-1]
                    if member.isfile() and base in wanted and not member.issparse():
                        content = archive.extractfile(member)
                        assert content is not None
                        found[base] = content.read()
        except _TooLarge as error:
            raise DataError(
                f"{path}: {error}, which the published archive of {name} does not; nothing of it was kept, get it anew"
            ) from None
        except BROKEN_ARCHIVE as error:
            raise broken(path, error) from None
    missing = [member for member in wanted if member not in found]
    if missing:
        raise DataError(
            f"{path}: holds no {', '.join(missing)}; it is not the published python archive of {name} "
            f"(or its folder {folder}), or not the whole of it"
        )
    return found
