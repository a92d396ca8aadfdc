"""The CIFAR archives: read exactly, and nothing in their pickles is trusted."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from harm import Harm
from PIL import Image
from rich.console import Console

from datasets import published
from datasets.cifar import read_cifar
from datasets.prepare import describe, prepare
from datasets.sources import open_source
from datasets.store import DataError

RNG = np.random.default_rng(0)
PIXELS = {name: RNG.integers(0, 256, (count, 3072), dtype=np.uint8) for name, count in (("train", 12), ("test", 6))}
LABELS = {name: [i % 4 for i in range(len(pixels))] for name, pixels in PIXELS.items()}


def python2_array(rows: np.ndarray) -> bytes:
    """The opcodes by which Python 2's numpy stored a uint8 array: the published files hold exactly these names."""
    raw = rows.tobytes()
    return b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR",
            b"(K\x01K" + bytes([rows.shape[0]]) + b"M" + rows.shape[1].to_bytes(2, "little") + b"\x86",
            b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
            b"T" + len(raw).to_bytes(4, "little") + raw + b"tb",
        ]
    )


def python2_pickle(entries: dict[str, bytes]) -> bytes:
    """A protocol-2 pickle of a dict with byte-string keys whose values are given as opcodes."""
    items = b"".join(b"U" + bytes([len(key)]) + key.encode() + value for key, value in entries.items())
    return b"\x80\x02}(" + items + b"u."


def python2_list(values: list[int]) -> bytes:
    return b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e"


def python2_names(values: list[str]) -> bytes:
    return b"](" + b"".join(b"U" + bytes([len(value)]) + value.encode() for value in values) + b"e"


def batch(split: str, label_key: str = "fine_labels") -> bytes:
    return python2_pickle({"data": python2_array(PIXELS[split]), label_key: python2_list(LABELS[split])})


def meta(key: str = "fine_label_names") -> bytes:
    return python2_pickle({key: python2_names(["ant", "bee", "cat", "dog"])})


def archive(path: Path, files: dict[str, bytes], folder: str = "cifar-100-python") -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def whole() -> dict[str, bytes]:
    return {"train": batch("train"), "test": batch("test"), "meta": meta()}


def test_pixels_and_labels_are_exact(tmp_path: Path) -> None:
    source = read_cifar("cifar100", archive(tmp_path / "c.tar.gz", whole()))
    assert source.classes == ("ant", "bee", "cat", "dog")
    for split, found in (("train", source.train), ("test", source.test)):
        pixels = np.concatenate(list(found.blocks()))
        expected = PIXELS[split].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        assert (pixels == expected).all() and found.labels.tolist() == LABELS[split]


def test_unpacked_folder_reads_the_same(tmp_path: Path) -> None:
    with tarfile.open(archive(tmp_path / "c.tar.gz", whole())) as tar:
        tar.extractall(tmp_path, filter="data")
    for path in (tmp_path, tmp_path / "cifar-100-python"):
        source = read_cifar("cifar100", path)
        assert source.test.labels.tolist() == LABELS["test"]


def test_cifar10_joins_its_five_batches(tmp_path: Path) -> None:
    files = {f"data_batch_{i}": batch("train", "labels") for i in range(1, 6)}
    files |= {"test_batch": batch("test", "labels"), "batches.meta": meta("label_names")}
    source = read_cifar("cifar10", archive(tmp_path / "c.tar.gz", files, "cifar-10-batches-py"))
    assert len(source.train.labels) == 60 and len(source.test.labels) == 6
    assert not source.known_files, "these are not the published files"


def test_cifar10_files_are_recognised_by_their_md5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    files = {f"data_batch_{i}": batch("train", "labels") for i in range(1, 6)}
    files |= {"test_batch": batch("test", "labels"), "batches.meta": meta("label_names")}
    known = published.PUBLISHED["cifar10"]
    for name, content in files.items():
        monkeypatch.setitem(known.member_md5, name, hashlib.md5(content, usedforsecurity=False).hexdigest())
    path = archive(tmp_path / "c.tar.gz", files, "cifar-10-batches-py")
    assert read_cifar("cifar10", path).known_files


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    evil = pickle.dumps({"data": Harm(harm)}, protocol=2)
    with pytest.raises(DataError, match=r"train is not a published CIFAR file: it names \w+\.mkdir, .* Nothing of it"):
        read_cifar("cifar100", archive(tmp_path / "c.tar.gz", {**whole(), "train": evil}))
    assert not harm.exists()


