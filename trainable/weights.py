"""Where initial weights are found: a local file, or the library's own source, by timm tag or `torchvision/<weights>`.

A missing one is reported in words, with every place that was looked at. Files are read as tensors only: safetensors,
or torch files with `weights_only`. Identity is the SHA-256 over the tensors, so the same weights as .safetensors and
as .pth are the same weights. A file of `trainable.stand_ins` says of itself that it is none of the published ones.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import requests
from safetensors import SafetensorError, safe_open

from datasets.download import DownloadError
from datasets.terminal import one_line
from trainable import torchvision_weights
from trainable.credentials import redacted
from trainable.spec import InitSpec
from trainable.torchvision_weights import Published

if TYPE_CHECKING:
    from trainable.surgery import State

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_TIMEOUT_S = 5
SOURCE = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}"
"""A timm tag, `torchvision/<weights>`, or the name of a file below `--weights`."""
NOT_PUBLISHED_WEIGHTS = "random stand-ins, not the published ones"
STAND_IN = "stand_in"
"""In a safetensors file's metadata: which random weights it holds in place of the published ones."""
_MARK_CHARACTERS = 100


class MissingWeights(Exception):
    """Weights cannot be had; the message says where they were looked for and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Tensors as loaded from a file."""

    path: Path
    state: State
    """By the names of this version of the library's models."""
    sha256: str
    """Over the tensors as the file has them."""
    stand_in: str | None = None
    """Which random weights they are; None: it is not known that they are any."""


def find_weights(init: InitSpec, weights_path: Path | None, *, download: bool) -> Weights:
    """Finds and reads the weights of an `InitSpec` of kind hub or file; the hub is asked only with `download`.

    Raises:
        MissingWeights: nowhere to be found, unreadable, or not the ones whose SHA-256 the spec names.
    """
    assert init.source is not None, "checked by InitSpec"
    source = check_source(init.source)
    published = _published(source) if init.kind == "hub" else None
    path = find_local(source, weights_path, published)
    if path is None:
        looked = _looked_at(source, weights_path, published)
        if init.kind == "file":
            raise MissingWeights(f"weights {source}: {looked}")
        got = _hub(source, download) if published is None else _torchvision(published, download)
        if isinstance(got, str):
            raise MissingWeights(
                f"weights {source}: {got}, and {looked}; put a local copy into a folder and add --weights DIR"
            )
        path = got
    state, stand_in = _read(path)
    sha256 = tensors_sha256(state)
    if init.sha256 is not None and sha256 != init.sha256:
        raise MissingWeights(
            f"weights {source}: {path} holds tensors of SHA-256 {sha256[:16]}, the run was planned with "
            f"{init.sha256[:16]}; put the same file back, or plan anew"
        )
    state = state if published is None else torchvision_weights.as_named_now(state)
    return Weights(path=path, state=state, sha256=sha256, stand_in=stand_in)


def check_source(source: str) -> str:
    """The source, which may become a file's path below a folder.

    Raises:
        MissingWeights: it could lead out of the folder.
    """
    if not re.fullmatch(SOURCE, source) or ".." in source.split("/"):
        raise MissingWeights(
            f"weights {source}: must be a name within --weights, not a path that leaves it: letters, digits, "
            "'.', '_', '-', and '/' between them"
        )
    return source


def find_local(source: str, folder: Path | None, published: Published | None = None) -> Path | None:
    """The file of a source in a folder of local weights; None where there is none.

    Args:
        source: as in an `InitSpec`.
        folder: of local weights, if any.
        published: what torchvision says of the source, where it is one of torchvision's.
    """
    if folder is None:
        return None
    return next((path for path in _candidates(source, folder, published) if path.is_file()), None)


def read_weights(path: Path) -> State:
    """Reads a .safetensors file, or a torch file without unpickling any object.

    Raises:
        MissingWeights: unreadable, or holds anything but tensors by name.
    """
    return _read(path)[0]


