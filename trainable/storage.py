"""`Storage`: the results root on anything that `pyarrow.fs` opens, with whole-or-absent writes.

A path here is relative to the root, with '/'. Locally a file is written to `staging/`, synced, and moved into place;
on object stores a put is atomic by nature. Leftovers in `staging/` are never read, and the next writer removes them.

What fails for a reason that may pass (a connection, a server's error 500, EIO of a network file system) is tried again
for a while; a full disk or a missing right is said at once.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from pyarrow import ArrowInvalid
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem, SubTreeFileSystem

from datasets.durable import sync_file, sync_folder
from trainable.credentials import credentials_in

MAX_READ_BYTES = 8 << 30
"""No file of ours is nearly as large; reading a larger one whole could take a machine's memory."""

PAUSES_S = (0.1, 0.2, 0.5, 1.2, 3.0, 4.0, 5.0)
"""Pauses between the tries of what failed for a reason that may pass."""
PATIENCE_S = 14.0
"""No further try once so long has passed: the object stores' own clients have then tried many times within ours."""
_LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP),
}
_LASTING_WORDS = ("ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH")
"""In what an S3 client says; its errors have no errno."""

_HALF = ".half"

Answer = TypeVar("Answer")


class StorageError(Exception):
    """The results root cannot be used; the message names it and the mend."""


