"""A grid as one archive: what its runs left, how it was made, and its tables and figures' numbers made of exactly that.

    python -m analysis.bundle --grid paper [--out paper.tar]

`python -m analysis.verify paper.tar` makes every output again, on any machine, and says what differs. `bundle_file.py`
has the form of the archive. Weights, checkpoints and logs are no part of it.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from analysis.audit import Audit, audit_grid
from analysis.bundle_file import (
    ATTACHED,
    OUTPUTS,
    REGISTRATION,
    SCHEMA_VERSION,
    STORE,
    Bundle,
    BundleError,
    members_of,
    write_bundle,
)
from analysis.load import AnalysisError, chosen_manifests, read_trials
from analysis.outputs import make_outputs
from analysis.registration import FILE, RegistrationError, in_force
from analysis.sweeps import is_sweep
from datasets.terminal import plain
from trainable import records
from trainable.credentials import redacted
from trainable.manifests import Chosen
from trainable.provenance import git_state
from trainable.records import RecordError
from trainable.schemas import SCHEMA_VERSION as STORE_SCHEMA_VERSION
from trainable.storage import Storage, StorageError
from trainable.sweep_records import DecisionLog

LIBRARIES = ("numpy", "scipy", "scikit-learn", "pyarrow", "matplotlib")


class FaultyStore(Exception):
    """A rule of `analysis.check` is broken; the message has the first fault."""


def make_bundle(
    storage: Storage, grid: str, variant: str | None, path: Path, attach: Path | None
) -> tuple[Bundle, str]:
    """Copies what a grid needs of a store, makes its outputs of the copy, and packs both.

    Args:
        storage: the results root.
        grid: the grid or sweep.
        variant: `full` or the hash of another variant; None chooses.
        path: the archive; one that is there is replaced.
        attach: a folder to take along as it is; None: nothing.

    Returns:
        What the archive holds, and its digest.

    Raises:
        AnalysisError: no such grid or variant.
        FaultyStore: a rule is broken.
        RecordError: the store is damaged or of a newer version.
        BundleError: a file cannot be a member.
        OSError: the archive, or the copy beside it, cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as name:
        folder = Path(name)
        chosen = chosen_manifests(storage, grid, variant)
        if attach is not None:
            _attach(attach, folder / ATTACHED)
        for source in store_files(storage, chosen):
            _write(folder / STORE / source, storage.read(source))
        shutil.copyfile(FILE, folder / REGISTRATION)
        copy, variant = Storage(str(folder / STORE)), chosen.newest["variant"]
        with in_force(folder / REGISTRATION):
            audit = audit_grid(copy, grid, variant)
            _refuse_faults(audit, storage, copy)
            outputs = make_outputs(copy, grid, variant)
        for file, content in outputs.files.items():
            _write(folder / OUTPUTS / file, content)
        bundle = Bundle(
            schema_version=SCHEMA_VERSION,
            store_schema_version=STORE_SCHEMA_VERSION,
            grid=grid,
            variant=variant,
            num_runs=audit.num_done,
            code=git_state(),
            versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
            outputs=outputs.missing,
            members=members_of(folder),
        )
        return bundle, write_bundle(bundle, folder, path)


