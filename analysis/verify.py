"""Whether a bundle is what it says: its files whole, its store sound, and every output the same when made again of it.

    python -m analysis.verify paper.tar [--out DIR]

Numbers may differ by what `outputs.py` allows to other processors and library versions; texts may not. The bundle's own
preregistration is in force. Nothing in a bundle is run.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from analysis.audit import audit_grid
from analysis.bundle import described
from analysis.bundle_file import OUTPUTS, REGISTRATION, STORE, Bundle, BundleError, opened
from analysis.load import AnalysisError
from analysis.outputs import ABSOLUTE, RELATIVE, differences, make_outputs
from analysis.registration import FILE, RegistrationError, in_force, registration
from datasets.terminal import plain
from trainable.credentials import redacted
from trainable.records import RecordError
from trainable.storage import Storage, StorageError

SHOWN = 20
"""Differences that are printed."""


def recomputed(bundle: Bundle, folder: Path, out: Path | None) -> list[str]:
    """In what a bundle's store, asked again, contradicts the bundle: a line each; empty where it does not.

    Args:
        bundle: what it says.
        folder: its members.
        out: where the outputs are left as they are made now; None: nowhere.

    Raises:
        OSError: `out` cannot be written.
    """
    storage = Storage(str(folder / STORE))
    try:
        with in_force(folder / REGISTRATION):
            audit = audit_grid(storage, bundle.grid, bundle.variant)
            if audit.faults:
                return [f"rule {fault.rule} is broken: {fault}" for fault in audit.faults]
            outputs = make_outputs(storage, bundle.grid, bundle.variant)
    except (AnalysisError, RecordError, RegistrationError, StorageError) as error:
        return [str(error)]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in outputs.files.items():
            (out / name).write_bytes(content)
    found = [] if audit.num_done == bundle.num_runs else [f"{bundle.num_runs:,} runs; the store has {audit.num_done:,}"]
    known = {name: content for name, content in outputs.files.items() if _id(name) in bundle.outputs}
    before = {member.name.partition("/")[2]: folder / member.name for member in bundle.below(OUTPUTS)}
    return found + list(differences({name: path.read_bytes() for name, path in before.items()}, known))


def _id(name: str) -> str:
    """T1 of T1.csv, F6 of F6-red.csv."""
    return name.partition(".")[0].partition("-")[0]


def circumstances(bundle: Bundle, folder: Path) -> list[str]:
    """What is other here than where the bundle was made, for people."""
    lines = []
    here = {
        "python": platform.python_version(),
        **{name: _version(name) for name in bundle.versions if name != "python"},
    }
    if changed := [f"{name} {was}, here {here[name]}" for name, was in bundle.versions.items() if here[name] != was]:
        lines.append(f"made with {'; '.join(changed)}")
    with in_force(folder / REGISTRATION):
        theirs = registration().digest
    if theirs != registration(FILE).digest:
        lines.append(
            f"its preregistration {theirs[:12]} is not the one here, {registration(FILE).digest[:12]}; its own was used"
        )
    return lines


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.verify`."""
    cli = argparse.ArgumentParser(
        prog="python -m analysis.verify", description="Make every output of a bundle again and say what differs."
    )
    cli.add_argument("bundle", type=Path, metavar="BUNDLE", help="an archive of python -m analysis.bundle")
    cli.add_argument("--out", type=Path, metavar="DIR", help="leave the outputs there as they are made now")
    return cli


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when everything is the same, 1 when something differs, 2 when the bundle cannot be read."""
    options = parser().parse_args(argv)
    try:
        with opened(options.bundle) as (bundle, digest, folder):
            for line in [*described(bundle), *circumstances(bundle, folder)]:
                print(plain(line))
            print(f"digest {digest}")
            found = [line.replace(f"{folder}/", "") for line in recomputed(bundle, folder, options.out)]
    except (BundleError, RegistrationError, OSError) as error:
        print(plain(f"analysis.verify: {redacted(str(error))}"), file=sys.stderr)
        return 2
    for line in found[:SHOWN]:
        print(plain(f"DIFFERS  {line}"))
    if len(found) > SHOWN:
        print(f"DIFFERS  and {len(found) - SHOWN:,} more")
    if not found:
        print(
            f"SAME     every rule holds; texts to the letter, numbers within {RELATIVE:g} of their size or {ABSOLUTE:g}"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