class Storage:
    """One results root.

    Args:
        uri: a local path, or a URI such as s3://bucket/prefix or gs://bucket/prefix.

    Raises:
        StorageError: no such kind of storage, or credentials in the URI. (The root itself is created by the first
            write.)

    A path that would leave the root is refused by every method with a `StorageError`: one that is absolute or has
    `..`, and in a folder also one that leads out over a link, or to a pipe or a device.
    """

    def __init__(self, uri: str) -> None:
        if "://" in uri and credentials_in(uri):
            raise StorageError(
                f"--results {uri.partition('://')[0]}://...: carries credentials, and every user of a machine can read "
                "its command lines; take them out, revoke them, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY "
                "(GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_KEY), a profile, or the machine's role"
            )
        self.uri = uri
        self._inner: set[str] = set()
        self._swept = False
        self.local_root: Path | None = None
        try:
            if "://" not in uri:
                self.local_root = Path(uri).absolute()
                fs: FileSystem = LocalFileSystem()
                root = str(self.local_root)
            else:
                fs, root = FileSystem.from_uri(uri)
                if isinstance(fs, LocalFileSystem):
                    self.local_root = Path(root)
        except (ArrowInvalid, OSError, ValueError) as error:
            raise StorageError(
                f"--results {uri}: cannot be opened ({str(error).splitlines()[0]}); give a folder or a URI that "
                "pyarrow.fs opens (s3://, gs://, hdfs://, file://) and that can be written"
            ) from None
        self.fs = SubTreeFileSystem(root, fs)

    def read(self, path: str, *, at_most: int = MAX_READ_BYTES) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: absent.
            StorageError: cannot be read, or larger than `at_most` bytes.
        """

        def whole() -> bytes:
            with self.fs.open_input_file(self._inside(path)) as file:
                if (size := file.size()) > at_most:
                    raise StorageError(
                        f"{self.folder(path)}: {size:,} bytes where at most {at_most:,} belong; move it away"
                    )
                content: bytes = file.read()
                return content

        return self._reading(path, whole)

    def put(self, path: str, content: bytes) -> None:
        """Writes the whole file, replacing an older one. A reader sees the old or the new, never a part.

        Raises:
            StorageError: no room or no right to write; the old file is still there.
        """
        self._writing(path, lambda: self._write(path, content, replace=True))

    def publish(self, path: str, content: bytes) -> None:
        """Writes a file that must not exist yet.

        Raises:
            FileExistsError: it exists; nothing is changed.
            StorageError: no room or no right to write.
        """
        if self.exists(path):
            raise FileExistsError(f"{self.uri}/{path} is there already; results are never overwritten")
        failed: list[OSError] = []

        def once() -> None:
            try:
                self._write(path, content, replace=False)
            except FileExistsError:
                if not (failed and self.read(path) == content):
                    raise
                if self.local_root is not None:  # an earlier try had come so far
                    sync_folder((self.local_root / path).parent)
            except OSError as error:
                failed.append(error)
                raise

        self._writing(path, once)

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files in a folder; empty where there is no such folder.

        Raises:
            StorageError: cannot be read, as for the questions below.
        """
        return self._names(folder, FileType.File)

    def folders(self, folder: str) -> list[str]:
        """Sorted names of the folders in a folder; empty where there is no such folder."""
        return self._names(folder, FileType.Directory)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Bytes of the file; None where there is none."""
        info = self._info(path)
        return int(info.size) if info.type == FileType.File else None

    def modified(self, path: str) -> datetime | None:
        """When the file was last written, by the storage's clock; None where there is none."""
        info = self._info(path)
        return info.mtime if info.type == FileType.File else None

    def read_start(self, path: str, num_bytes: int) -> bytes:
        """The first bytes of a file, fewer where it is shorter.

        Raises:
            FileNotFoundError: absent.
            StorageError: cannot be read.
        """

        def start() -> bytes:
            with self.fs.open_input_file(self._inside(path)) as file:
                content: bytes = file.read(num_bytes)
                return content

        return self._reading(path, start)

    def delete(self, path: str) -> None:
        """Removes a file; absent is fine.

        Raises:
            StorageError: no right to.
        """

        def gone() -> None:
            with suppress(FileNotFoundError):
                self.fs.delete_file(self._inside(path))

        self._writing(path, gone)

    def folder(self, path: str) -> str:
        """Where a folder of the root lies, for people; the options of a URI stay behind its path."""
        root, mark, options = self.uri.partition("?") if "://" in self.uri else (self.uri, "", "")
        return f"{root.rstrip('/')}/{path}{mark}{options}"

    def local_path(self, path: str) -> Path | None:
        """Where a file or folder of the root lies on this machine; None on an object store."""
        path = self._inside(path)
        return None if self.local_root is None else self.local_root / path

    def _inside(self, path: str) -> str:
        """The path, once it is certain that it stays below the root.

        Raises:
            StorageError: it does not.
        """
        parts = path.split("/")
        if path.startswith("/") or ".." in parts or not path.isprintable() or "\\" in path:
            raise StorageError(
                f"--results {self.uri}: {path!r} is not the path of a file within it; a record that names such a path "
                "is damaged or meant as harm, move it away"
            )
        if self.local_root is not None:
            folder = "/".join(parts[:-1])
            if folder not in self._inner:  # links are looked for once a folder, since a path's every part costs time
                self._follow(folder)
                self._inner.add(folder)
            with suppress(FileNotFoundError, NotADirectoryError):
                kind = (self.local_root / path).lstat().st_mode
                if stat.S_ISLNK(kind):
                    kind = self._follow(path)
                if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                    raise StorageError(f"{self.folder(path)}: a pipe or a device and no file; move it away")
        return path

    def _follow(self, path: str) -> int:
        """The mode of what a path leads to (of a plain file where that is not there yet).

        Raises:
            StorageError: it leads out of the root.
        """
        assert self.local_root is not None
        real, root = os.path.realpath(self.local_root / path), os.path.realpath(self.local_root)
        if real != root and not real.startswith(root.rstrip("/") + "/"):
            raise StorageError(
                f"{self.folder(path)}: a link that leads out of the results, which is not followed; put there what it "
                "points to, or let --results name a link to the whole folder"
            )
        with suppress(FileNotFoundError, NotADirectoryError):
            return Path(real).stat().st_mode
        return stat.S_IFREG

    def _names(self, folder: str, kind: FileType) -> list[str]:
        def found() -> list[FileInfo]:
            selector = FileSelector(self._inside(folder), recursive=False, allow_not_found=True)
            infos: list[FileInfo]
            try:
                infos = self.fs.get_file_info(selector)
            except FileNotFoundError:  # another process made the folder between Arrow's first look and its second
                infos = self.fs.get_file_info(selector)
            return infos

        return sorted(info.base_name for info in self._reading(folder, found) if info.type == kind)

    def _info(self, path: str) -> FileInfo:
        return self._reading(path, lambda: self.fs.get_file_info(self._inside(path)))

    def _reading(self, path: str, read: Callable[[], Answer]) -> Answer:
        try:
            return _patiently(read)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StorageError(
                f"{self.folder(path)}: cannot be read ({_first_line(error)}); check the address, the connection and "
                "your right to read it, then run the same command again"
            ) from error

    def _writing(self, path: str, write: Callable[[], None]) -> None:
        try:
            _patiently(write)
        except FileExistsError:
            raise
        except OSError as error:
            free = ""
            if self.local_root is not None and error.errno == errno.ENOSPC:
                free = f", {shutil.disk_usage(self.local_root).free:,} bytes free"
            raise StorageError(
                f"{self.folder(path)}: cannot be written ({_first_line(error)}{free}). What was recorded before is "
                "intact; make room or mend the access, then run the same command again"
            ) from error

    def _write(self, path: str, content: bytes, *, replace: bool) -> None:
        path = self._inside(path)
        if self.local_root is None:
            with self.fs.open_output_stream(path) as stream:
                stream.write(content)
        else:
            try:
                self._place(self.local_root, path, content, replace=replace)
            except FileNotFoundError as error:  # somebody removed the folders: they are made again by the next try
                raise OSError(errno.EAGAIN, f"{error.strerror}: {error.filename}") from error

    def _place(self, root: Path, path: str, content: bytes, *, replace: bool) -> None:
        target = root / path
        staging = root / "staging"
        self._follow("staging")
        _make_folder(staging)
        if not self._swept:
            _sweep(staging)
            self._swept = True
        _make_folder(target.parent)
        temporary = staging / f"{uuid.uuid4().hex}{_HALF}"
        try:
            with temporary.open("xb") as file:
                with suppress(OSError):  # a file system without locks: then nobody sweeps there either
                    fcntl.flock(file, fcntl.LOCK_EX)
                file.write(content)
                sync_file(file)
                if replace:
                    temporary.replace(target)
                else:
                    _link(temporary, target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _patiently(act: Callable[[], Answer]) -> Answer:
    """Acts, and acts again after what may pass."""
    began = time.monotonic()
    for pause_s in PAUSES_S:
        try:
            return act()
        except FileNotFoundError:
            raise
        except OSError as error:
            lasting = error.errno in _LASTING or any(word in str(error) for word in _LASTING_WORDS)
            if lasting or time.monotonic() - began >= PATIENCE_S:
                raise
        time.sleep(pause_s)
    return act()


def _first_line(error: OSError) -> str:
    return error.strerror or str(error).splitlines()[0]


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # to a caller, that would mean the file to be written
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def _sweep(staging: Path) -> None:
    """Removes what killed writers left. A living one holds its file locked; one whose lock is not seen here (network
    file systems may keep locks to each machine) finds its file gone, and writes it again."""
    for leftover in staging.glob(f"*{_HALF}"):
        with suppress(OSError), leftover.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            leftover.unlink()


def _link(temporary: Path, target: Path) -> None:
    """Publishes without ever replacing; file systems without hard links get a rename after the check of `publish`."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        temporary.replace(target)
