"""Hashes that a spec needs but an experiment file cannot know: of the prepared data and of the initial weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from datasets.published import PUBLISHED
from datasets.store import DataError, Manifest, read_manifest
from trainable.spec import InitSpec, RunSpec


class Facts(Protocol):
    """What is known of data and weights."""

    def content_sha256(self, dataset: str) -> str | None:
        """Content hash of a data set; None where it is not known."""

    def weights_sha256(self, init: InitSpec) -> str | None:
        """Hash of a hub or file source's tensors; None where they are not at hand."""

    def missing(self, spec: RunSpec) -> str | None:
        """Why a run cannot start: data or weights that are not at hand; None when all is there."""


class PinnedFacts:
    """Only what is pinned in this repository."""

    def content_sha256(self, dataset: str) -> str | None:
        """The pinned content hash of published data."""
        published = PUBLISHED.get(dataset)
        return published.content_sha256 if published else None

    def weights_sha256(self, init: InitSpec) -> str | None:
        """No weights are pinned."""
        return None

    def missing(self, spec: RunSpec) -> str | None:
        """What a spec names by no hash."""
        return spec.unresolved()


@dataclass(frozen=True, kw_only=True, slots=True)
class _FoundWeights:
    """What is known of a source's weights."""

    sha256: str | None = None
    stand_in: str | None = None
    missing: str = ""
    """Why they are not to be had."""


class LocalFacts:
    """What lies on this machine.

    Args:
        data_path: folder of the prepared data.
        weights_path: folder of local weight files.
        download: ask the hub for weights that are not here.
    """

    def __init__(self, data_path: Path, weights_path: Path | None, *, download: bool) -> None:
        self._data_path, self._weights_path, self._download = data_path, weights_path, download
        self._manifests: dict[str, Manifest | str | None] = {}
        self._weights: dict[tuple[str, str | None], _FoundWeights] = {}

    def manifest(self, dataset: str) -> Manifest | None:
        """The prepared data's manifest; None where they are absent or damaged."""
        found = self._manifest(dataset)
        return found if isinstance(found, Manifest) else None

    def num_test(self, dataset: str) -> int | None:
        """Images of the prepared test split; None where nothing is prepared."""
        if self.manifest(dataset) is None:
            return None
        test = read_manifest(self._data_path, dataset, "test")
        return test.num_images if test else None

    def content_sha256(self, dataset: str) -> str | None:
        """Of the prepared data; of the published ones where nothing is prepared."""
        manifest = self.manifest(dataset)
        return manifest.content_sha256 if manifest else PinnedFacts().content_sha256(dataset)

    def weights_sha256(self, init: InitSpec) -> str | None:
        """Of the local file, or of the hub's."""
        return self._find_weights(init).sha256

    def stand_in(self, init: InitSpec) -> str | None:
        """Which random weights stand in for those of a hub or file source; None where they do not, or none are here."""
        return self._find_weights(init).stand_in

    def missing(self, spec: RunSpec) -> str | None:
        """The first of: data not prepared or damaged, weights not to be had."""
        name = spec.data.dataset
        found = self._manifest(name)
        if isinstance(found, str):
            return found
        if found is None:
            source = "" if name in PUBLISHED else " --source FOLDER_OR_ZIP"
            return (
                f"{name} is not prepared in {self._data_path}; run: python -m datasets.prepare {name}{source} "
                f"--data {self._data_path}"
            )
        if spec.init.kind in ("hub", "file") and spec.init.sha256 is None:
            return self._find_weights(spec.init).missing
        return None

    def _manifest(self, dataset: str) -> Manifest | str | None:
        if dataset not in self._manifests:
            try:
                self._manifests[dataset] = read_manifest(self._data_path, dataset)
            except DataError as error:
                self._manifests[dataset] = str(error)
        return self._manifests[dataset]

    def _find_weights(self, init: InitSpec) -> _FoundWeights:
        """Each source is looked for once."""
        key = (init.kind, init.source)
        if key not in self._weights:
            from trainable.weights import MissingWeights, find_weights  # slow to import: only where weights are wanted

            try:
                anew = init.model_copy(update={"sha256": None})  # what is here now, whatever was planned with
                found = find_weights(anew, self._weights_path, download=self._download)
                self._weights[key] = _FoundWeights(sha256=found.sha256, stand_in=found.stand_in)
            except MissingWeights as error:
                self._weights[key] = _FoundWeights(missing=str(error))
        return self._weights[key]
