"""Preparing: once, whole or not at all, by one process at a time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock
from processes import command, run, start, wait_for
from rich.console import Console
from toy import write_image_folder

from datasets.prepare import main, prepare
from datasets.store import DataError, open_dataset, read_manifest

QUIET = Console(quiet=True)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_image_folder(tmp_path / "images", train_per_class=4, test_per_class=2)
    return tmp_path / "images"


def entries(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith(".lock-"))


def test_prepares_once_and_leaves_nothing_else(images: Path, tmp_path: Path) -> None:
    data = prepare("own", images, tmp_path / "data", console=QUIET)
    assert len(data.train.labels) == 12 and entries(tmp_path / "data") == ["own"]
    before = (tmp_path / "data" / "own" / "train" / "images.npy").stat().st_mtime_ns
    prepare("own", None, tmp_path / "data", console=QUIET)
    prepare("own", images, tmp_path / "data", console=QUIET)
    assert (tmp_path / "data" / "own" / "train" / "images.npy").stat().st_mtime_ns == before


def test_other_content_is_not_replaced_unasked(images: Path, tmp_path: Path) -> None:
    first = prepare("own", images, tmp_path / "data", console=QUIET)
    write_image_folder(tmp_path / "other", train_per_class=3, test_per_class=2, seed=5)
    with pytest.raises(DataError, match=r"holds other content .* Add --replace, or prepare into another --data DIR"):
        prepare("own", tmp_path / "other", tmp_path / "data", console=QUIET)
    kept = open_dataset(tmp_path / "data", "own")
    assert kept.manifest.content_sha256 == first.manifest.content_sha256
    second = prepare("own", tmp_path / "other", tmp_path / "data", replace=True, console=QUIET)
    assert len(second.train.labels) == 9 and entries(tmp_path / "data") == ["own"]


def test_a_bad_source_leaves_nothing(images: Path, tmp_path: Path) -> None:
    (images / "test" / "c" / "c_1.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"c_1\.png cannot be decoded"):
        prepare("own", images, tmp_path / "data", console=QUIET)
    assert entries(tmp_path / "data") == []


def test_leftovers_of_a_killed_process_are_swept(images: Path, tmp_path: Path) -> None:
    leftover = tmp_path / "data" / ".staging-own.0123abcd" / "train"
    leftover.mkdir(parents=True)
    (leftover / "images.npy").write_bytes(b"half")
    prepare("own", images, tmp_path / "data", console=QUIET)
    assert entries(tmp_path / "data") == ["own"]


def test_unknown_name_without_source_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"own is no published data set .* add --source FOLDER_OR_ZIP with train/<class>"
    ):
        prepare("own", None, tmp_path, console=QUIET)


@pytest.mark.parametrize("name", ["../x", "/etc", "A", "", "downloads", "a b", "x\n", "x" * 101])
def test_names_that_are_no_folder_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be the name of a data set"):
        prepare(name, None, tmp_path, console=QUIET)
    with pytest.raises(DataError, match="cannot be the name of a data set"):
        read_manifest(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_digits_are_pinned(data_path: Path) -> None:
    data = open_dataset(data_path, "digits")
    assert data.manifest.published
    assert (len(data.train.labels), len(data.test.labels)) == (1257, 540)


def test_command_prints_counts_hashes_and_marks(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["own", "--source", str(images), "--data", str(tmp_path / "data")]) == 0
    shown = capsys.readouterr().out
    assert "own: 12 train and 6 test images, 8x8, 3 classes; not the published data" in shown
    assert f"in {tmp_path / 'data' / 'own'}" in shown and "std" in shown


def test_command_explains_errors_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cifar100", "--source", str(tmp_path / "none.tgz"), "--data", str(tmp_path)]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["cifar10", "cifar100", "--source", str(tmp_path), "--data", str(tmp_path)]) == 2
    assert "--source goes with one NAME" in capsys.readouterr().err


def test_real_cifar100(cifar100_path: Path) -> None:
    data = open_dataset(cifar100_path, "cifar100")
    train, test = data.train.manifest, data.test.manifest
    assert train.images_sha256 == "4e457917601a66aed021f5fa37957b56c6319557c0a8ed5484de3c390af45430"
    assert train.labels_sha256 == "1b4e4a7e6f08db2814efc0132c4c0df0b1b2b648aa74cb470f3e8e6976f2936b"
    assert test.images_sha256 == "4cb8e5d9309da489bf6b19cc10cd96c3ae6f8daf225380b605aaee4c0d6aee19"
    assert test.labels_sha256 == "3768c6259787ad29c455c16187ffbbce218b5dafcbd2ba9701ea204f47acbf65"
    assert train.published
    assert train.mean == pytest.approx((0.507075, 0.486549, 0.440918), abs=5e-7)
    assert train.std == pytest.approx((0.267334, 0.256438, 0.276150), abs=5e-7)


def test_real_tiny_imagenet_subset_is_marked(shared: Path, tmp_path: Path) -> None:
    data = prepare("tiny-imagenet-200", shared / "tiny-imagenet-200-mini.zip", tmp_path, console=QUIET)
    assert (len(data.train.labels), len(data.test.labels)) == (5000, 2000) and not data.manifest.published
    digest = "db2fb9d5edc5bac78cc1c0bee09e0afc3be808d535c2f54ad4e335ac57a3c264"
    assert data.manifest.source_sha256 == digest


def test_two_processes_at_once_do_no_harm(tmp_path: Path) -> None:
    """Both are held at the lock until both have started, so that they really meet."""
    write_image_folder(tmp_path / "images", train_per_class=300, test_per_class=50, size=32)
    arguments = ("own", "--source", tmp_path / "images", "--data", tmp_path / "data")
    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / ".lock-own"):
        both = [start("datasets.prepare", *arguments) for _ in range(2)]
        for process in both:
            assert process.stdout is not None
            assert "own: another process is preparing it" in process.stdout.readline()
    shown = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], shown
    assert entries(tmp_path / "data") == ["own"]
    assert len(open_dataset(tmp_path / "data", "own").train.labels) == 900


def test_a_killed_preparation_is_never_taken_for_whole(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "images", train_per_class=400, test_per_class=50, size=32)
    arguments = ("own", "--source", tmp_path / "images", "--data", tmp_path / "data")
    process = start("datasets.prepare", *arguments)
    wait_for(lambda: list((tmp_path / "data").glob(".staging-own.*/train")), what="the staging folder")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    with pytest.raises(DataError, match="own is not prepared"):
        open_dataset(tmp_path / "data", "own")
    assert run("datasets.prepare", *arguments).returncode == 0
    assert entries(tmp_path / "data") == ["own"]


@pytest.mark.slow
def test_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """A real file system of 1 MB in a mount namespace of its own."""
    unshare = ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare with user namespaces to mount a small file system")
    write_image_folder(tmp_path / "images", train_per_class=400, test_per_class=10, size=32)
    small = tmp_path / "small"
    small.mkdir()
    prepared = command("datasets.prepare", "own", "--source", tmp_path / "images", "--data", small)
    again = f"mount -o remount,size=99m {small} && {' '.join(prepared)} && cp -r {small}/own {tmp_path}"
    script = (
        f"mount -t tmpfs -o size=1m none {small} && {' '.join(prepared)}; code=$?; ls -A {small}; {again}; exit $code"
    )
    done = subprocess.run([*unshare, "sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert f"--data {small}: cannot write there (No space left on device" in done.stderr
    assert "Nothing half-written is left; make room or choose another --data DIR" in done.stderr
    assert done.stdout.startswith(".lock-own\nown: 1,200 train and 30 test images")
    assert len(open_dataset(tmp_path, "own").train.labels) == 1200, "with room, the same command"