def stand_in_of(path: Path) -> str | None:
    """Which random weights a file says that it holds; None: it says nothing.

    Raises:
        MissingWeights: unreadable.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            return _mark(file.metadata())
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _mark(metadata: dict[str, str] | None) -> str | None:
    """As it can stand in a line of a table."""
    told = (metadata or {}).get(STAND_IN)
    return None if told is None else one_line(told)[:_MARK_CHARACTERS] or "unknown"


def _read(path: Path) -> tuple[State, str | None]:
    """The tensors, and which stand-in they say they are."""
    import torch

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, _mark(file.metadata())  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise MissingWeights(f"{path}: holds no table of tensors by name; use a timm weight file")
    return state, None


def _unreadable(path: Path, error: Exception) -> MissingWeights:
    first = str(error).splitlines()[0] if str(error) else error.__class__.__name__
    return MissingWeights(f"{path}: not a readable weight file ({first}); get it anew")


def tensors_sha256(state: State) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, in order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _candidates(source: str, folder: Path, published: Published | None) -> Iterator[Path]:
    """Where a local copy may lie: by its source's name, as a hub folder, in a hub cache, as torchvision names it."""
    if source.endswith(SUFFIXES):
        yield folder / source
    for suffix in SUFFIXES:
        yield folder / (source + suffix)
    for file in HUB_FILES:
        yield folder / source / file
    for file in HUB_FILES:
        yield from sorted(folder.glob(f"models--timm--{source}/snapshots/*/{file}"))
    if published is not None:
        yield folder / published.file


def _looked_at(source: str, folder: Path | None, published: Published | None) -> str:
    if folder is None:
        return "no --weights DIR was given"
    last = f"{source}/{HUB_FILES[0]}" if published is None else published.file
    return f"{folder} holds no {source}.safetensors, {source}.pth or {last}"


def _published(source: str) -> Published | None:
    """What torchvision says of one of its sources; None for a timm tag."""
    if not source.startswith(torchvision_weights.PREFIX):
        return None
    try:
        return torchvision_weights.published(source)
    except ValueError as error:
        raise MissingWeights(f"weights {source}: {error}") from None


def _hub(source: str, download: bool) -> Path | str:
    """The hub's file of a timm tag, from its cache, or downloaded; or why it cannot be had."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    repository = f"timm/{source}"
    for file in HUB_FILES:
        cached = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    if not download:
        return "not in the hub's cache"
    endpoint = huggingface_hub.constants.ENDPOINT
    if (why := _unreachable(endpoint)) is not None:
        return why
    for file in HUB_FILES:
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        except (HfHubHTTPError, OSError, ValueError) as error:
            why = f"{repository} cannot be had from {redacted(endpoint)} ({error.__class__.__name__})"
    return str(why)


def _torchvision(published: Published, download: bool) -> Path | str:
    """torchvision's file, from torch.hub's cache, or downloaded; or why it cannot be had."""
    cached = torchvision_weights.cache_folder() / published.file
    spoilt = ""
    if cached.is_file():
        if torchvision_weights.is_published_file(cached, published):
            return cached
        spoilt = f"{cached} is not the published file: its SHA-256 does not begin with {published.sha256_begins}"
    if not download:
        return spoilt or "not in torch.hub's cache"
    why = _unreachable(published.origin)
    if why is None:
        try:
            return torchvision_weights.fetch(published)
        except DownloadError as error:
            why = f"{published.file} cannot be had from {published.origin} ({error.why})"
        except OSError as error:
            why = f"{cached.parent} cannot be written ({error.strerror})"
    return f"{spoilt}, and {why}" if spoilt else why


def _unreachable(endpoint: str) -> str | None:
    """Why an address cannot be reached, asked once and briefly: the clients that download retry for half a minute."""
    try:
        requests.head(endpoint, timeout=HUB_TIMEOUT_S)
    except requests.RequestException as error:
        return f"{redacted(endpoint)} cannot be reached ({error.__class__.__name__})"
    return None
