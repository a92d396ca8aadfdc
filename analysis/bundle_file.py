"""The file of a bundle: an uncompressed tar of plain files, the first of which lists all others.

    bundle.json              grid, variant, versions, and of every other member its size and SHA-256
    preregistration.toml     as it was in force
    store/...                the part of a results store that the grid needs, under the paths that it has there
    outputs/...              its tables and the numbers of its figures
    attached/...             what was taken along as it was

The same members give the same bytes: sorted names, no times, no owners. An archive of somebody else is read and never
run: names that would leave the folder, links, devices, sizes that the archive has not, members that are not listed or
stand twice are refused before anything is written under their names.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datasets.durable import sync_file, sync_folder
from datasets.source_types import BROKEN_ARCHIVE
from trainable.manifests import VARIANT
from trainable.records import NAME
from trainable.schemas import SCHEMA_VERSION as STORE_SCHEMA_VERSION

SCHEMA_VERSION = 1
INDEX = "bundle.json"
REGISTRATION = "preregistration.toml"
STORE, OUTPUTS, ATTACHED = "store", "outputs", "attached"
MAX_MEMBERS = 1_000_000
"""10,000 runs have 80,000 files."""
MAX_INDEX_BYTES = 256 << 20
_CHUNK = 1 << 20


class BundleError(Exception):
    """No bundle, not a whole one, or one that cannot be made; the message names the member and the mend."""


class Member(BaseModel):
    """One file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Bundle(BaseModel):
    """What `bundle.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    kind: Literal["grid bundle"] = "grid bundle"
    schema_version: int
    store_schema_version: int
    grid: str = Field(pattern=NAME)
    variant: str = Field(pattern=VARIANT)
    num_runs: int = Field(ge=0)
    """Runs that are done."""
    code: str | None
    """Commit of the code that made it, with `-dirty` after it where files were changed; null where nobody knew."""
    versions: dict[str, str]
    """Of Python and the libraries that made the outputs."""
    outputs: dict[str, str]
    """Why an output could not be made, by its id; empty where it was."""
    members: list[Member]

    def below(self, folder: str) -> list[Member]:
        """The members in one of the folders."""
        return [member for member in self.members if member.name.startswith(f"{folder}/")]


def members_of(folder: Path) -> list[Member]:
    """The files below a folder by sorted name, with their hashes.

    Raises:
        BundleError: one is a link, a pipe or a device, or has a name that no bundle may hold.
    """
    found = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BundleError(f"{path}: a link, a pipe or a device; a bundle holds plain files alone")
        if path.is_file():
            check_name(name)
            found.append(Member(name=name, bytes=path.stat().st_size, sha256=_sha256(path)))
    return sorted(found, key=lambda member: member.name)


def check_name(name: str) -> None:
    """Refuses a member's name that could be any other file than one within its folder.

    Raises:
        BundleError: it could.
    """
    parts = name.split("/")
    if (
        not name.isprintable()
        or any(part in ("", ".", "..") for part in parts)
        or "\\" in name
        or ":" in name
        or parts[0] not in (REGISTRATION, STORE, OUTPUTS, ATTACHED)
        or (len(parts) == 1) != (parts[0] == REGISTRATION)
    ):
        raise BundleError(f"{name!r} is not the name of a member: it must lie in store/, outputs/ or attached/")


def write_bundle(bundle: Bundle, folder: Path, path: Path) -> str:
    """Writes the archive, whole or not at all; one that was there is replaced.

    Args:
        bundle: with the members of the folder.
        folder: their files.
        path: the archive.

    Returns:
        The digest: SHA-256 of `bundle.json`, and so of everything in it.

    Raises:
        BundleError: a name is too long for an archive.
        OSError: cannot be written.
    """
    index = bundle.model_dump_json(indent=1).encode() + b"\n"
    half = path.with_name(f"{path.name}.half")
    try:
        with half.open("wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT, encoding="utf-8") as archive:
                _add(archive, INDEX, len(index), io.BytesIO(index))
                for member in bundle.members:
                    with (folder / member.name).open("rb") as content:
                        _add(archive, member.name, member.bytes, content)
            sync_file(file)
        half.replace(path)
        sync_folder(path.parent)
    finally:
        half.unlink(missing_ok=True)
    return hashlib.sha256(index).hexdigest()


def _add(archive: tarfile.TarFile, name: str, size: int, content: IO[bytes]) -> None:
    header = tarfile.TarInfo(name)  # its defaults: no time, no owner, mode 644
    header.size = size
    try:
        archive.addfile(header, content)
    except ValueError as error:
        raise BundleError(f"{name}: {error}; a member has at most 255 bytes of name and 8 GiB") from None


@contextmanager
def opened(path: Path) -> Iterator[tuple[Bundle, str, Path]]:
    """A bundle, its digest, and a temporary folder with its members, every one of them what `bundle.json` says.

    Raises:
        BundleError: not a whole bundle, a newer one, or one that could do harm.
        OSError: the temporary folder cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="bundle-") as folder:
        bundle, digest = _extract(path, Path(folder))
        yield bundle, digest, Path(folder)


