"""Reads image folders and zips of them, unpacked or not: Tiny-ImageNet's layout and any class-per-folder tree.

Nothing is extracted to disk; images are decoded by a few threads, in order.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.published import Published
from datasets.source_types import (
    BLOCK_BYTES,
    BLOCK_IMAGES,
    BROKEN_ARCHIVE,
    Block,
    Source,
    SplitSource,
    broken,
)
from datasets.store import DataError

_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF", "TIFF")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif", ".tif", ".tiff")
_MAX_IMAGE_BYTES = 64 << 20
"""Of an image file; four are held at once."""
_MAX_PIXELS = 50_000_000
"""Of an image before it is resized: 150 MB once decoded. A few kilobytes may declare a thousand times more."""
_MAX_ASPECT = 40
"""Resizing would stretch a strip of one pixel to one of gigabytes."""
_SIDES = range(4, 1025)
"""The sides of prepared images that a run can be told to train on (see `DataSpec.image_size`)."""


Folders = dict[str, list[str]]
"""Image files by class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tree:
    """The files of a folder or a zip."""

    origin: Path
    files: frozenset[str]
    """Paths with '/' below the root, hidden files left out."""
    read: Callable[[str], bytes]


def open_tree(path: Path) -> Tree:
    """Lists a folder or a zip. In a folder, a link to a file is that file.

    Raises:
        DataError: neither; or in a folder a link to a folder, or an image that is a pipe, a device or a broken link.
    """
    if path.is_dir():
        return Tree(origin=path, files=_visible(_files(path)), read=lambda name: _read_file(path, name))
    try:
        archive = zipfile.ZipFile(path)
    except BROKEN_ARCHIVE as error:
        raise broken(path, error) from None
    sizes = {info.filename: info.file_size for info in archive.infolist() if not info.is_dir()}

    def read(name: str) -> bytes:
        _check_size(path, name, sizes[name])
        try:
            return archive.read(name)
        except (*BROKEN_ARCHIVE, RuntimeError, NotImplementedError) as error:
            raise broken(path, error) from None

    return Tree(origin=path, files=_visible(iter(sizes)), read=read)


def _files(root: Path) -> Iterator[str]:
    """Paths of the plain files below a folder."""
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if path.is_file():
            yield name
        elif any(part.startswith(".") for part in name.split("/")):
            continue
        elif path.is_symlink() and path.is_dir():
            raise DataError(f"{root}: {name} is a link to a folder, which is not followed; put the folder itself there")
        elif not path.is_dir() and name.lower().endswith(_IMAGE_SUFFIXES):
            raise DataError(f"{root}: {name} is a pipe, a device or a broken link and no image; remove it")


def _read_file(root: Path, name: str) -> bytes:
    _check_size(root, name, (root / name).stat().st_size)
    return (root / name).read_bytes()


def _check_size(origin: Path, name: str, size: int) -> None:
    if size > _MAX_IMAGE_BYTES:
        raise DataError(f"{origin}: {name} has {size:,} bytes, an image at most {_MAX_IMAGE_BYTES:,}; replace the file")