def test_an_array_in_fortran_order_is_refused(tmp_path: Path) -> None:
    """The byte before the pixels says so; read as it lies, it would be a scrambled image."""
    content = batch("train").replace(b"K\x00tb\x89T", b"K\x00tb\x88T")
    with pytest.raises(DataError, match="an array that is not C-ordered uint8"):
        read_cifar("cifar100", archive(tmp_path / "c.tar.gz", {**whole(), "train": content}))


@pytest.mark.parametrize("name", ["numpy.core.multiarray\nscalar", "builtins\neval", "numpy\nload", "numpy\nobject_"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    content = b"\x80\x02c" + name.encode() + b"\n."
    with pytest.raises(DataError, match="which no published CIFAR file does"):
        read_cifar("cifar100", archive(tmp_path / "c.tar.gz", {**whole(), "test": content}))


def test_object_arrays_are_refused(tmp_path: Path) -> None:
    content = whole()["train"].replace(b"U\x02u1", b"U\x02O8")
    with pytest.raises(DataError, match="dtype b'O8'"):
        read_cifar("cifar100", archive(tmp_path / "c.tar.gz", {**whole(), "train": content}))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_archive_is_one_clear_error(tmp_path: Path, share: float) -> None:
    path = archive(tmp_path / "c.tar.gz", whole())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"c\.tar\.gz: truncated or not an archive \(.*\); get it anew"):
        read_cifar("cifar100", path)


def test_wrong_archive_names_what_is_missing(tmp_path: Path) -> None:
    path = archive(tmp_path / "c.tar.gz", {"hello": b"x"})
    with pytest.raises(
        DataError, match="holds no train, test, meta; it is not the published python archive of cifar100"
    ):
        read_cifar("cifar100", path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"data": python2_array(PIXELS["train"]), "fine_labels": python2_list([1])}, "one label for each of its 12"),
        (
            {"data": python2_array(PIXELS["train"]), "fine_labels": python2_list([9] * 12)},
            r"holds labels outside 0\.\.3",
        ),
        ({"fine_labels": python2_list(LABELS["train"])}, "holds no array of 32x32 colour images"),
    ],
)
def test_content_that_does_not_fit_is_said(tmp_path: Path, entries: dict[str, bytes], message: str) -> None:
    files = {**whole(), "train": python2_pickle(entries)}
    with pytest.raises(DataError, match=message):
        read_cifar("cifar100", archive(tmp_path / "c.tar.gz", files))


def test_a_zip_of_images_is_told_where_it_belongs(tmp_path: Path) -> None:
    path = tmp_path / "images.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/cat/0.png", b"")
    with pytest.raises(DataError, match=r"images.zip: a zip, but cifar100 is read from .* under a name of your own"):
        open_source("cifar100", path)


CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def class_folders(root: Path, classes: Sequence[str] = CIFAR10, size: int = 32) -> Path:
    """Two training images and one test image a class, whose red tells the class and whose green the image."""
    for label, name in enumerate(classes):
        for split, number in (("train", 0), ("train", 1), ("test", 2)):
            path = root / split / name / f"{10 * number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), (10 * label, number, 0)).save(path)
    return root


def zipped(folder: Path, target: Path, within: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, within + str(path.relative_to(folder)))
    return target


def test_cifar10_may_be_class_folders_or_a_zip_of_them(tmp_path: Path) -> None:
    folder = class_folders(tmp_path / "pictures")
    for path in (folder, tmp_path, zipped(folder, tmp_path / "a.zip"), zipped(folder, tmp_path / "b.zip", "cifar/")):
        source = open_source("cifar10", path)
        assert source.classes == CIFAR10 and not source.known_files
        assert source.train.labels.tolist() == [label for label in range(10) for _ in range(2)]
        assert source.test.labels.tolist() == list(range(10))
        (train,), (test,) = source.train.blocks(), source.test.blocks()
        assert train.shape == (20, 32, 32, 3) and train[:, 5, 5, 0].tolist() == [10 * k for k in source.train.labels]
        assert train[:4, 0, 0, 1].tolist() == [0, 1, 0, 1] and (test[:, 0, 0, 1] == 2).all()


