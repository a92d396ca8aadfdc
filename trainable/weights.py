"""Where initial weights are found: a local file in timm's formats, or the hub, by timm tag.

A missing one is reported in words, with every place that was looked at. Files are read as tensors only: safetensors,
or torch files with `weights_only`. Identity is the SHA-256 over the tensors, so the same weights as .safetensors and
as .pth are the same weights.
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
from safetensors import SafetensorError

from trainable.credentials import redacted
from trainable.spec import InitSpec

if TYPE_CHECKING:
    from trainable.surgery import State

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_FILES = ("model.safetensors", "pytorch_model.bin")
HUB_TIMEOUT_S = 5
SOURCE = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}"
"""A timm tag, or the name of a file below `--weights`."""


class MissingWeights(Exception):
    """Weights cannot be had; the message says where they were looked for and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Tensors as loaded from a file."""

    path: Path
    state: State
    sha256: str


def find_weights(init: InitSpec, weights_path: Path | None, *, download: bool) -> Weights:
    """Finds and reads the weights of an `InitSpec` of kind hub or file; the hub is asked only with `download`.

    Raises:
        MissingWeights: nowhere to be found, unreadable, or not the ones whose SHA-256 the spec names.
    """
    assert init.source is not None, "checked by InitSpec"
    if not re.fullmatch(SOURCE, init.source) or ".." in init.source.split("/"):
        raise MissingWeights(
            f"weights {init.source}: must be a name within --weights, not a path that leaves it: letters, digits, "
            "'.', '_', '-', and '/' between them"
        )
    path = _local(init.source, weights_path)
    if path is None:
        if init.kind == "file":
            raise MissingWeights(f"weights {init.source}: {_looked_at(init.source, weights_path)}")
        path = _hub(init.source, weights_path, download)
    state = read_weights(path)
    found = Weights(path=path, state=state, sha256=tensors_sha256(state))
    if init.sha256 is not None and found.sha256 != init.sha256:
        raise MissingWeights(
            f"weights {init.source}: {path} holds tensors of SHA-256 {found.sha256[:16]}, the run was planned with "
            f"{init.sha256[:16]}; put the same file back, or plan anew"
        )
    return found


def read_weights(path: Path) -> State:
    """Reads a .safetensors file, or a torch file without unpickling any object.

    Raises:
        MissingWeights: unreadable, or holds anything but tensors by name.
    """
    import torch
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        first = str(error).splitlines()[0] if str(error) else error.__class__.__name__
        raise MissingWeights(f"{path}: not a readable weight file ({first}); get it anew") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise MissingWeights(f"{path}: holds no table of tensors by name; use a timm weight file")
    return state


def tensors_sha256(state: State) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors, in order of their names."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _candidates(source: str, folder: Path) -> Iterator[Path]:
    """Where a local copy of a timm tag may lie: by its tag, as a hub folder, or in a hub cache."""
    if source.endswith(SUFFIXES):
        yield folder / source
    for suffix in SUFFIXES:
        yield folder / (source + suffix)
    for file in HUB_FILES:
        yield folder / source / file
    for file in HUB_FILES:
        yield from sorted(folder.glob(f"models--timm--{source}/snapshots/*/{file}"))


def _local(source: str, folder: Path | None) -> Path | None:
    if folder is None:
        return None
    return next((path for path in _candidates(source, folder) if path.is_file()), None)


def _looked_at(source: str, folder: Path | None) -> str:
    if folder is None:
        return "no --weights DIR was given"
    return f"{folder} holds no {source}.safetensors, {source}.pth or {source}/{HUB_FILES[0]}"


def _hub(source: str, folder: Path | None, download: bool) -> Path:
    """The hub's file of a timm tag: from its cache, or downloaded."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    repository = f"timm/{source}"
    for file in HUB_FILES:
        cached = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Path(cached)
    why = "not in the hub's cache"
    if download:
        endpoint = huggingface_hub.constants.ENDPOINT
        try:  # the hub's client retries for half a minute when there is no network: ask once, briefly, first
            requests.head(endpoint, timeout=HUB_TIMEOUT_S)
        except requests.RequestException as error:
            why = f"{redacted(endpoint)} cannot be reached ({error.__class__.__name__})"
        else:
            for file in HUB_FILES:
                try:
                    return Path(huggingface_hub.hf_hub_download(repository, file))
                except (HfHubHTTPError, OSError, ValueError) as error:
                    why = f"{repository} cannot be had from {redacted(endpoint)} ({error.__class__.__name__})"
    raise MissingWeights(
        f"weights {source}: {why}, and {_looked_at(source, folder)}; put a local copy into a folder and add "
        "--weights DIR"
    )
