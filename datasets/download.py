"""Fetches one published archive: progress, resume after a break, and a checksum before anybody reads it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

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


def download(url: str, md5: str, folder: Path, progress: Progress, *, pause_s: float = 2.0) -> Path:
    """Downloads `url` into `folder` unless it is there already, and checks its MD5.

    A break is waited for and continued where it stopped, ATTEMPTS times; so is a download of an earlier call.

    Raises:
        DataError: the address cannot be reached, or what came is not the published archive.
    """
    target = folder / url.rsplit("/", 1)[-1]
    if target.exists() and _md5(target) == md5:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _continue(url, part, progress)
            break
        except requests.RequestException as error:
            if attempt == ATTEMPTS or _is_final(error):
                raise DataError(_failed(url, part, error)) from None
            time.sleep(pause_s * attempt)
    if (found := _md5(part)) != md5:
        part.unlink()
        raise DataError(f"{url}: what came has MD5 {found}, the published archive {md5}; it was deleted, try again")
    part.replace(target)
    return target


def _continue(url: str, part: Path, progress: Progress) -> None:
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
        if total is not None and total > MAX_ARCHIVE_BYTES:
            raise DataError(f"{url}: {total:,} bytes are offered, at most {MAX_ARCHIVE_BYTES:,} are taken")
        with part.open("ab" if have else "wb") as file:
            for chunk in reply.iter_content(CHUNK_BYTES):
                file.write(chunk)
                have += len(chunk)
                if have > MAX_ARCHIVE_BYTES:
                    raise DataError(f"{url}: more than {MAX_ARCHIVE_BYTES:,} bytes came; remove {part}")
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


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
