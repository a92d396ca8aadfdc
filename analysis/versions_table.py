"""What made the runs of a grid: source, libraries, machines, data, initial weights, and the rules that judge them."""

from __future__ import annotations

import json
from collections import Counter

from analysis.compact import read_table
from analysis.frame import Frame, Raw, count
from analysis.load import AnalysisError, GridResults
from analysis.registration import Registration
from analysis.stand_ins import stand_in_of
from trainable import records
from trainable.storage import Storage
from trainable.weights import NOT_PUBLISHED_WEIGHTS

_COLUMNS = [
    "run_id",
    "code_tree_sha256",
    "code_git_sha",
    "code_git_dirty",
    "host_device",
    "host_platform",
    "host_versions_json",
]


def versions_frame(storage: Storage, results: GridResults, registration: Registration) -> Frame:
    """One line a version of anything, with how many runs it made.

    Raises:
        AnalysisError: no run is done.
        RecordError: stored provenance is damaged.
    """
    if not results.done:
        raise AnalysisError("no run is done")
    found: Counter[tuple[str, str]] = Counter()
    commits = list(records.read_commits(storage, [run.run_id for run in results.done]).values())
    for row in read_table(storage, "provenance", commits, _COLUMNS).to_pylist():
        git = f", commit {row['code_git_sha']}{' with changes' if row['code_git_dirty'] else ''}"
        found["source", f"{row['code_tree_sha256'] or 'not recorded'}{git if row['code_git_sha'] else ''}"] += 1
        found["device", row["host_device"] or "not recorded"] += 1
        found["platform", row["host_platform"] or "not recorded"] += 1
        for library, version in json.loads(row["host_versions_json"] or "{}").items():
            found[library, version or "not recorded"] += 1
    for run in results.done:
        trial = run.trial
        origin = "" if trial["dataset_published"] else ", not the published data"
        found[f"data {trial['dataset']}", f"{trial['content_sha256'] or 'not recorded'}{origin}"] += 1
        if trial["init_sha256"]:
            random = f", {NOT_PUBLISHED_WEIGHTS} ({mark})" if (mark := stand_in_of(run)) is not None else ""
            found[f"weights {trial['init_source']}", f"{trial['init_sha256']}{random}"] += 1
    found["preregistration", registration.digest] = len(results.done)
    lines = [(what, value, num) for (what, value), num in sorted(found.items())]
    raw: list[Raw] = [{"what": what, "version": value, "num_runs": num} for what, value, num in lines]
    return Frame(
        title=f"Versions, grid {results.name}",
        notes=(
            "source: SHA-256 over the source files that make a run's numbers; data: over pixels and labels; weights: "
            "of the file that rows start from",
            *(
                f"preregistration in force since {at:%Y-%m-%d %H:%M} UTC: {digest}"
                for at, digest in registration.history
            ),
        ),
        columns=("what", "version", "runs"),
        left=2,
        narrow=("what", "version", "runs"),
        rows=tuple((what, value, count(num)) for what, value, num in lines),
        raw=tuple(raw),
    )