def _visible(names: Iterator[str]) -> frozenset[str]:
    return frozenset(name for name in names if not any(part.startswith((".", "__MACOSX")) for part in name.split("/")))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: val_9 before val_10; names that differ only in leading zeros stay apart."""
    parts = re.split(r"(\d+)", name)
    return [*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-1, name)]


def read_tiny_imagenet(tree: Tree) -> Source:
    """The published layout; classes in the order of their sorted wnids, the validation split as test split.

    Raises:
        DataError: not that layout, a class without images, an image without annotation or the other way round.
    """
    roots = [name.removesuffix("wnids.txt") for name in tree.files if name.split("/")[-1] == "wnids.txt"]
    if len(roots) != 1:
        raise DataError(
            f"{tree.origin}: holds no wnids.txt; it is not the published tiny-imagenet-200.zip or its folder. "
            "For an image folder of your own choose another name"
        )
    root = roots[0]
    wnids = sorted(set(tree.read(root + "wnids.txt").decode().split()))
    number = {wnid: i for i, wnid in enumerate(wnids)}
    train: list[tuple[str, int]] = []
    by_class: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for name in tree.files:
        parts = name.removeprefix(root).split("/")
        if name.startswith(root + "train/") and name.lower().endswith(_IMAGE_SUFFIXES):
            if parts[1] not in by_class:
                raise DataError(f"{tree.origin}: {name} belongs to no class of wnids.txt; remove the folder {parts[1]}")
            by_class[parts[1]].append(name)
    for wnid in wnids:
        if not by_class[wnid]:
            raise DataError(f"{tree.origin}: {root}train/{wnid} holds no images; get the data anew")
        train += [(name, number[wnid]) for name in sorted(by_class[wnid], key=_natural)]
    return Source(
        classes=tuple(wnids),
        train=_image_split(tree, train, 64, None),
        test=_image_split(tree, _tiny_validation(tree, root, number), 64, None),
        known_files=False,
    )


def _tiny_validation(tree: Tree, root: str, number: dict[str, int]) -> list[tuple[str, int]]:
    """The validation images with their labels, in natural order of their names."""
    annotations = root + "val/val_annotations.txt"
    if annotations not in tree.files:
        raise DataError(f"{tree.origin}: {annotations} is missing; without it the validation images have no labels")
    wnid_of = {}
    for line_number, line in enumerate(tree.read(annotations).decode().splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2 or fields[1] not in number:
            raise DataError(f"{tree.origin}: {annotations} line {line_number}: {line!r} names no class of wnids.txt")
        wnid_of[fields[0]] = fields[1]
    folder = root + "val/images/"
    images = {name.removeprefix(folder) for name in tree.files if name.startswith(folder)}
    if not images:
        raise DataError(f"{tree.origin}: {folder} holds no images; get the data anew")
    if unlabelled := images - wnid_of.keys():
        raise DataError(
            f"{tree.origin}: {folder}{min(unlabelled, key=_natural)} has no line in {annotations} "
            f"({len(unlabelled)} without one); get the data anew"
        )
    if absent := wnid_of.keys() - images:
        raise DataError(
            f"{tree.origin}: {annotations} names {min(absent, key=_natural)}, which is missing from {folder} "
            f"({len(absent)} missing); get the data anew"
        )
    return [(folder + name, number[wnid_of[name]]) for name in sorted(images, key=_natural)]


def read_class_folders(tree: Tree, image_size: int | None) -> Source:
    """`train/<class>/...` and `test/<class>/...` (or val/, valid/), at any depth below the root; classes in natural
    order of their names.

    Args:
        tree: the files.
        image_size: resize every image to this side; None takes them as they are, all of one size and square.

    Raises:
        DataError: no such folders, classes that differ between the splits, images that differ in size.
    """
    train, test = _class_folders(tree)
    classes = tuple(sorted(train, key=_natural))
    listed = [_listed(split, classes) for split in (train, test)]
    size = image_size or _size_of(tree, listed[0][0][0])
    if size not in _SIDES:
        raise DataError(
            f"{tree.origin}: images of {size}x{size} pixels; give --image-size SIDE from {_SIDES[0]} to {_SIDES[-1]}"
        )
    return Source(
        classes=classes,
        train=_image_split(tree, listed[0], size, image_size),
        test=_image_split(tree, listed[1], size, image_size),
        known_files=False,
    )


def read_published_folders(tree: Tree, name: str, published: Published) -> Source:
    """A tree of class folders in place of a published archive: the archive's classes with the archive's numbers, images
    of the archive's size, however many. It is never the published data: such trees hold copies in another format.

    Raises:
        DataError: no such folders, other classes, images of another size.
    """
    try:
        train, test = _class_folders(tree)
    except DataError as error:
        archive = str(published.url).rsplit("/", 1)[-1]
        raise DataError(f"{error}; or give the published archive of {name} ({archive}) or its folder") from None
    classes = published.classes
    if set(train) != set(classes):
        strange, absent = sorted(set(train) - set(classes)), sorted(set(classes) - set(train))
        what = f"has train/{strange[0]}/" if strange else f"has no train/{absent[0]}/"
        raise DataError(
            f"{tree.origin}: {what}; under the name {name} the class folders must be {', '.join(classes)}. Prepare "
            "other classes under a name of your own"
        )
    size = published.image_size
    return Source(
        classes=classes,
        train=_image_split(tree, _listed(train, classes), size, None),
        test=_image_split(tree, _listed(test, classes), size, None),
        known_files=False,
    )


def _listed(split: Folders, classes: tuple[str, ...]) -> list[tuple[str, int]]:
    """Images with their labels: by class, then in natural order of their names."""
    return [
        (name, number) for number, label in enumerate(classes) for name in sorted(split.get(label, []), key=_natural)
    ]


def _class_folders(tree: Tree) -> tuple[Folders, Folders]:
    """The images of train and test.

    Raises:
        DataError: none or several such folders, one class only, or a class of test that train has not.
    """
    splits: dict[str, Folders] = {}
    for name in tree.files:
        parts = name.split("/")
        if not name.lower().endswith(_IMAGE_SUFFIXES):
            continue
        for at, part in enumerate(parts[:-2]):
            split = {"train": "train", "test": "test", "val": "test", "valid": "test"}.get(part)
            if split is not None:
                splits.setdefault(f"{split}:{'/'.join(parts[: at + 1])}", {}).setdefault(parts[at + 1], []).append(name)
                break
    train, test = (_one_folder(tree, splits, split) for split in ("train", "test"))
    if len(train) < 2:
        raise DataError(f"{tree.origin}: train/ holds one class only; at least two are needed")
    if strange := sorted(set(test) - set(train)):
        raise DataError(f"{tree.origin}: class {strange[0]} of the test split has no folder in train/")
    return train, test


def _one_folder(tree: Tree, splits: dict[str, Folders], split: str) -> Folders:
    found = [key for key in splits if key.startswith(split + ":")]
    if len(found) != 1:
        folders = ", ".join(sorted(key.split(":")[1] for key in found)) or "none"
        raise DataError(
            f"{tree.origin}: needs exactly one {split} folder with a folder of images per class "
            f"({'train/<class>/' if split == 'train' else 'test/<class>/ or val/<class>/'}); found {folders}"
        )
    return splits[found[0]]


def _size_of(tree: Tree, name: str) -> int:
    width, height = _open_image(tree, name).size
    if width != height:
        raise DataError(
            f"{tree.origin}: {name} is {width}x{height}, not square; add --image-size SIDE to resize all images"
        )
    return width


def _image_split(tree: Tree, listed: list[tuple[str, int]], size: int, resize_to: int | None) -> SplitSource:
    def decode(name: str) -> Block:
        image = _open_image(tree, name)
        if resize_to is None and image.size != (size, size):
            raise DataError(
                f"{tree.origin}: {name} is {image.size[0]}x{image.size[1]}, the others are {size}x{size}; "
                "images of your own can be resized with --image-size SIDE"
            )
        try:
            colour = image.convert("RGB")
        except Exception as error:  # a damaged image can raise anything, struct.error and MemoryError among them
            raise _undecodable(tree, name, error) from None
        return np.asarray(colour if resize_to is None else _resize(colour, resize_to))

    def blocks() -> Iterator[Block]:
        names = [name for name, _ in listed]
        decoded = _in_order(decode, names)
        step = min(BLOCK_IMAGES, max(1, BLOCK_BYTES // (3 * size * size)))
        for start in range(0, len(names), step):
            yield np.stack([next(decoded) for _ in names[start : start + step]])

    return SplitSource(labels=np.array([label for _, label in listed], np.int16), blocks=blocks)


def _in_order(function: Callable[[str], Block], names: list[str], threads: int = 4) -> Iterator[Block]:
    """Maps with a few threads and a bounded number of results in flight (Pillow decodes without the GIL)."""
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Block]] = deque()
        for name in names:
            pending.append(pool.submit(function, name))
            if len(pending) >= 8 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _open_image(tree: Tree, name: str) -> Image.Image:
    """Reads an image's header; its pixels are decoded later, and only where they are not too many."""
    content = tree.read(name)
    try:
        image = Image.open(io.BytesIO(content), formats=_IMAGE_FORMATS)
        width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):  # Pillow's own limit is above ours
        raise _too_large(tree, name, "") from None
    except Exception as error:
        raise _undecodable(tree, name, error) from None
    # Resizing makes the shorter side as long as asked, and the longer one in proportion.
    if width * height > _MAX_PIXELS or max(width, height) > _MAX_ASPECT * min(width, height):
        raise _too_large(tree, name, f" ({width}x{height})")
    return image


def _too_large(tree: Tree, name: str, size: str) -> DataError:
    return DataError(
        f"{tree.origin}: {name} has more than {_MAX_PIXELS:,} pixels, or one side more than {_MAX_ASPECT} times the "
        f"other{size}; it was not decoded, replace the file"
    )


def _undecodable(tree: Tree, name: str, error: BaseException) -> DataError:
    why = "not an image" if "cannot identify" in str(error) else str(error)
    return DataError(f"{tree.origin}: {name} cannot be decoded ({why}); replace the file or get the data anew")


def _resize(image: Image.Image, side: int) -> Image.Image:
    """Bicubic, shorter side to `side`, then the centre."""
    width, height = image.size
    scale = side / min(width, height)
    wide, high = max(side, round(width * scale)), max(side, round(height * scale))
    left, top = (wide - side) // 2, (high - side) // 2
    return image.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
