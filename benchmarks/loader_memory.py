"""What several of our loaders hold for themselves while they read one memory map, for `benchmarks.loader --trials`.

Each is a process of its own, as trials are. All are alive, and have read an epoch, when /proc/PID/smaps_rollup is read:
private memory is what would be freed with the process. What the kernel charges each for the map itself (its
proportional share) is the proof that the page cache is one.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.arms import augmentation
from benchmarks.made_images import random_images
from benchmarks.measuring import barrier, report, run_together
from datasets.loader import Loader
from datasets.store import ArrayStore, open_dataset
from datasets.subset import Rows

ARM = "mixup"
"""Of all arms the one whose kernel holds most."""
BATCH_SIZE = 256
KIB = 1024


def measure_trials(data: Path, dataset: str, num_trials: int) -> dict[str, Any]:
    """Runs so many loaders at once.

    Args:
        data: folder of the prepared data.
        dataset: name of the prepared data.
        num_trials: processes.

    Returns:
        Bytes and images a second of each.
    """
    command = ["benchmarks.loader_memory", str(data), dataset]
    trials, watched = run_together([[*command, str(seed)] for seed in range(num_trials)], threads=1)
    each = ("imports_bytes", "private_bytes", "map", "images_per_s")
    return {
        "dataset": dataset,
        "trials": num_trials,
        "map_file_bytes": trials[0]["map_file_bytes"],
        **{key: [one[key] for one in trials] for key in each},
        "other_load": watched.other_load,
    }


def private_bytes() -> int:
    """Memory that this process alone holds."""
    fields = _fields(Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return fields["Private_Clean"] + fields["Private_Dirty"]


def map_of(path: Path) -> dict[str, int]:
    """What this process has of a mapped file: resident, its proportional share, and private bytes."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    found = {"resident_bytes": 0, "share_bytes": 0, "private_bytes": 0}
    starts = [number for number, line in enumerate(lines) if "-" in line.split(" ")[0]]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        if lines[start].endswith(str(path)):
            fields = _fields(lines[start + 1 : end])
            found["resident_bytes"] += fields["Rss"]
            found["share_bytes"] += fields["Pss"]
            found["private_bytes"] += fields["Private_Clean"] + fields["Private_Dirty"]
    return found


def _fields(lines: list[str]) -> dict[str, int]:
    """Bytes by name, of the lines that give kilobytes."""
    parts = [line.split() for line in lines if line.endswith(" kB")]
    return {name.rstrip(":"): int(count) * KIB for name, count, _ in parts}


def main(data: str, dataset: str, seed: str) -> None:
    """One loader: its kernels are loaded before anything is counted, then it opens the data and reads an epoch."""
    _read(_loader(random_images(32, BATCH_SIZE).train, int(seed)))
    gc.collect()
    barrier()
    before = private_bytes()
    store = open_dataset(Path(data), dataset, verify=False).train
    loader = _loader(store, int(seed))
    barrier()
    began = time.perf_counter()
    images = _read(loader)
    seconds = time.perf_counter() - began
    barrier()  # the others have read it all, too
    file = Path(data, dataset, "train", "images.npy").resolve()
    result = {"imports_bytes": before, "private_bytes": private_bytes() - before, "map": map_of(file)}
    barrier()  # nobody has ended before everybody was counted
    report({**result, "map_file_bytes": file.stat().st_size, "images_per_s": images / seconds})


def _loader(store: ArrayStore, seed: int) -> Loader:
    rows = Rows(index=np.arange(len(store.labels), dtype=np.int32), labels=store.labels.astype(np.int64))
    return Loader(store, rows, augmentation(ARM), batch_size=BATCH_SIZE, seed=seed, train=True)


def _read(loader: Loader) -> int:
    return sum(len(batch.images) for batch in loader)


if __name__ == "__main__":
    main(*sys.argv[1:])