class _Header(tarfile.TarInfo):
    """A member that is checked before tarfile does anything that its header asks for."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type != tarfile.REGTYPE or header.size < 0:
            raise BundleError(f"{header.name!r} is a link, a device, a folder or no plain file; nothing was opened")
        return header


def _extract(path: Path, folder: Path) -> tuple[Bundle, str]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:", tarinfo=_Header) as archive:
            members = iter(archive)
            first = next(members, None)
            bundle, digest = _index(path, archive, first, size)
            _extract_members(path, archive, members, bundle, folder, size)
        if size != (whole := _whole(bundle, first.size if first else 0)):
            raise BundleError(
                f"{path}: {size:,} bytes, its members make {whole:,}: cut off or added to; get the bundle anew"
            )
    except BROKEN_ARCHIVE as error:
        known = error.strerror if isinstance(error, OSError) else None
        why = known or str(error).partition("\n")[0] or type(error).__name__
        raise BundleError(f"{path}: cannot be read as a bundle ({why}); get it anew") from None
    return bundle, digest


def _index(path: Path, archive: tarfile.TarFile, first: tarfile.TarInfo | None, size: int) -> tuple[Bundle, str]:
    if first is None or first.name != INDEX or first.size > MAX_INDEX_BYTES:
        raise BundleError(f"{path}: does not begin with {INDEX}: not a bundle of this project")
    content = b"".join(_content(path, archive, first, size))
    try:
        versions = _Versions.model_validate_json(content)
        for name, found, known in (
            ("schema version", versions.schema_version, SCHEMA_VERSION),
            ("store schema version", versions.store_schema_version, STORE_SCHEMA_VERSION),
        ):
            if found > known:
                raise BundleError(
                    f"{path}: {INDEX} was written with {name} {found}, this version reads up to {known}; update this "
                    "project"
                )
        bundle = Bundle.model_validate_json(content)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"]) or "its text"
        raise BundleError(f"{path}: {INDEX} is not the list of a bundle ({where}); get the bundle anew") from None
    return bundle, hashlib.sha256(content).hexdigest()


class _Versions(BaseModel):
    schema_version: int
    store_schema_version: int


def _extract_members(
    path: Path,
    archive: tarfile.TarFile,
    members: Iterator[tarfile.TarInfo],
    bundle: Bundle,
    folder: Path,
    size: int,
) -> None:
    listed = {member.name: member for member in bundle.members}
    if len(listed) < len(bundle.members) or len(listed) > MAX_MEMBERS:
        raise BundleError(f"{path}: {INDEX} lists {len(bundle.members):,} members, some of them twice or too many")
    for name in listed:
        check_name(name)
    needed, free = sum(member.bytes for member in bundle.members), shutil.disk_usage(folder).free
    if needed > free:
        raise BundleError(
            f"{path}: its members have {needed:,} bytes, {folder.parent} has {free:,} free; make room, or let TMPDIR "
            "name a folder that has it"
        )
    seen: set[str] = set()
    for header in members:
        name = header.name
        if name in seen or name == INDEX:
            raise BundleError(f"{path}: {name} stands in it twice; get it anew")
        if name not in listed:
            raise BundleError(f"{path}: {name!r} is not listed in {INDEX}: it was added; get the bundle anew")
        seen.add(name)
        _extract_member(path, archive, header, listed[name], folder / name, size)
    if missing := sorted(listed.keys() - seen):
        others = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise BundleError(f"{path}: {missing[0]} is listed in {INDEX} and missing{others}; get the bundle anew")


def _extract_member(
    path: Path, archive: tarfile.TarFile, header: tarfile.TarInfo, member: Member, target: Path, size: int
) -> None:
    if header.size != member.bytes:
        raise BundleError(
            f"{path}: {member.name} has {header.size:,} bytes, {INDEX} says {member.bytes:,}; get the bundle anew"
        )
    digest = hashlib.sha256()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for chunk in _content(path, archive, header, size):
                digest.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise BundleError(
            f"{path}: {member.name} cannot be unpacked into a temporary folder ({error.strerror or error}); make room, "
            "or let TMPDIR name a folder that has it"
        ) from None
    if digest.hexdigest() != member.sha256:
        raise BundleError(
            f"{path}: {member.name}: its content is not what was bundled (SHA-256 differs); get the bundle anew"
        )


def _content(path: Path, archive: tarfile.TarFile, header: tarfile.TarInfo, size: int) -> Iterator[bytes]:
    if header.offset_data + header.size > size:
        raise BundleError(f"{path}: ends within {header.name}: truncated; get the bundle anew")
    content = archive.extractfile(header)
    assert content is not None
    while chunk := content.read(_CHUNK):
        yield chunk


def _whole(bundle: Bundle, index_bytes: int) -> int:
    """Bytes of the archive that holds these members and nothing else."""
    sizes = [index_bytes, *(member.bytes for member in bundle.members)]
    blocks = sum(1 + -(-size // tarfile.BLOCKSIZE) for size in sizes) + 2
    return -(-blocks * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
