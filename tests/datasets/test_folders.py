"""Tiny-ImageNet's layout and class-per-folder trees, as folders and as zips."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import write_image_folder

from datasets.sources import open_source
from datasets.store import DataError

WNIDS = ("n02", "n01", "n03")


def picture(path: Path, value: int, size: int = 64, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), value if mode == "L" else (value, 255 - value, 7)).save(path, format="PNG")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Three classes in the published layout; contents tell which image it is."""
    root = tmp_path / "tiny-imagenet-200"
    for number, wnid in enumerate(WNIDS):
        for image in (0, 2, 10):
            picture(root / "train" / wnid / "images" / f"{wnid}_{image}.JPEG", 40 * number + image)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("x")
    (root / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    lines = []
    for image in (0, 1, 2, 10):
        picture(root / "val" / "images" / f"val_{image}.JPEG", image, mode="L" if image == 2 else "RGB")
        lines.append(f"val_{image}.JPEG\t{WNIDS[image % 3]}\t0\t0\t1\t1")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    picture(root / "test" / "images" / "test_0.JPEG", 9)
    return tmp_path


def zipped(folder: Path, target: Path) -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*"), reverse=True):
            archive.write(path, path.relative_to(folder))
    return target


def test_tiny_imagenet_folder_and_zip_read_the_same(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    archive = zipped(tiny, tmp_path_factory.mktemp("zip") / "tiny.zip")
    for path in (tiny, tiny / "tiny-imagenet-200", archive):
        source = open_source("tiny-imagenet-200", path)
        assert source.classes == ("n01", "n02", "n03")
        train = np.concatenate(list(source.train.blocks()))
        assert train[:, 0, 0, 0].tolist() == [40, 42, 50, 0, 2, 10, 80, 82, 90], "sorted wnids, natural order within"
        assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
        test = np.concatenate(list(source.test.blocks()))
        assert test[:, 0, 0, 0].tolist() == [0, 1, 2, 10], "val_2 before val_10; the unlabelled test is ignored"
        assert source.test.labels.tolist() == [1, 0, 2, 0]
        assert test[2, 0, 0].tolist() == [2, 2, 2], "grey becomes three equal channels"


def break_annotation(root: Path) -> None:
    path = root / "val" / "val_annotations.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


def break_wnid(root: Path) -> None:
    path = root / "val" / "val_annotations.txt"
    path.write_text(path.read_text().replace("n03", "n99"))


HARMS = {
    "no wnids": (lambda root: (root / "wnids.txt").unlink(), r"holds no wnids\.txt; it is not the published"),
    "no annotations": (
        lambda root: (root / "val" / "val_annotations.txt").unlink(),
        r"val_annotations\.txt is missing; without it the validation images have no labels",
    ),
    "missing annotation": (break_annotation, r"val_10\.JPEG has no line in .*val_annotations\.txt \(1 without one\)"),
    "unknown class": (break_wnid, r"val_annotations\.txt line 3: .* names no class of wnids\.txt"),
    "missing image": (
        lambda root: (root / "val" / "images" / "val_1.JPEG").unlink(),
        r"names val_1\.JPEG, which is missing",
    ),
    "empty class": (
        lambda root: shutil.rmtree(root / "train" / "n02"),
        r"train/n02 holds no images; get the data anew",
    ),
    "foreign class": (
        lambda root: picture(root / "train" / "n77" / "images" / "x.JPEG", 1),
        r"belongs to no class of wnids\.txt; remove the folder n77",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_incomplete_tiny_imagenet_names_the_file(tiny: Path, harm: str) -> None:
    act, message = HARMS[harm]
    act(tiny / "tiny-imagenet-200")
    with pytest.raises(DataError, match=message):
        open_source("tiny-imagenet-200", tiny)


def test_undecodable_image_is_named(tiny: Path) -> None:
    path = tiny / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_2.JPEG"
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"n01_2\.JPEG cannot be decoded \(not an image\); replace the file"):
        list(open_source("tiny-imagenet-200", tiny).train.blocks())


def test_truncated_image_is_named(tiny: Path) -> None:
    path = tiny / "tiny-imagenet-200" / "val" / "images" / "val_1.JPEG"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"val_1\.JPEG cannot be decoded \(.*truncated"):
        list(open_source("tiny-imagenet-200", tiny).test.blocks())


def test_wrong_size_is_named(tiny: Path) -> None:
    picture(tiny / "tiny-imagenet-200" / "train" / "n01" / "images" / "n01_2.JPEG", 3, size=32)
    with pytest.raises(DataError, match=r"n01_2\.JPEG is 32x32, the others are 64x64"):
        list(open_source("tiny-imagenet-200", tiny).train.blocks())


def test_truncated_zip_is_one_clear_error(tiny: Path, tmp_path: Path) -> None:
    path = zipped(tiny, tmp_path / "tiny.zip")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"tiny\.zip: truncated or not an archive"):
        open_source("tiny-imagenet-200", path)


def test_damaged_zip_member_is_one_clear_error(tiny: Path, tmp_path: Path) -> None:
    path = zipped(tiny, tmp_path / "tiny.zip")
    content = bytearray(path.read_bytes())
    at = content.find(b"\x89PNG") + 60
    content[at : at + 20] = b"\0" * 20
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"tiny\.zip: truncated or not an archive \(Bad CRC-32"):
        source = open_source("tiny-imagenet-200", path)
        list(source.train.blocks())
        list(source.test.blocks())


