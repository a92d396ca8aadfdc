"""Downloads from a real server of this process: progress, resume, checksum."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datasets.download import ATTEMPTS, DownloadError, download
from datasets.published import PUBLISHED
from datasets.store import DataError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Server:
    """Serves CONTENT and breaks off after `breaks[0]` bytes, then `breaks[1]`, ..."""

    def __init__(self) -> None:
        self.breaks: list[int] = []
        self.ranges: list[str | None] = []
        self.content = CONTENT
        self.honour_ranges = self.tells_length = True
        self.status: int | None = None
        self.location: str | None = None
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                owner.ranges.append(wanted)
                if owner.status is not None:
                    self.send_error(owner.status)
                    return
                if owner.location is not None:
                    self.send_response(302)
                    self.send_header("Location", owner.location)
                    self.end_headers()
                    return
                start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and owner.honour_ranges else 0
                if start >= len(owner.content):
                    self.send_error(416)
                    return
                body = owner.content[start:]
                self.send_response(206 if start else 200)
                if owner.tells_length:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: owner.breaks.pop(0)] if owner.breaks else body)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/data.bin"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("datasets.download.SCHEMES", ("http://",))  # what this server speaks
    one = Server()
    yield one
    one.stop()


def silent(have: int, total: int | None) -> None:
    pass


def test_whole_file_with_progress(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = download(server.url, MD5, tmp_path, lambda have, total: seen.append((have, total)))
    assert path.read_bytes() == CONTENT and seen[-1] == (len(CONTENT), len(CONTENT))
    assert [entry.name for entry in tmp_path.iterdir()] == ["data.bin"]


def test_breaks_are_resumed(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000, 200_000]
    path = download(server.url, MD5, tmp_path, silent, pause_s=0)
    assert path.read_bytes() == CONTENT
    assert server.ranges[0] is None and all(text is not None and text != "bytes=0-" for text in server.ranges[1:])


def test_a_later_call_goes_on_where_the_first_gave_up(server: Server, tmp_path: Path) -> None:
    server.breaks = [100_000] * ATTEMPTS
    with pytest.raises(
        DataError, match=r"download failed \(\w+\)\. [\d,]+ bytes are kept .* pass it with --source FILE"
    ):
        download(server.url, MD5, tmp_path, silent, pause_s=0)
    kept = (tmp_path / "data.bin.part").stat().st_size
    assert download(server.url, MD5, tmp_path, silent, pause_s=0).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={kept}-"


def test_server_without_ranges_starts_over(server: Server, tmp_path: Path) -> None:
    server.breaks, server.honour_ranges = [300_000], False
    assert download(server.url, MD5, tmp_path, silent, pause_s=0).read_bytes() == CONTENT


def test_whole_part_of_an_earlier_call_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(CONTENT)
    assert download(server.url, MD5, tmp_path, silent, pause_s=0).read_bytes() == CONTENT


def test_wrong_content_is_deleted_and_named(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"x"
    with pytest.raises(DataError, match=rf"what came has MD5 \w+, the published file {MD5}; it was deleted"):
        download(server.url, MD5, tmp_path, silent)
    assert list(tmp_path.iterdir()) == []


def test_the_first_digits_of_a_digest_are_enough(server: Server, tmp_path: Path) -> None:
    """torchvision publishes eight to ten of SHA-256, in its files' names."""
    digits = hashlib.sha256(CONTENT).hexdigest()[:8]
    assert download(server.url, digits, tmp_path, silent, algorithm="sha256").read_bytes() == CONTENT
    download(server.url, digits, tmp_path, silent, algorithm="sha256")
    assert len(server.ranges) == 1, "the file that is there is recognised"
    server.content = CONTENT[:-1] + b"x"
    (tmp_path / "data.bin").write_bytes(b"other")
    with pytest.raises(DownloadError, match=rf"what came has SHA-256 \w{{64}}, the published file {digits}") as failed:
        download(server.url, digits, tmp_path, silent, algorithm="sha256")
    assert failed.value.why.startswith("what came has SHA-256") and "try again" not in failed.value.why
    assert (tmp_path / "data.bin").read_bytes() == b"other"


def test_absent_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match="Without network, fetch the file elsewhere"):
        download(server.url, MD5, tmp_path, silent, pause_s=0)
    assert len(server.ranges) == 1


def test_a_good_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(CONTENT)
    download(server.url, MD5, tmp_path, silent)
    assert server.ranges == []


def test_published_addresses_are_https() -> None:
    addresses = [published.url for published in PUBLISHED.values() if published.url is not None]
    assert len(addresses) == 3 and all(address.startswith("https://") for address in addresses)


def test_only_https_is_spoken(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.download.SCHEMES", ("https://",))
    for url in (server.url, (tmp_path / "secret.bin").as_uri()):
        with pytest.raises(DataError, match=r"download failed \(InvalidSchema\)"):
            download(url, MD5, tmp_path / "to", silent)
    assert server.ranges == []


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "https://127.0.0.1:1/x"])
def test_a_redirect_cannot_leave_the_scheme(target: str, server: Server, tmp_path: Path) -> None:
    """Here http is spoken alone, as https is otherwise."""
    server.location = target
    with pytest.raises(DataError, match=r"download failed \(InvalidSchema\)"):
        download(server.url, MD5, tmp_path, silent, pause_s=0)
    assert len(server.ranges) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("told", [True, False])
def test_more_than_an_archive_is_not_taken(
    told: bool, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.download.MAX_ARCHIVE_BYTES", 300_000)
    server.tells_length = told
    with pytest.raises(
        DataError, match="are offered, at most 300,000 are taken" if told else "more than 300,000 bytes"
    ):
        download(server.url, MD5, tmp_path, silent, pause_s=0)
    with pytest.raises(DownloadError, match="are offered, at most 200,000" if told else "more than 200,000 bytes"):
        download(server.url, MD5, tmp_path / "other", silent, at_most_bytes=200_000, pause_s=0)
    assert not (tmp_path / "data.bin").exists()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 400_000
