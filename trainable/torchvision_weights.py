"""torchvision's published weights of image classifiers: what a source `torchvision/<WeightsEnum>.<NAME>` is, where its
file comes from, and what its tensors are called.

torchvision and torch are imported where a source is looked at, so that reading an experiment file stays quick.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from datasets.download import download, file_digest

if TYPE_CHECKING:
    from torch import nn

    from trainable.surgery import State

PREFIX = "torchvision/"
AT_MOST_BYTES = 4 << 30
"""Of one file: the largest, RegNet-Y-128GF's, has 2.5 GB."""
_HASHED = r".+-([0-9a-f]{8,64})\.pth"
"""A file's name carries the first eight or ten digits of its SHA-256: torch.hub's convention."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """One published weight file."""

    url: str
    model: str
    """The name by which torchvision builds the model."""
    num_classes: int
    image_size: int
    """Side in pixels of the images that it was trained on, where the model's shape depends on it."""

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def origin(self) -> str:
        """Scheme and host of its address."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def sha256_begins(self) -> str:
        """The first hex digits of the file's SHA-256."""
        found = re.fullmatch(_HASHED, self.file)
        assert found is not None, "published() leaves out files without"
        return found[1]

    def build(self) -> nn.Module:
        """The library's own model of these weights, randomly initialised from torch's generator."""
        from torchvision.models import get_model

        settings: dict[str, Any] = {"num_classes": self.num_classes}
        if self.model.startswith("vit_"):
            settings["image_size"] = self.image_size
        if self.model in ("googlenet", "inception_v3"):
            settings["init_weights"] = False  # their own takes a minute, and warns of it
        module: nn.Module = get_model(self.model, weights=None, **settings)
        return module


def published(source: str) -> Published:
    """The weights of a source, by the name that torchvision gives them.

    Raises:
        ValueError: torchvision publishes none of this name; the message names the nearest.
    """
    found = _known()
    if source in found:
        return found[source]
    names = {name.lower(): name for name in found}
    enum, _, alias = source.removeprefix(PREFIX).rpartition(".")
    if alias == "DEFAULT" and (meant := next((own for own in _enums().values() if own.__name__ == enum), None)):
        raise ValueError(
            f"DEFAULT means other weights in other versions; now it is {PREFIX}{meant.DEFAULT!r}, say that"
        )
    close = difflib.get_close_matches(source.lower(), names, n=1)
    raise ValueError(f"torchvision publishes no such weights{f'; did you mean {names[close[0]]}?' if close else ''}")


@cache
def _enums() -> dict[str, Any]:
    """torchvision's tables of weights, by the name of the classifier."""
    from torchvision import models

    return {name: models.get_model_weights(name) for name in models.list_models(module=models)}


@cache
def _known() -> dict[str, Published]:
    """All weights of classifiers whose files can be checked, by source. Files of features alone have no classes."""
    return {
        f"{PREFIX}{entry!r}": Published(
            url=entry.url,
            model=name,
            num_classes=len(entry.meta["categories"]),
            image_size=max(entry.meta["min_size"]),
        )
        for name, enum in _enums().items()
        for entry in enum
        if entry.meta["categories"] and re.fullmatch(_HASHED, entry.url.rsplit("/", 1)[-1])
    }


def cache_folder() -> Path:
    """Where torch.hub keeps what was downloaded: `TORCH_HOME` and `XDG_CACHE_HOME` move it."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def is_published_file(path: Path, weights: Published) -> bool:
    """Whether a file's SHA-256 begins as the published file's name says."""
    return file_digest(path, "sha256").startswith(weights.sha256_begins)


def fetch(weights: Published) -> Path:
    """Downloads the file into torch.hub's cache, for torchvision itself to find, too. One process at a time does.

    Raises:
        DownloadError: it cannot be had, or what came is not the published file.
        OSError: the cache cannot be written.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{weights.file}.lock"):
        return download(
            weights.url,
            weights.sha256_begins,
            folder,
            lambda have, total: None,
            algorithm="sha256",
            at_most_bytes=AT_MOST_BYTES,
        )


_RENAMED = (
    (r"(\.mlp)\.linear_1\.", r"\1.0."),  # vision_transformer.py, MLPBlock._load_from_state_dict
    (r"(\.mlp)\.linear_2\.", r"\1.3."),
    (r"(denselayer\d+\.(?:norm|relu|conv))\.([12])\.", r"\1\2."),  # densenet.py, _load_state_dict
)


def as_named_now(state: State) -> State:
    """Tensors by the names of this torchvision's models.

    A file keeps the names of the version that wrote it, which torchvision's and torch's own modules translate when they
    load it; strict loading by name wants them translated before. BatchNorm had no count of batches before torch 0.4.1,
    and begins at 0 where a file has none (torch's batchnorm.py, _load_from_state_dict).

    Args:
        state: as a file of torchvision's weights has it; it is left as it is.
    """
    import torch

    found: State = {}
    for name, value in state.items():
        for old, new in _RENAMED:
            name = re.sub(old, new, name)
        found[name] = value
    for name in [name for name in found if name.endswith("running_var")]:
        found.setdefault(name.removesuffix("running_var") + "num_batches_tracked", torch.tensor(0))
    return found
