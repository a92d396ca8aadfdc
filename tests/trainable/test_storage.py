"""One contract over the kinds of storage: a folder and an S3 bucket. What only a folder can do is tested apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from trainable.storage import Storage, StorageError


@pytest.fixture(params=["local", "file-uri", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return Storage(str(tmp_path / "root"))
    if request.param == "file-uri":
        return Storage(f"file://{tmp_path}/root")
    uri: str = request.getfixturevalue("s3_uri")
    return Storage(uri.format(name=uuid.uuid4().hex))


class TestContract:
    def test_what_is_put_is_read(self, storage: Storage) -> None:
        storage.put("a/b/c.bin", b"one")
        assert storage.read("a/b/c.bin") == b"one" and storage.size("a/b/c.bin") == 3
        storage.put("a/b/c.bin", b"another")
        assert storage.read("a/b/c.bin") == b"another"

    def test_what_is_published_is_never_replaced(self, storage: Storage) -> None:
        storage.publish("a/x.json", b"one")
        with pytest.raises(FileExistsError, match=r"a/x\.json is there already; results are never overwritten"):
            storage.publish("a/x.json", b"two")
        assert storage.read("a/x.json") == b"one"

    def test_names_are_sorted_files_of_one_folder(self, storage: Storage) -> None:
        for name in ("b", "a", "deep/c"):
            storage.put(f"folder/{name}", b"")
        assert storage.names("folder") == ["a", "b"]
        assert storage.names("absent") == []

    def test_absent_files(self, storage: Storage) -> None:
        assert not storage.exists("x") and storage.size("x") is None
        with pytest.raises(FileNotFoundError):
            storage.read("x")
        storage.delete("x")

    def test_delete(self, storage: Storage) -> None:
        storage.put("a/x", b"1")
        storage.delete("a/x")
        assert not storage.exists("a/x")

    def test_large_content(self, storage: Storage) -> None:
        content = os.urandom(12_000_000)
        storage.put("big", content)
        assert storage.read("big") == content


def test_nothing_stays_in_staging(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.put("a/x", b"1")
    storage.publish("a/y", b"1")
    with pytest.raises(FileExistsError):
        storage.publish("a/y", b"2")
    assert list((tmp_path / "staging").iterdir()) == []


def test_of_two_that_publish_at_once_one_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other's file appears after the check: it must not be replaced."""
    storage = Storage(str(tmp_path))
    storage.publish("a/y", b"first")
    monkeypatch.setattr(storage, "exists", lambda path: False)
    with pytest.raises(FileExistsError):
        storage.publish("a/y", b"second")
    assert storage.read("a/y") == b"first"


def test_nothing_is_created_before_the_first_write(tmp_path: Path) -> None:
    assert Storage(str(tmp_path / "root")).names("commits") == []
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize("uri", ["ftp://host/x", "s3:/", "nonsense://x"])
def test_unknown_kinds_are_refused(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "://" not in uri:
        assert Storage(uri).local_root == tmp_path / uri
        return
    with pytest.raises(StorageError, match=rf"--results {uri}: cannot be opened .* give a folder or a URI"):
        Storage(uri)


def test_a_root_that_is_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot be written .* run the same command again"):
        Storage(str(tmp_path / "file")).put("a/x", b"1")


WRITER = """
import sys
from trainable.storage import Storage, StorageError
storage = Storage(sys.argv[1])
storage.put("state", b"o" * 100_000)
try:
    storage.put("state", b"n" * 5_000_000)
except StorageError as error:
    print(error)
print(storage.read("state") == b"o" * 100_000)
"""


@pytest.mark.slow
def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    """A real file system of 1 MB in a mount namespace of its own."""
    unshare = ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare with user namespaces to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=1m none {small} && {sys.executable} -c "$0" {small}; ls -A {small}/staging'
    done = subprocess.run([*unshare, "sh", "-c", script, WRITER], capture_output=True, text=True, timeout=120)
    message, kept = done.stdout.splitlines()
    assert f"{small}/state: cannot be written (No space left on device" in message and "bytes free" in message
    assert kept == "True"
