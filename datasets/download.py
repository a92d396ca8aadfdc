"""Fetches one published file: progress, resume after a break, and a checksum before anybody reads it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import requests
from requests.adapters import HTTPAdapter

from datasets.source_types import MAX_ARCHIVE_BYTES
from datasets.store import DataError

ATTEMPTS = 5
TIMEOUT_S = 30
SCHEMES = ("https://",)
"""No other is spoken, not even where an https:// address redirects to one."""
CHUNK_BYTES = 1 << 16

Progress = Callable[[int, int | None], None]
"""Called with (bytes so far, bytes in all or None)."""
Algorithm = Literal["md5", "sha256"]
_NAMES: dict[Algorithm, str] = {"md5": "MD5", "sha256": "SHA-256"}


class DownloadError(DataError):
    """A file could not be had.

    Args:
        message: for who prepares data, with the mend.
        why: the cause in a few words, for who has another mend to offer.
    """

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


def download(
    url: str,
    digest: str,
    folder: Path,
    progress: Progress,
    *,
    algorithm: Algorithm = "md5",
    at_most_bytes: int | None = None,
    pause_s: float = 2.0,
) -> Path:
    """Downloads `url` into `folder` unless it is there already, and checks its digest.

    A break is waited for and continued where it stopped, ATTEMPTS times; so is a download of an earlier call.

    Args:
        url: https; its last part becomes the file's name.
        digest: hex, of the whole file; or its first digits, where no more is published.
        folder: made where it is not there.
        progress: called now and then.
        algorithm: of the digest.
        at_most_bytes: more are not taken; None for MAX_ARCHIVE_BYTES.
        pause_s: before the second attempt; before later ones that many times more.

    Raises:
        DownloadError: the address cannot be reached, or what came is not the published file.
    """
    target = folder / url.rsplit("/", 1)[-1]
    if target.exists() and file_digest(target, algorithm).startswith(digest):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, part, progress, MAX_ARCHIVE_BYTES if at_most_bytes is None else at_most_bytes)
            break
        except requests.RequestException as error:
            if attempt == ATTEMPTS or _is_final(error):
                raise DownloadError(_failed(url, part, error), error.__class__.__name__) from None
            time.sleep(pause_s * attempt)
    if not (found := file_digest(part, algorithm)).startswith(digest):
        part.unlink()
        why = f"what came has {_NAMES[algorithm]} {found}, the published file {digest}"
        raise DownloadError(f"{url}: {why}; it was deleted, try again", why)
    part.replace(target)
    return target


def _continue(url: str, part: Path, progress: Progress, at_most: int) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with _session() as session, session.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as reply:
        if reply.status_code == 416:  # nothing beyond what we have: complete, or not this file; the MD5 tells
            return
        reply.raise_for_status()
        if reply.status_code != 206:
            have = 0
        length = reply.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total is not None and total > at_most:
            raise _too_large(url, f"{total:,} bytes are offered, at most {at_most:,} are taken")
        with part.open("ab" if have else "wb") as file:
            for chunk in reply.iter_content(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                if have > at_most:
                    raise _too_large(url, f"more than {at_most:,} bytes came; remove {part}")
                progress(have, total)


def _session() -> requests.Session:
    """A session that can speak SCHEMES alone."""
    session = requests.Session()
    session.adapters.clear()
    for scheme in SCHEMES:
        session.mount(scheme, HTTPAdapter())
    return session


def _is_final(error: requests.RequestException) -> bool:
    refused = error.response is not None and 400 <= error.response.status_code < 500
    return refused or isinstance(error, requests.exceptions.InvalidSchema)


def _failed(url: str, part: Path, error: requests.RequestException) -> str:
    have = part.stat().st_size if part.exists() else 0
    kept = f" {have:,} bytes are kept in {part} and the same command continues there." if have else ""
    return (
        f"{url}: download failed ({error.__class__.__name__}).{kept} Without network, fetch the file elsewhere and "
        "pass it with --source FILE"
    )


def _too_large(url: str, why: str) -> DownloadError:
    return DownloadError(f"{url}: {why}", why)


def file_digest(path: Path, algorithm: Algorithm) -> str:
    """Digest of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
