"""One contract over the kinds of storage: a folder and an S3 bucket. What only a folder can do is tested apart."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
from failing_s3 import failing_s3

from datasets import durable
from trainable import storage as storage_module
from trainable.credentials import credentials_in
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

    @pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/passwd", "a\\..\\x", "a\0b", "a/\x1b[2J", ".."])
    def test_paths_cannot_leave_the_root(self, storage: Storage, path: str) -> None:
        for touch in (storage.read, storage.names, storage.folders, storage.exists, storage.size, storage.modified):
            with pytest.raises(StorageError, match="is not the path of a file within it; a record that names such a"):
                touch(path)
        for write in (storage.put, storage.publish):
            with pytest.raises(StorageError, match="is not the path of a file within it"):
                write(path, b"x")
        for other in (storage.delete, storage.local_path, lambda one: storage.read_start(one, 1)):
            with pytest.raises(StorageError, match="is not the path of a file within it"):
                other(path)

    def test_larger_than_a_file_of_ours_is_not_read(self, storage: Storage) -> None:
        storage.put("a", b"12345")
        assert storage.read("a", at_most=5) == b"12345"
        with pytest.raises(StorageError, match=r"a.*: 5 bytes where at most 4 belong; move it away"):
            storage.read("a", at_most=4)


def test_links_out_of_the_root_are_not_followed(tmp_path: Path) -> None:
    """Neither read, which would show a file to whoever gets the message, nor written through."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root / "runs").mkdir(parents=True)
    (root / "commits").symlink_to(outside)
    (root / "runs" / "log.txt").symlink_to(outside / "secret")
    (root / "runs" / "new").symlink_to(outside / "new")
    (root / "inner").symlink_to(root / "runs")
    storage = Storage(str(root))
    for path in ("commits/secret", "runs/log.txt", "runs/new"):
        for touch in (storage.read, storage.exists, storage.local_path, lambda one: storage.put(one, b"x")):
            with pytest.raises(StorageError, match="a link that leads out of the results, which is not followed"):
                touch(path)
    with pytest.raises(StorageError, match="a link that leads out of the results"):
        storage.names("commits")
    storage.put("inner/x", b"within")
    assert storage.read("runs/x") == b"within"
    assert sorted(path.name for path in outside.iterdir()) == ["secret"]
    assert (outside / "secret").read_text() == "secret"
    (tmp_path / "link").symlink_to(root)
    assert Storage(str(tmp_path / "link")).read("runs/x") == b"within", "the root itself may be a link"


def test_half_written_files_stay_within_the_root(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "root" / "staging").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="staging: a link that leads out of the results"):
        Storage(str(tmp_path / "root")).put("a", b"x")


