"""A finished run's network as it was when its predictions were stored, and the images it was judged on.

A checkpoint counts only when it gives those predictions again: a wrong one must never be explained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from analysis.attribution import rng_for
from analysis.load import SeedRun
from datasets.store import DataError, Dataset, open_dataset
from datasets.subset import Rows
from trainable.checkpoint import Checkpoint, CheckpointError, RunFolder, model_state
from trainable.evaluate import autocast
from trainable.loading import ImagesOn, evaluation_loader
from trainable.models import build_model
from trainable.spec import RunSpec
from trainable.storage import Storage
from trainable.surgery import WeightsError, load_weights
from trainable.weights import tensors_sha256

BATCH = 64
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.06}
"""How far the stored class may lie behind the best one, as a share of the spread of an image's logits: another machine
rounds otherwise, and two classes may be as good as equal."""


class MissingRun(Exception):
    """A run's network or images are not at hand; the message names the run, what is not there, and the mend."""


class WrongCheckpoint(Exception):
    """A checkpoint is damaged or is not the run's; the message names the run and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The network of a run after its last step, in evaluation mode."""

    run: SeedRun
    spec: RunSpec
    model: nn.Module
    device: torch.device
    weights_sha256: str
    """Over the model's tensors."""

    def untrained(self, seed: int) -> nn.Module:
        """The same network with random weights: other ones than the run itself began with, whatever its seed."""
        model = _built(self.spec, len(self.run.trial["classes"]), int(rng_for(seed, "untrained").integers(2**63)))
        return model.to(self.device).eval()


def _built(spec: RunSpec, num_classes: int, seed: int) -> nn.Module:
    """A run's network with random weights; torch's generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(spec.model, num_classes, spec.data.image_size)


class DataFolder:
    """The prepared data of a machine, each opened and hashed once.

    Args:
        path: the folder of all prepared data.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: dict[str, Dataset] = {}

    def of_run(self, run: SeedRun) -> Dataset:
        """The data that a run was judged on.

        Raises:
            MissingRun: not prepared here, damaged, or other data of that name.
        """
        name = str(run.trial["dataset"])
        try:
            if name not in self._opened:
                self._opened[name] = open_dataset(self._path, name)
        except DataError as error:
            raise MissingRun(f"run {run.run_id}: {error}") from None
        data = self._opened[name]
        if data.manifest.content_sha256 != run.trial["content_sha256"]:
            raise MissingRun(
                f"run {run.run_id}: {self._path / name} holds other data than those of the run (content "
                f"{data.manifest.content_sha256[:12]}, the run's {str(run.trial['content_sha256'])[:12]}); prepare "
                "those in another folder and give it as --data"
            )
        return data


def open_network(storage: Storage, run: SeedRun, device: torch.device) -> Network:
    """Builds a run's network and loads its final weights.

    Raises:
        MissingRun: its spec or its checkpoint is not in the store.
        WrongCheckpoint: damaged, not of this run, or not of its last step.
    """
    folder = RunFolder(storage, run.run_id)
    try:
        spec = RunSpec.model_validate_json(storage.read(folder.path("spec.json")))
        checkpoint = folder.load("last")
    except FileNotFoundError as error:
        raise MissingRun(
            f"run {run.run_id}: {error.filename or folder.path('checkpoint/last')} is not there; its weights were not "
            "kept, or the results were copied without runs/"
        ) from None
    except (CheckpointError, ValueError) as error:
        raise WrongCheckpoint(f"run {run.run_id}: {str(error).splitlines()[0]}") from None
    if spec.run_id != run.run_id:
        raise WrongCheckpoint(f"run {run.run_id}: {folder.path('spec.json')} is of run {spec.run_id}")
    _check_position(run, checkpoint)
    model = _built(spec, len(run.trial["classes"]), seed=0)
    state = model_state(checkpoint)
    try:
        load_weights(model, state, (), f"run {run.run_id}")
    except WeightsError as error:
        raise WrongCheckpoint(str(error)) from None
    return Network(
        run=run, spec=spec, model=model.to(device).eval(), device=device, weights_sha256=tensors_sha256(state)
    )


def _check_position(run: SeedRun, checkpoint: Checkpoint) -> None:
    step, last = checkpoint.meta.get("step"), run.trial["final_step"]
    if step != last or not checkpoint.meta.get("complete"):
        raise WrongCheckpoint(
            f"run {run.run_id}: its last checkpoint is of step {step}, its final predictions are of step {last}; move "
            "the run's commit away and run the grid again"
        )


def images_of(network: Network, data: Dataset, sample_ids: NDArray[np.integer]) -> torch.Tensor:
    """Test images as the run's own evaluation prepared them: [n, 3, S, S] float32, normalised.

    Args:
        network: of the run.
        data: of the run.
        sample_ids: rows of the test split, [n].
    """
    rows = Rows(index=sample_ids.astype(np.int32), labels=np.zeros(len(sample_ids), np.int64))
    loader = evaluation_loader(
        network.spec, data.test, rows, ImagesOn(device=torch.device("cpu")), batch_size=BATCH, ahead=0
    )
    return torch.cat([batch.images.clone() for batch in loader])


def check_answers(network: Network, images: torch.Tensor, sample_ids: NDArray[np.integer]) -> None:
    """Passes images through and compares the answers with the stored predictions.

    Args:
        network: of the run.
        images: [n, 3, S, S], as from `images_of`.
        sample_ids: theirs, [n].

    Raises:
        WrongCheckpoint: the network gives other answers than were stored.
    """
    run, spec = network.run, network.spec
    logits = []
    for batch in torch.split(images, BATCH):
        with torch.inference_mode(), autocast(network.device, spec.optim.precision):
            answered = network.model(batch.to(network.device))[:, : len(run.trial["classes"])]
            logits.append(answered.float().cpu().numpy())
    found = np.concatenate(logits)
    stored = run.final.predictions
    at = np.searchsorted(stored.sample_ids, sample_ids)
    answers = np.searchsorted(np.array(run.trial["classes"]), stored.predicted[at])
    behind = found.max(axis=1) - found[np.arange(len(found)), answers]
    allowed = TOLERANCE[spec.optim.precision] * np.maximum(found.std(axis=1), 1e-6)
    wrong = ~(behind <= allowed)  # also where a logit is no number
    if wrong.any():
        raise WrongCheckpoint(
            f"run {run.run_id}: its last checkpoint answers otherwise than the stored predictions on {wrong.sum():,} "
            f"of {len(found):,} images (first: image {sample_ids[wrong.argmax()]}); it is not explained. The "
            "checkpoint or the data are not those of the run: move the run's commit away and run the grid again"
        )
