"""The dimension tables of the results store: classes and samples of every data set that runs used.

One immutable file per data content, `dims/{classes,samples}/<name>--<content>.parquet`, so that no writer ever
changes another's file and a folder reads as one table.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from datasets.store import Dataset
from trainable import schemas
from trainable.records import to_parquet
from trainable.storage import Storage


def publish_dims(storage: Storage, data: Dataset) -> None:
    """Writes both tables of a data set unless they are there."""
    manifest = data.manifest
    name = f"{manifest.dataset}--{manifest.content_sha256[:16]}.parquet"
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