@pytest.mark.parametrize("method", ["read", "exists", "local_path", "delete"])
def test_a_pipe_is_not_waited_for(method: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(StorageError, match="lock: a pipe or a device and no file; move it away"):
        getattr(Storage(str(tmp_path)), method)("lock")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAEXAMPLE:sentinel-of-a-key@bucket/x",
        "s3://AKIAEXAMPLE:sentinel/of/a/key@bucket/x?region=eu-west-1",
        "s3://sentinel-of-a-key@bucket/x",
        "s3://bucket/x?secret_key=sentinel-of-a-key",
        "s3://bucket/x?endpoint_override=user:sentinel@host:9000",
        "abfs://account:sentinel-of-a-key@container/x",
        "abfss://container@account.dfs.core.windows.net/x?sas_token=sentinel",
        "gs://bucket/x?json_credentials=sentinel",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(
        StorageError, match=r"carries credentials, .* set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ) as e:
        Storage(uri)
    assert "sentinel" not in str(e.value)


def test_names_before_the_at_of_other_storages_are_no_credentials() -> None:
    for uri in ("gs://anonymous@bucket/x", "s3://bucket/mail@example.org/x", "s3://bucket/x?region=eu-west-1"):
        assert not credentials_in(uri)


def test_paths_are_shown_before_the_options_of_a_uri(tmp_path: Path) -> None:
    assert Storage("s3://bucket/a/?region=eu-west-1").folder("runs") == "s3://bucket/a/runs?region=eu-west-1"
    assert Storage(f"{tmp_path}/what?").folder("runs") == f"{tmp_path}/what?/runs"


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that would have been made."""
    paused: list[float] = []
    monkeypatch.setattr(storage_module, "time", SimpleNamespace(sleep=paused.append, monotonic=time.monotonic))
    return paused


class TestFailingObjectStore:
    @pytest.mark.parametrize("drop", [False, True])
    def test_three_failures_a_key_are_sat_out(self, s3_uri: str, quick: list[float], drop: bool) -> None:
        with failing_s3(s3_uri, 3, drop=drop) as proxy:
            storage = proxy.storage(uuid.uuid4().hex)
            storage.put("a/x", b"one")
            storage.publish("a/y", b"two")
            assert storage.read("a/x") == b"one" and storage.read("a/y") == b"two"
            proxy.failed.clear()
            assert storage.names("a") == ["x", "y"]
            storage.delete("a/x")
            assert not storage.exists("a/x")
            with pytest.raises(FileExistsError):
                storage.publish("a/y", b"three")
        assert max(proxy.failed.values()) == 3 and len(quick) >= 9

    @pytest.mark.parametrize("drop", [False, True])
    def test_one_that_never_works_is_given_up(self, s3_uri: str, quick: list[float], drop: bool) -> None:
        with failing_s3(s3_uri, -1, drop=drop) as proxy:
            storage = proxy.storage("never")
            with pytest.raises(
                StorageError,
                match=r"/never/a/x\?\S+: cannot be written \(When .*\)\. What was recorded before is intact",
            ):
                storage.put("a/x", b"one")
            with pytest.raises(StorageError, match=r"/never/a/x\?\S+: cannot be read \(When .*check the address"):
                storage.read("a/x")
            for ask in (storage.exists, storage.names, storage.folders, storage.modified):
                with pytest.raises(StorageError, match="cannot be read"):
                    ask("a")
            with pytest.raises(StorageError, match="cannot be written"):
                storage.delete("a/x")
        assert quick == [*storage_module.PAUSES_S] * 7 and sum(storage_module.PAUSES_S) < 15

    def test_no_further_try_after_the_patience(self, s3_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Clients of object stores wait by themselves: what counts is the time."""
        monkeypatch.setattr(storage_module, "PATIENCE_S", 0.0)
        with failing_s3(s3_uri, -1) as proxy, pytest.raises(StorageError):
            proxy.storage("never").read("a/x")
        assert sum(proxy.failed.values()) == 1

    def test_a_missing_right_is_said_at_once(self, s3_uri: str, quick: list[float]) -> None:
        with failing_s3(s3_uri, -1) as proxy:
            storage = proxy.storage("x")
            proxy.status = 403
            with pytest.raises(StorageError, match="ACCESS_DENIED"):
                storage.read("a/x")
        assert quick == []


class TestFailingFolder:
    def test_an_input_output_error_that_passes_is_sat_out(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[float]
    ) -> None:
        """Also when the file was in place before the error came."""
        storage = Storage(str(tmp_path))
        for failing in ("file", "folder"):
            left = [errno.EIO] * 3
            for kind in ("file", "folder"):
                real = getattr(durable, f"sync_{kind}")
                monkeypatch.setattr(
                    storage_module, f"sync_{kind}", failing_first(real, left if kind == failing else [])
                )
            storage.publish(f"{failing}/published", b"1")
            assert left == []
            left += [errno.EIO] * 3
            storage.put(f"{failing}/put", b"2")
            assert storage.read(f"{failing}/published") == b"1" and storage.read(f"{failing}/put") == b"2"
        assert len(quick) == 12 and list((tmp_path / "staging").iterdir()) == []

    @pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
    def test_what_will_not_pass_is_said_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[float], number: int
    ) -> None:
        monkeypatch.setattr(storage_module, "sync_file", failing_first(durable.sync_file, [number]))
        with pytest.raises(StorageError, match=rf"a/x: cannot be written \({os.strerror(number)}"):
            Storage(str(tmp_path)).put("a/x", b"1")
        assert quick == []

    def test_what_killed_writers_left_is_swept_and_a_living_one_is_spared(self, tmp_path: Path) -> None:
        done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(tmp_path)], timeout=60)
        assert done.returncode == -signal.SIGKILL
        (leftover,) = (tmp_path / "staging").iterdir()
        living = tmp_path / "staging" / "living.half"
        with living.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            Storage(str(tmp_path)).put("a/x", b"1")
            assert not leftover.exists() and living.exists()
        Storage(str(tmp_path)).put("a/x", b"1")
        assert not living.exists() and Storage(str(tmp_path)).names("a") == ["x"]

    def test_a_writer_that_lost_its_file_to_a_sweep_writes_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[float]
    ) -> None:
        storage = Storage(str(tmp_path))
        swept: list[Path] = []

        def sweep(file: IO[bytes]) -> None:
            durable.sync_file(file)
            if not swept:
                swept.append(Path(file.name))
                Path(file.name).unlink()

        monkeypatch.setattr(storage_module, "sync_file", sweep)
        storage.publish("a/x", b"1")
        assert storage.read("a/x") == b"1" and len(swept) == 1 and len(quick) == 1


def failing_first(act: Callable[[Any], None], left: list[int]) -> Callable[[Any], None]:
    """Raises the errors in `left`, one a call, then acts."""

    def acting(argument: Any) -> None:
        if left:
            number = left.pop()
            raise OSError(number, os.strerror(number))
        act(argument)

    return acting


KILLED_WRITER = """
import os, signal, sys
import trainable.storage as storage
storage.sync_file = lambda file: os.kill(os.getpid(), signal.SIGKILL)
storage.Storage(sys.argv[1]).put("a/x", b"half of it")
"""