def store_files(storage: Storage, chosen: Chosen) -> Iterator[str]:
    """Paths of what a store holds of a grid: whole manifests, commits that count with all their tables, attempts,
    costs, the dimension tables of its data, the looks at it, and the log of a sweep.

    Raises:
        RecordError: the store is damaged or of a newer version.
    """
    grid, variant = chosen.newest["grid"], chosen.newest["variant"]
    damaged = set(chosen.damaged)
    manifests = [f"grids/{grid}/{name}" for name in storage.names(f"grids/{grid}") if name.startswith(f"{variant}--")]
    yield from (path for path in manifests if storage.folder(path) not in damaged)
    looks = [name for name in storage.names(f"looks/{grid}") if name.startswith(f"{variant}--")]
    yield from (f"looks/{grid}/{name}" for name in looks)
    run_ids = chosen.run_ids()
    if is_sweep(storage, grid):
        decisions = DecisionLog(storage, grid, variant, write=False).decisions
        swept = [*chosen.newest["sweep"]["rows"], *decisions]
        run_ids |= {run_id for one in swept for run_id in one.get("runs", {}).values()}
        yield from (f"sweeps/{grid}/{variant}/{name}" for name in storage.names(f"sweeps/{grid}/{variant}"))
    commits = [commit for found in records.read_every_commit(storage, run_ids).values() for commit in found]
    for commit in commits:
        yield f"commits/{commit.run_id}--{commit.attempt_id}.json"
        yield from (file.path for file in commit.files)
    yield from (f"attempts/{name}" for name in storage.names("attempts") if name.partition("--")[0] in run_ids)
    attempts = {commit.attempt_id for commit in commits}
    costs = [name for name in storage.names("costs") if name.partition("--")[2].removesuffix(".json") in attempts]
    yield from (f"costs/{name}" for name in costs)
    newest = {commit.run_id: commit for commit in commits}
    trials = read_trials(storage, list(newest.values())).values()
    contents = {(trial["dataset"], (trial["content_sha256"] or "")[:16]) for trial in trials}
    for table in ("classes", "samples"):
        known = storage.names(f"dims/{table}")
        files = [f"{dataset}--{content}.parquet" for dataset, content in sorted(contents)]
        yield from (f"dims/{table}/{file}" for file in files if file in known)


def _attach(source: Path, target: Path) -> None:
    """Copies plain files, links and all else refused.

    Raises:
        BundleError: no folder, or it holds something that is no plain file.
    """
    if not source.is_dir():
        raise BundleError(f"--attach {source}: no folder")
    shutil.copytree(source, target, symlinks=True, copy_function=_copy_plain)


def _copy_plain(source: str, target: str) -> None:
    if Path(source).is_symlink() or not Path(source).is_file():
        raise BundleError(f"{source}: a link, a pipe or a device; a bundle holds plain files alone")
    shutil.copyfile(source, target)


def _refuse_faults(audit: Audit, storage: Storage, copy: Storage) -> None:
    if audit.faults:
        first = str(audit.faults[0]).replace(copy.uri, storage.uri)
        others = f" (and {len(audit.faults) - 1:,} more)" if len(audit.faults) > 1 else ""
        raise FaultyStore(
            f"rule {audit.faults[0].rule} is broken: {first}{others}; nothing was bundled. All faults: "
            f"python -m analysis.check --grid {audit.grid} --results {storage.uri}"
        )


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.bundle`."""
    cli = argparse.ArgumentParser(
        prog="python -m analysis.bundle", description="Pack a grid's results and outputs into one archive."
    )
    cli.add_argument("--grid", metavar="NAME", required=True, help="the grid or sweep")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--out", type=Path, metavar="FILE", help="the archive (default: NAME.tar)")
    cli.add_argument(
        "--attach", type=Path, metavar="DIR", help="take these files along too, such as what analysis.features wrote"
    )
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 when the store breaks a rule; 2 when no bundle could be made."""
    options = parser().parse_args(argv)
    path = options.out or Path(
        f"{options.grid}.tar" if options.variant is None else f"{options.grid}-{options.variant}.tar"
    )
    try:
        bundle, digest = make_bundle(Storage(options.results), options.grid, options.variant, path, options.attach)
    except FaultyStore as error:
        print(plain(f"analysis.bundle: {redacted(str(error))}"), file=sys.stderr)
        return 1
    except (AnalysisError, RecordError, RegistrationError, StorageError, BundleError, OSError) as error:
        print(plain(f"analysis.bundle: {redacted(str(error))}"), file=sys.stderr)
        return 2
    for line in described(bundle):
        print(plain(line))
    print(plain(f"{path}: {path.stat().st_size:,} bytes"))
    print(f"digest {digest}")
    return 0


def described(bundle: Bundle) -> list[str]:
    """What a bundle holds, for people."""
    made = [name for name, why in bundle.outputs.items() if not why]
    attached = bundle.below(ATTACHED)
    files = len(bundle.below(STORE))
    several = "" if len(attached) == 1 else "s"
    return [
        f"grid {bundle.grid} ({bundle.variant}): {bundle.num_runs:,} runs, {files:,} files of the store",
        f"outputs: {', '.join(made)}",
        *(f"without {name}: {why}" for name, why in bundle.outputs.items() if why),
        *([f"attached: {len(attached):,} file{several}, known by their hashes and not recomputed"] if attached else []),
    ]


if __name__ == "__main__":
    sys.exit(main())
