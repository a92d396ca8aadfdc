"""Prepared data: opened when whole, refused when damaged, with the file and the mend named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from datasets.store import ArrayStore, DataError, content_hash, open_dataset, read_manifest


@pytest.fixture
def copy(data_path: Path, tmp_path: Path) -> Path:
    """A copy of the prepared toy data that may be harmed."""
    shutil.copytree(data_path / "toy", tmp_path / "toy")
    return tmp_path


def test_opens_as_read_only_memory_map(data_path: Path) -> None:
    data = open_dataset(data_path, "toy")
    assert data.train.images.shape == (60, 8, 8, 3) and data.train.images.dtype == np.uint8
    assert isinstance(data.train.images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.train.images[0] = 0


def test_manifest_says_what_is_there(data_path: Path) -> None:
    data = open_dataset(data_path, "toy")
    manifest = data.manifest
    assert manifest.classes == ("a", "b", "c") and not manifest.published
    pixels = data.train.images.reshape(-1, 3) / 255
    assert manifest.mean == pytest.approx(pixels.mean(axis=0))
    assert manifest.std == pytest.approx(pixels.std(axis=0))
    hashes = (manifest.images_sha256, manifest.labels_sha256)
    assert manifest.content_sha256 == content_hash(
        *hashes, data.test.manifest.images_sha256, data.test.manifest.labels_sha256
    )


def test_absent_data_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar100 is not prepared in .*; run: python -m datasets\.prepare cifar100"):
        open_dataset(tmp_path, "cifar100")
    assert read_manifest(tmp_path, "cifar100") is None


def test_flipped_bit_is_refused(copy: Path) -> None:
    path = copy / "toy" / "train" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"images\.npy: content does not match .* python -m datasets\.prepare toy --data \S+ --rep"
    ):
        open_dataset(copy, "toy")
    assert len(ArrayStore.open(path.parent, verify=False).labels) == 60


@pytest.mark.parametrize("name", ["images.npy", "labels.npy"])
def test_truncated_array_is_refused(copy: Path, name: str) -> None:
    path = copy / "toy" / "test" / name
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=rf"{name}: .*damaged. Prepare them again"):
        open_dataset(copy, "toy")


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "manifest.json"])
def test_missing_file_is_refused(copy: Path, name: str) -> None:
    (copy / "toy" / "test" / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: missing; the prepared data are damaged"):
        open_dataset(copy, "toy")


def test_pickled_array_is_refused(copy: Path) -> None:
    np.save(copy / "toy" / "test" / "labels.npy", np.array([{}] * 30, dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"labels\.npy: object \[30\], the manifest says int16 \[30\]; .*damaged"):
        open_dataset(copy, "toy")


def npy(shape: str) -> bytes:
    """A file of 30 labels whose header declares another shape."""
    header = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(60)


@pytest.mark.parametrize(
    "content",
    [
        npy("(4611686018427387904,)"),
        npy("(-1,)"),
        npy("(30, 'x')"),
        npy("__import__('os').mkdir('harm')"),
        b"PK\x03\x04",
    ],
)
def test_hostile_headers_are_refused(content: bytes, copy: Path) -> None:
    (copy / "toy" / "test" / "labels.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.npy: .*; the prepared data are damaged"):
        open_dataset(copy, "toy")
    assert not Path("harm").exists()


@pytest.mark.parametrize("name", ["manifest.json", "images.npy", "labels.npy"])
def test_a_pipe_is_not_waited_for(name: str, copy: Path) -> None:
    (copy / "toy" / "test" / name).unlink()
    os.mkfifo(copy / "toy" / "test" / name)
    with pytest.raises(DataError, match=rf"{name}: missing; the prepared data are damaged"):
        open_dataset(copy, "toy")


def test_label_outside_the_classes_is_refused(copy: Path) -> None:
    np.save(copy / "toy" / "test" / "labels.npy", np.full(30, 3, np.int16))
    with pytest.raises(DataError, match=r"labels\.npy: labels outside 0\.\.2"):
        open_dataset(copy, "toy")


def test_splits_of_different_data_are_refused(copy: Path, data_path: Path) -> None:
    path = copy / "toy" / "test" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "content_sha256": "0" * 64}))
    with pytest.raises(DataError, match="train and test splits come from different data sets"):
        open_dataset(copy, "toy")


def test_manifest_of_another_format_is_refused(copy: Path) -> None:
    path = copy / "toy" / "train" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 9}))
    with pytest.raises(DataError, match="format 9, this version reads format 1"):
        open_dataset(copy, "toy")
    path.write_text("{")
    with pytest.raises(DataError, match=r"manifest\.json: not a manifest of this project"):
        open_dataset(copy, "toy")
