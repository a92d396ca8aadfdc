"""`Storage`: the results root on anything that `pyarrow.fs` opens, with whole-or-absent writes.

A path here is relative to the root, with '/'. Locally a file is written to `staging/`, synced, and moved into place;
on object stores a put is atomic by nature. Leftovers in `staging/` are never read.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from pyarrow import ArrowInvalid
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem, SubTreeFileSystem

from datasets.durable import sync_file, sync_folder


class StorageError(Exception):
    """The results root cannot be used; the message names it and the mend."""


class Storage:
    """One results root.

    Args:
        uri: a local path, or a URI such as s3://bucket/prefix or gs://bucket/prefix.

    Raises:
        StorageError: no such kind of storage. (The root itself is created by the first write.)
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
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

    def read(self, path: str) -> bytes:
        """The whole file.

        Raises:
            FileNotFoundError: absent.
        """
        with self.fs.open_input_file(path) as file:
            content: bytes = file.read()
            return content

    def put(self, path: str, content: bytes) -> None:
        """Writes the whole file, replacing an older one. A reader sees the old or the new, never a part.

        Raises:
            StorageError: no room or no right to write; the old file is still there.
        """
        try:
            if self.local_root is None:
                with self.fs.open_output_stream(path) as stream:
                    stream.write(content)
            else:
                self._place(path, content, replace=True)
        except OSError as error:
            raise self._cannot_write(path, error) from error

    def publish(self, path: str, content: bytes) -> None:
        """Writes a file that must not exist yet.

        Raises:
            FileExistsError: it exists; nothing is changed.
            StorageError: no room or no right to write.
        """
        if self.exists(path):
            raise FileExistsError(f"{self.uri}/{path} is there already; results are never overwritten")
        if self.local_root is None:
            self.put(path, content)
            return
        try:
            self._place(path, content, replace=False)
        except FileExistsError:
            raise
        except OSError as error:
            raise self._cannot_write(path, error) from error

    def names(self, folder: str) -> list[str]:
        """Sorted names of the files in a folder; empty where there is no such folder."""
        selector = FileSelector(folder, recursive=False, allow_not_found=True)
        return sorted(info.base_name for info in self.fs.get_file_info(selector) if info.type == FileType.File)

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """Bytes of the file; None where there is none."""
        info = self.fs.get_file_info(path)
        return int(info.size) if info.type == FileType.File else None

    def delete(self, path: str) -> None:
        """Removes a file; absent is fine."""
        with suppress(FileNotFoundError):
            self.fs.delete_file(path)

    def folder(self, path: str) -> str:
        """Where a folder of the root lies, for people."""
        return f"{self.uri.rstrip('/')}/{path}"

    def _place(self, path: str, content: bytes, *, replace: bool) -> None:
        assert self.local_root is not None
        target = self.local_root / path
        staging = self.local_root / "staging"
        staging.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = staging / uuid.uuid4().hex
        try:
            with temporary.open("xb") as file:
                file.write(content)
                sync_file(file)
            if replace:
                temporary.replace(target)
            else:
                _link(temporary, target)
            sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def _cannot_write(self, path: str, error: OSError) -> StorageError:
        free = ""
        if self.local_root is not None and error.errno == errno.ENOSPC:
            free = f", {shutil.disk_usage(self.local_root).free:,} bytes free"
        return StorageError(
            f"{self.folder(path)}: cannot be written ({error.strerror or error}{free}). What was recorded before is "
            "intact; make room or mend the access, then run the same command again"
        )


def _link(temporary: Path, target: Path) -> None:
    """Publishes without ever replacing; file systems without hard links get a rename after the check of `publish`."""
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS):
            raise
        temporary.replace(target)