def test_class_folders(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images", train_per_class=3, test_per_class=2)
    (tmp_path / "images" / ".DS_Store").write_text("x")
    (tmp_path / "images" / "train" / "a" / "notes.txt").write_text("x")
    source = open_source("own", tmp_path / "images")
    assert source.classes == ("a", "b", "c")
    assert source.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert next(source.test.blocks()).shape == (6, 8, 8, 3)


def test_class_folders_may_be_called_val(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images", train_per_class=2, test_per_class=1)
    (tmp_path / "images" / "test").rename(tmp_path / "images" / "val")
    assert len(open_source("own", tmp_path / "images").test.labels) == 3


def test_images_of_other_sizes_are_resized_when_asked(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in "ab":
            home = tmp_path / split / name
            home.mkdir(parents=True)
            Image.new("RGB", (30, 20), (9, 9, 9)).save(home / "x.png")
    with pytest.raises(DataError, match=r"is 30x20, not square; add --image-size SIDE"):
        open_source("own", tmp_path)
    source = open_source("own", tmp_path, image_size=16)
    assert next(source.train.blocks()).shape == (2, 16, 16, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: shutil.rmtree(root / "test"), r"needs exactly one test folder .* found none"),
        (
            lambda root: shutil.copytree(root / "test", root / "val"),
            r"needs exactly one test folder .* found test, val",
        ),
        (lambda root: (root / "test" / "a").rename(root / "test" / "z"), "class z of the test split has no folder"),
        (lambda root: [shutil.rmtree(root / "train" / name) for name in "bc"], "train/ holds one class only"),
    ],
)
def test_tree_that_is_no_data_set_is_said(tmp_path: Path, change: object, message: str) -> None:
    write_image_folder(tmp_path / "images", train_per_class=2, test_per_class=2)
    change(tmp_path / "images")  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        open_source("own", tmp_path / "images")


def test_published_names_keep_their_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--image-size is for image folders of your own; cifar10 keeps"):
        open_source("cifar10", tmp_path, image_size=16)


def test_links_to_images_are_the_images(tmp_path: Path) -> None:
    """People link images from elsewhere; the whole folder may be a link too."""
    write_image_folder(tmp_path / "images", train_per_class=2, test_per_class=1)
    image = tmp_path / "images" / "train" / "a" / "a_0.png"
    image.rename(tmp_path / "elsewhere.png")
    image.symlink_to(tmp_path / "elsewhere.png")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    source = open_source("own", tmp_path / "link")
    assert next(source.train.blocks()).shape == (6, 8, 8, 3)


SPECIAL = {
    "fifo": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "broken link": lambda path: path.symlink_to("nowhere.png"),
    "link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_file_is_refused_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    write_image_folder(tmp_path, train_per_class=2, test_per_class=1)
    SPECIAL[kind](tmp_path / "train" / "a" / "z.png")
    with pytest.raises(DataError, match=r"train/a/z\.png is a pipe, a device or a broken link and no image; remove it"):
        open_source("own", tmp_path)


def test_links_to_folders_are_refused(tmp_path: Path) -> None:
    """Left out in silence, a class would be missing; followed, a link to / would be read whole."""
    write_image_folder(tmp_path / "images", train_per_class=2, test_per_class=1)
    (tmp_path / "images" / "train" / "d").symlink_to("/")
    with pytest.raises(DataError, match=r"train/d is a link to a folder, which is not followed; put the folder itself"):
        open_source("own", tmp_path / "images")


def test_links_and_climbing_names_in_a_zip_are_only_names(tmp_path: Path) -> None:
    """An entry that is a link is the few bytes it holds; nothing is written where a name points to."""
    write_image_folder(tmp_path / "images", train_per_class=2, test_per_class=1)
    path = zipped(tmp_path / "images", tmp_path / "own.zip")
    picture(tmp_path / "other.png", 5, size=8)
    image = (tmp_path / "other.png").read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        for name in ("../../train/a/up.png", "/train/a/absolute.png", "train/b/..\\..\\back.png"):
            archive.writestr(name, image)
    before = sorted(tmp_path.rglob("*"))
    try:
        list(open_source("own", path).train.blocks())
    except DataError as error:
        assert "needs exactly one train folder" in str(error)
    assert sorted(tmp_path.rglob("*")) == before
    link = zipfile.ZipInfo("train/a/link.png")
    link.external_attr = 0o120777 << 16
    path = zipped(tmp_path / "images", tmp_path / "linked.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"train/a/link\.png cannot be decoded \(not an image\)"):
        list(open_source("own", path).train.blocks())


def test_vector_images_are_not_opened(tmp_path: Path) -> None:
    write_image_folder(tmp_path, train_per_class=2, test_per_class=1)
    drawing = '<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    for name in ("z.png", "z.svg"):
        (tmp_path / "train" / "a" / name).write_text(drawing)
    with pytest.raises(DataError, match=r"z\.png cannot be decoded \(not an image\)"):
        list(open_source("own", tmp_path).train.blocks())
