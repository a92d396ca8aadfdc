"""What every reader of published data and image folders gives: both splits, not yet decoded."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datasets.store import DataError

BLOCK_IMAGES = 512
BLOCK_BYTES = 256 << 20
"""Of large images a block has fewer."""
MAX_ARCHIVE_BYTES = 1 << 30
"""Of a published archive, packed and unpacked: Tiny-ImageNet's has 250 MB, CIFAR's unpack to 190 MB."""
MAX_MEMBER_BYTES = 256 << 20
"""Of one file of an archive: CIFAR-100's training file has 155 MB. A larger one would be unpacked into memory."""
BROKEN_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError, MemoryError)

Block = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSource:
    """One split, not yet decoded."""

    labels: NDArray[np.int16]
    """[N] int16."""
    blocks: Callable[[], Iterator[Block]]
    """Yields the pixels in order as blocks of [n, S, S, 3] uint8; raises DataError at the first bad image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Both splits of one data set, not yet decoded."""

    classes: tuple[str, ...]
    train: SplitSource
    test: SplitSource
    known_files: bool
    """Whether the files inside are byte for byte the published ones (only CIFAR-10 is recognised this way)."""


def broken(path: Path, error: BaseException) -> DataError:
    """What to raise when an archive cannot be read to its end."""
    why = str(error).splitlines()[0].rstrip(":") if str(error) else type(error).__name__
    return DataError(f"{path}: truncated or not an archive ({why}); get it anew and prepare again")
