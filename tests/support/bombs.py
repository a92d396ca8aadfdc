"""Small files that unpack to far more than a machine holds, by name. Each is opened in a process of its own limits."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from PIL import Image

Bomb = Callable[[Path], None]
ZEROS = gzip.compress(bytes(64 << 20), 1)
"""64 MiB of zeros; a gzip file may be many of these in a row."""


def png(width: int, height: int) -> bytes:
    """A PNG that declares so many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def small_png(side: int = 16) -> bytes:
    """An honest image."""
    sink = io.BytesIO()
    Image.new("RGB", (side, side)).save(sink, format="PNG")
    return sink.getvalue()


def gif(frames: int) -> bytes:
    """An animation of so many frames."""
    sink = io.BytesIO()
    images = [Image.new("P", (16, 16), number % 255) for number in range(frames)]
    images[0].save(sink, format="GIF", save_all=True, append_images=images[1:])
    return sink.getvalue()


def folder(image: bytes, name: str = "x.png") -> Bomb:
    """A class-per-folder tree whose first image is the given one."""

    def write(path: Path) -> None:
        for split in ("train", "test"):
            for label in "ab":
                home = path / split / label
                home.mkdir(parents=True)
                (home / "y.png").write_bytes(small_png())
        (path / "train" / "a" / name).write_bytes(image)

    return write


def zipped(harm: Callable[[bytearray], None], image: bytes | None = None) -> Bomb:
    """A zip of a class-per-folder tree whose bytes are changed afterwards."""

    def write(path: Path) -> None:
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            for split in ("test", "train"):
                for label in "ab":
                    archive.writestr(f"{split}/{label}/y.png", small_png())
            archive.writestr("train/a/x.png", bytes(200 << 20) if image is None else image)
        content = bytearray(sink.getvalue())
        harm(content)
        path.write_bytes(content)

    return write


def declare_size(size: int) -> Callable[[bytearray], None]:
    """Changes the unpacked size of the last entry, in both places where a zip says it."""

    def harm(content: bytearray) -> None:
        central, local = content.rfind(b"PK\x01\x02"), content.rfind(b"PK\x03\x04")
        content[central + 24 : central + 28] = content[local + 22 : local + 26] = struct.pack("<I", size)

    return harm


def overlap(content: bytearray) -> None:
    """Lets the last entry begin where the first does, so that both are the same bytes."""
    central = content.rfind(b"PK\x01\x02")
    content[central + 42 : central + 46] = struct.pack("<I", 0)


def tarred(kind: bytes, size: int, name: str = "cifar-100-python/other") -> Bomb:
    """A tar.gz whose first member declares `size` bytes and has 8 GiB of zeros."""

    def write(path: Path) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.size = kind, size
        path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)) + ZEROS * 128)

    return write


def many_members(path: Path) -> None:
    """A tar.gz of five thousand empty files."""
    with tarfile.open(path, "w:gz") as archive:
        for number in range(5_000):
            archive.addfile(tarfile.TarInfo(f"{number}"))


def numbered_pickle(path: Path) -> None:
    """A CIFAR folder whose pickle gives an object a number for which a table of 32 GiB would be made."""
    path.mkdir()
    for name in ("train", "test", "meta"):
        (path / name).write_bytes(b"\x80\x02}r" + struct.pack("<I", 0x7FFFFFFF) + b".")


def sparse_folder(path: Path) -> None:
    """A CIFAR folder with a file of a terabyte that takes no room on the disk."""
    path.mkdir()
    for name in ("train", "test", "meta"):
        with (path / name).open("wb") as file:
            file.truncate(1 << 40)


BOMBS: dict[str, tuple[str, int | None, Bomb, str]] = {
    "png of 50,000 pixels a side": ("own", 64, folder(png(50_000, 50_000)), "more than 50,000,000 pixels"),
    "png below Pillow's own limit": ("own", 64, folder(png(9_000, 9_000)), "pixels.*(9000x9000)"),
    "strip": ("own", 64, folder(png(1, 60_000)), "more than 40 times the other"),
    "first image of a data set": ("own", None, folder(png(2_000, 2_000), "a.png"), "give --image-size SIDE"),
    "sparse image": ("own", 64, folder(small_png() + bytes(70 << 20)), "bytes, an image at most"),
    "zip that declares 4 GB": ("own", 64, zipped(declare_size(0xFFFFFFF0)), "bytes, an image at most"),
    "zip that declares too little": ("own", 64, zipped(declare_size(10)), "x.png cannot be decoded|truncated"),
    "zip with overlapping entries": ("own", 64, zipped(overlap, small_png()), "truncated or not an archive"),
    "tar with a member of a terabyte": (
        "cifar100",
        None,
        tarred(tarfile.REGTYPE, 1 << 40),
        "declares 1,099,511,627,776",
    ),
    "tar with a sparse member": ("cifar100", None, tarred(tarfile.GNUTYPE_SPARSE, 1 << 33), "declares 8,589,934,592"),
    "tar with a name of gigabytes": ("cifar100", None, tarred(tarfile.GNUTYPE_LONGNAME, 6 << 30), "declares 6,442,450"),
    "tar with attributes of gigabytes": ("cifar100", None, tarred(tarfile.XHDTYPE, 6 << 30), "declares 6,442,450"),
    "tar with thousands of members": ("cifar100", None, many_members, "1,001 members"),
    "pickle with a huge table": ("cifar100", None, numbered_pickle, "it numbers an object 2147483647"),
    "folder with a sparse file": ("cifar100", None, sparse_folder, "no published file of cifar100"),
}
"""Data set, --image-size, the bomb, and what is to be said."""
HARMLESS = {"animation of 3,000 frames": ("own", 16, folder(gif(3_000), "x.gif"))}