def test_cifar10_as_folders_is_never_the_published_data(tmp_path: Path) -> None:
    archive = zipped(class_folders(tmp_path / "pictures"), tmp_path / "pictures.zip")
    data = prepare("cifar10", archive, tmp_path / "data", console=Console(quiet=True))
    assert not data.manifest.published and "10 classes; not the published data" in describe(data)
    assert data.manifest.classes == CIFAR10 and data.manifest.image_size == 32


@pytest.mark.parametrize(
    ("classes", "size", "message"),
    [
        ((*CIFAR10[:9], "lorry"), 32, r"has train/lorry/; under the name cifar10 the class folders must be airplane, "),
        (CIFAR10[:9], 32, r"has no train/truck/; under the name cifar10 .* Prepare other classes under a name of your"),
        (CIFAR10, 33, r"airplane/0\.png is 33x33, the others are 32x32"),
    ],
)
def test_other_folders_are_not_taken_for_cifar10(
    classes: tuple[str, ...], size: int, message: str, tmp_path: Path
) -> None:
    folder = class_folders(tmp_path / "pictures", classes, size)
    with pytest.raises(DataError, match=message):
        prepare("cifar10", folder, tmp_path / "data", console=Console(quiet=True))
    assert not (tmp_path / "data" / "cifar10").exists()


def test_a_zip_without_class_folders_names_both_ways(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("data_batch_1", b"")
    both = r"needs exactly one train folder .* found none; or give the published archive of cifar10 \(cifar-10-python"
    with pytest.raises(DataError, match=both):
        open_source("cifar10", tmp_path / "x.zip")


def test_class_folders_do_not_hide_a_broken_archive(tmp_path: Path) -> None:
    """A folder that has any of the archive's files is read as the archive, and none of them may be missing."""
    folder = class_folders(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_1").write_bytes(batch("train", "labels"))
    for path in (folder, tmp_path):
        with pytest.raises(DataError, match=r"holds no data_batch_2, .*batches\.meta; it is not the published python"):
            open_source("cifar10", path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no data_batch_1, .*; it is not the published python archive"):
        open_source("cifar10", tmp_path / "empty")


def test_real_cifar10_pictures_are_marked(shared: Path, tmp_path: Path) -> None:
    data = prepare("cifar10", shared / "cifar10-jpeg-mini.zip", tmp_path, console=Console(quiet=True))
    assert (len(data.train.labels), len(data.test.labels)) == (2000, 500) and not data.manifest.published
    assert data.manifest.classes == CIFAR10 and data.manifest.image_size == 32
    assert data.manifest.source_sha256 == "dc4565cdd4895b8ed9577afc2c7f87e795088b8cd41dc2a5f25fc62ceed6c6fe"


def test_an_absent_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--source .*nowhere: no such file or folder"):
        open_source("cifar100", tmp_path / "nowhere")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_members_that_are_no_files_are_not_read(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(batch("train"))
    path = tmp_path / "c.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"test": batch("test"), "meta": meta()}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        info = tarfile.TarInfo("train")
        info.type, info.linkname = kind, str(tmp_path / "train")
        tar.addfile(info)
    with pytest.raises(DataError, match="holds no train; it is not the published python archive"):
        read_cifar("cifar100", path)


@pytest.mark.parametrize("folder", ["../../up", "/absolute"])
def test_names_that_leave_the_archive_write_nothing(folder: str, tmp_path: Path) -> None:
    path = archive(tmp_path / "c.tar.gz", whole(), folder)
    before = sorted(tmp_path.rglob("*"))
    assert read_cifar("cifar100", path).test.labels.tolist() == LABELS["test"]
    assert sorted(tmp_path.rglob("*")) == before and not Path("/absolute").exists()
