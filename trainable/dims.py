"""The dimension tables of the results store: classes and samples of every data set that runs used.

One immutable file per data content, `dims/{classes,samples}/<name>--<content>.parquet`, so that no writer ever
changes another's file and a folder reads as one table.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets.store import NAME as DATASET_NAME
from datasets.store import Dataset
from trainable import schemas
from trainable.records import RecordError, read_parquet, to_parquet
from trainable.storage import Storage


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """The test images of a data set."""

    sample_ids: NDArray[np.int64]
    """[N], rising."""
    labels: NDArray[np.int64]
    """[N], the data's numbers of the classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pixels:
    """The images of a data set by the SHA-1 of their pixels."""

    train: frozenset[str]
    test: dict[int, str]
    """By sample id."""


def publish_dims(storage: Storage, data: Dataset) -> None:
    """Writes both tables of a data set unless they are there."""
    manifest = data.manifest
    name = _file_name(manifest.dataset, manifest.content_sha256)
    for table, build in (("samples", _samples), ("classes", _classes)):  # classes last: it marks both as done
        if not storage.exists(f"dims/classes/{name}"):
            try:
                storage.publish(f"dims/{table}/{name}", to_parquet(build(data)))
            except FileExistsError:  # another run of this grid was faster; the content is the same
                continue


def _classes(data: Dataset) -> pa.Table:
    names = data.manifest.classes
    columns = {**_key(data, len(names)), "label": np.arange(len(names)), "name": list(names)}
    return pa.table({field.name: columns[field.name] for field in schemas.CLASSES}).cast(schemas.CLASSES)


def _samples(data: Dataset) -> pa.Table:
    tables = []
    for store in (data.train, data.test):
        num = len(store.labels)
        columns = {
            **_key(data, num),
            "split": pa.array([store.manifest.split] * num).dictionary_encode(),
            "sample_id": np.arange(num),
            "label": store.labels,
            "pixel_sha1": [hashlib.sha1(image.tobytes(), usedforsecurity=False).hexdigest() for image in store.images],
        }
        tables.append(pa.table({field.name: columns[field.name] for field in schemas.SAMPLES}).cast(schemas.SAMPLES))
    return pa.concat_tables(tables).unify_dictionaries()


def _key(data: Dataset, num: int) -> dict[str, object]:
    manifest = data.manifest
    return {
        "dataset": pa.array([manifest.dataset] * num).dictionary_encode(),
        "content_sha256": [manifest.content_sha256] * num,
    }


def _file_name(dataset: str, content_sha256: str) -> str:
    return f"{dataset}--{content_sha256[:16]}.parquet"


def read_samples(storage: Storage, dataset: str, content_sha256: str | None) -> Samples | None:
    """The test images of a data set; None where the store does not know them.

    Raises:
        RecordError: the file is damaged, or is of other data.
    """
    columns = ["dataset", "content_sha256", "split", "sample_id", "label"]
    if (table := _read(storage, "samples", dataset, content_sha256, columns)) is None:
        return None
    test = table.filter(pc.equal(table["split"].cast(pa.string()), "test"))
    ids, labels = test["sample_id"].to_numpy().astype(np.int64), test["label"].to_numpy().astype(np.int64)
    order = np.argsort(ids, kind="stable")
    if (np.diff(ids[order]) == 0).any():
        raise RecordError(f"{_path(storage, 'samples', dataset, content_sha256)}: an image of the test split twice")
    return Samples(sample_ids=ids[order], labels=labels[order])


def read_pixels(storage: Storage, dataset: str, content_sha256: str | None) -> Pixels | None:
    """What tells the images of a data set apart; None where the store does not know them.

    Raises:
        RecordError: the file is damaged, or is of other data.
    """
    columns = ["dataset", "content_sha256", "split", "sample_id", "pixel_sha1"]
    if (table := _read(storage, "samples", dataset, content_sha256, columns)) is None:
        return None
    split = table["split"].cast(pa.string())
    train, test = (table.filter(pc.equal(split, name)) for name in ("train", "test"))
    return Pixels(
        train=frozenset(train["pixel_sha1"].to_pylist()),
        test=dict(zip(test["sample_id"].to_pylist(), test["pixel_sha1"].to_pylist(), strict=True)),
    )


def read_class_names(storage: Storage, dataset: str, content_sha256: str | None) -> dict[int, str]:
    """The classes' names by the data's numbers; empty where the store does not know them.

    Raises:
        RecordError: the file is damaged, or is of other data.
    """
    table = _read(storage, "classes", dataset, content_sha256, ["dataset", "content_sha256", "label", "name"])
    return {} if table is None else dict(zip(table["label"].to_pylist(), table["name"].to_pylist(), strict=True))


def _read(storage: Storage, name: str, dataset: str, content_sha256: str | None, columns: list[str]) -> pa.Table | None:
    if content_sha256 is None or not re.fullmatch(DATASET_NAME, dataset):
        return None
    path = f"dims/{name}/{_file_name(dataset, content_sha256)}"
    if not storage.exists(path):
        return None
    table = read_parquet(storage, path, columns)
    if set(table["content_sha256"].unique().to_pylist()) - {content_sha256}:
        raise RecordError(f"{storage.folder(path)}: of other data than its name says; move it away")
    return table


def _path(storage: Storage, name: str, dataset: str, content_sha256: str | None) -> str:
    return storage.folder(f"dims/{name}/{_file_name(dataset, content_sha256 or '')}")
