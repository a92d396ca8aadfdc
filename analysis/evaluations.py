"""The evaluations of a run: their numbers from its row of `trials`, their images from `predictions` when asked for.

Whoever asks for an image's answer gets predictions that were checked: by the rules of `rules.py`, and by computing the
row's numbers from them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.rules import prediction_faults, recomputed_faults
from trainable import metrics, records
from trainable.dims import Samples
from trainable.records import RecordError
from trainable.schemas import EVAL_NAMES
from trainable.storage import Storage

COLUMNS = (
    *("sample_id", "label", "pred", "correct", "label_rank", "p_label", "p_max", "nll_nats", "entropy_nats"),
    "sum_p2",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictions:
    """What a run answered on every image of the test split, in the order of `sample_ids`."""

    sample_ids: NDArray[np.int32]
    """[N] int32, rising."""
    labels: NDArray[np.int16]
    """[N] int16, the data's numbers of the classes."""
    predicted: NDArray[np.int16]
    """[N] int16, likewise."""
    correct: NDArray[np.bool_]
    """[N] bool."""
    confidence: NDArray[np.float32]
    """[N] float32: probability of the predicted class."""
    p_label: NDArray[np.float32]
    """[N] float32: probability of the right class."""
    nll_nats: NDArray[np.float32]
    """[N] float32."""
    sum_p2: NDArray[np.float32]
    """[N] float32: sum of squared probabilities."""

    @property
    def digest(self) -> str:
        """Equal exactly when two runs answered every image alike, to the last bit of their probabilities."""
        return digest_of(self.sample_ids, self.predicted, self.p_label, self.confidence)


def digest_of(*arrays: NDArray[Any]) -> str:
    """SHA-256 (hex) over the arrays' bytes."""
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()


class Reader:
    """The predictions of one run, read and checked once.

    Args:
        storage: the results root.
        commit: of the run.
        trial: the run's row of `trials`.
        samples: the test images of the run's data, where the store knows them.
    """

    def __init__(
        self, storage: Storage, commit: records.Commit, trial: Mapping[str, Any], samples: Samples | None
    ) -> None:
        self._storage = storage
        self._commit = commit
        self._trial = trial
        self._samples = samples
        self._found: dict[str, Predictions] | None = None

    @property
    def path(self) -> str:
        """The file, for people."""
        return self._storage.folder(self._commit.file("predictions").path)

    def get(self, name: str) -> Predictions:
        """The predictions of one evaluation.

        Raises:
            RecordError: the file is damaged, breaks a rule, or its numbers are not those of the run's row.
        """
        if self._found is None:
            self._found = self._read()
        return self._found[name]

    def _read(self) -> dict[str, Predictions]:
        arrays = read_arrays(self._storage, self._commit)
        expected = names_of(self._trial)
        if set(arrays) != set(expected):
            raise RecordError(
                f"{self.path}: holds the evaluations {', '.join(arrays) or 'none'}, the trial's row has "
                f"{', '.join(expected)}; move the run's commit away and run the grid again"
            )
        found = {}
        for name in expected:
            own = arrays[name]
            faults = prediction_faults(own, self._trial, self._commit.dataset, self._samples)
            faults = faults or recomputed_faults(own, self._trial, name)
            if faults:
                raise RecordError(f"{self.path}: {name} {faults[0]}; move the run's commit away and run the grid again")
            found[name] = Predictions(
                sample_ids=own["sample_id"],
                labels=own["label"],
                predicted=own["pred"],
                correct=own["correct"],
                confidence=own["p_max"],
                p_label=own["p_label"],
                nll_nats=own["nll_nats"],
                sum_p2=own["sum_p2"],
            )
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One evaluation of one run."""

    name: str
    metrics: dict[str, float]
    """As the run's row of `trials` has them."""
    reader: Reader = field(repr=False)

    @property
    def predictions(self) -> Predictions:
        """Checked; read when first asked for.

        Raises:
            RecordError: the file is damaged, breaks a rule, or its numbers are not those of the run's row.
        """
        return self.reader.get(self.name)

    @property
    def sample_ids(self) -> NDArray[np.int32]:
        """[N] int32, rising."""
        return self.predictions.sample_ids

    @property
    def correct(self) -> NDArray[np.bool_]:
        """[N] bool."""
        return self.predictions.correct


def names_of(trial: Mapping[str, Any]) -> list[str]:
    """The evaluations that a run's row has, `final` first."""
    return [name for name in EVAL_NAMES if trial[f"{name}_top1"] is not None]


def evaluations_of(
    storage: Storage, commit: records.Commit, trial: Mapping[str, Any], samples: Samples | None
) -> dict[str, Evaluation]:
    """The evaluations of a run by name; no predictions are read."""
    reader = Reader(storage, commit, trial, samples)
    return {
        name: Evaluation(
            name=name,
            metrics={metric: trial[f"{name}_{metric}"] for metric in metrics.METRICS},
            reader=reader,
        )
        for name in names_of(trial)
    }


def read_arrays(storage: Storage, commit: records.Commit) -> dict[str, dict[str, NDArray[Any]]]:
    """A run's predictions as stored, by evaluation and column; `run_id` and `dataset` as the set of their values.

    Raises:
        RecordError: the file is damaged or not a table of predictions.
    """
    columns = ["run_id", "dataset", "eval_name", *COLUMNS]
    table = records.read_table(storage, "predictions", [commit], columns).combine_chunks()
    for column in ("run_id", "dataset", *COLUMNS):
        if table[column].null_count:
            path = storage.folder(commit.file("predictions").path)
            raise RecordError(
                f"{path}: column {column} has no value in {table[column].null_count:,} rows; move the run's commit "
                "away and run the grid again"
            )
    known = set(table["run_id"].unique().to_pylist()), set(table["dataset"].unique().to_pylist())
    names = table["eval_name"].combine_chunks()
    codes = names.indices.to_numpy(zero_copy_only=False)
    arrays = {column: table[column].to_numpy() for column in COLUMNS}
    found = {}
    for code, name in enumerate(names.dictionary.to_pylist()):
        mine = codes == code
        own = {column: values[mine] for column, values in arrays.items()}
        found[name] = {**own, "run_id": np.array(sorted(known[0])), "dataset": np.array(sorted(known[1]))}
    return {name: own for name, own in found.items() if len(own["sample_id"])}
