"""What a grid's networks look at and what they make of images, from the checkpoints of its runs.

    python -m analysis.features --grid paper --data data

Figures F12 (attribution maps) and F13 (features) and tables T13 and T14, in the folder of the grid's other figures and
tables; in `features/<run id>.npz` the head's inputs of the runs shown. A network counts only when it gives the
predictions that were stored; one that is not at hand is named, and the rest goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from analysis.checkpoints import DataFolder
from analysis.explain import Looker
from analysis.feature_tables import attribution_frame, representation_frame
from analysis.figure_inputs import Cell, Inputs, MissingInputs
from analysis.figure_lint import lint
from analysis.figures import load_inputs, write_page
from analysis.figures_attribution import attribution_pages
from analysis.figures_representation import representation_pages
from analysis.findings import BlockFindings
from analysis.frame import FORMATS as TABLE_FORMATS
from analysis.frame import RENDERERS
from analysis.load import AnalysisError, report_folder
from analysis.plotting import marked_page, settle, style
from analysis.registration import RegistrationError
from analysis.stand_ins import marked_grid
from datasets.terminal import plain
from trainable.credentials import redacted
from trainable.records import RecordError
from trainable.storage import Storage, StorageError

TITLES = {"F12": "attribution maps", "F13": "features"}
FORMATS = ("svg", "png")
LEAST_IMAGES, MOST_IMAGES = 16, 5000


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m analysis.features`."""
    cli = argparse.ArgumentParser(
        prog="python -m analysis.features", description="Look into the networks of a grid: attribution and features."
    )
    cli.add_argument("--grid", metavar="NAME", help="default: the only grid in the store")
    cli.add_argument("--variant", help="full, or the hash of a shortened variant")
    cli.add_argument("--results", default="results", metavar="URI", help="results root (default: results)")
    cli.add_argument("--data", type=Path, default=Path("data"), metavar="DIR", help="prepared data (default: data)")
    cli.add_argument("--out", type=Path, default=Path("reports"), metavar="DIR", help="default: reports")
    cli.add_argument("--rows", metavar="LABEL,...", help="only these rows of the grid (default: all)")
    cli.add_argument(
        "--images",
        type=int,
        default=1000,
        metavar="N",
        help=f"test images whose features are taken, {LEAST_IMAGES} to {MOST_IMAGES:,} (default: 1000)",
    )
    cli.add_argument("--seed", type=int, default=0, help="of images, random orders and random weights (default: 0)")
    cli.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    cli.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Exit code 0; 1 when a checkpoint is not what it should be or a figure has a fault; 2 when nothing was done."""
    options = parser().parse_args(argv)
    threads = len(os.sched_getaffinity(0)) if options.threads is None else options.threads
    try:
        _check(options, threads)
        device = _device(options.device)
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        with threadpool_limits(threads):
            return _explain(options, device)
    except (AnalysisError, RecordError, RegistrationError, StorageError, MissingInputs, OSError) as error:
        print(plain(f"analysis.features: {redacted(str(error))}"), file=sys.stderr)
        return 2


def _check(options: argparse.Namespace, threads: int) -> None:
    """Refuses numbers that make no sense.

    Raises:
        AnalysisError: with the option.
    """
    if not LEAST_IMAGES <= options.images <= MOST_IMAGES:
        raise AnalysisError(f"--images: {options.images:,} is not within {LEAST_IMAGES} to {MOST_IMAGES:,}")
    if threads < 1:
        raise AnalysisError(f"--threads: {threads} is not 1 or more")
    if options.seed < 0:
        raise AnalysisError(f"--seed: {options.seed} is not 0 or more")


def _device(wanted: str) -> torch.device:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise AnalysisError("--device cuda: torch sees no CUDA device here; use cpu or auto")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def _explain(options: argparse.Namespace, device: torch.device) -> int:
    storage = Storage(options.results)
    inputs = load_inputs(storage, options.grid, options.variant)
    results = inputs.results
    folder = report_folder(options.out, results.name, results.variant)
    looker = Looker(
        storage=storage,
        data=DataFolder(options.data),
        device=device,
        seed=options.seed,
        num_images=options.images,
        say=lambda line: print(plain(f"  {redacted(line)}"), flush=True),
    )
    rows = None if options.rows is None else options.rows.split(",")
    command = f"python -m analysis.features --grid {results.name} --variant {results.variant} --seed {options.seed}"
    command += f" --images {options.images}" + (f" --rows {options.rows}" if rows else "")
    found, faults = [], []
    began = time.monotonic()
    for block, cells in _blocks(inputs, rows):
        looker.say(f"{', '.join(block) or results.name}: {sum(len(cell.runs) for cell in cells)} runs")
        one = looker.block(block, cells, _baseline(inputs))
        if one is None:
            continue
        found.append(one)
        folder.mkdir(parents=True, exist_ok=True)
        faults += _draw(inputs, one, folder, command)
        _keep_features(one, folder / "features")
    if not found:
        raise MissingInputs(f"nothing of grid {results.name} could be looked into: see above")
    _write_tables(inputs, found, folder)
    for fault in (*faults, *looker.faults):
        print(plain(f"analysis.features: {redacted(fault)}"), file=sys.stderr)
    print(plain(f"written: {folder}/{{F12*,F13*,T13,T14,features/}} in {time.monotonic() - began:.0f} s on {device}"))
    return 1 if faults or looker.faults else 0


def _blocks(inputs: Inputs, rows: Sequence[str] | None) -> list[tuple[tuple[str, ...], list[Cell]]]:
    """The blocks with the cells that are looked into, in the order of the palette.

    Raises:
        AnalysisError: `--rows` names a row that the grid has not.
        MissingInputs: no run is done.
    """
    known = [cell.row.label for cell in inputs.cells]
    if unknown := [label for label in rows or () if label not in known]:
        raise AnalysisError(f'--rows: "{unknown[0]}" is not one of {", ".join(known)}')
    augs = inputs.palette.augs
    cells = [cell for cell in inputs.cells if cell.runs and (rows is None or cell.row.label in rows)]
    if not cells:
        raise MissingInputs(f"no run of these rows is done; run them: python -m tuner.run --grid {inputs.results.name}")
    archs = inputs.palette.archs
    cells.sort(key=lambda cell: (archs.index(cell.arch), augs.index(cell.aug)))
    return [(block, own) for block in inputs.blocks if (own := [cell for cell in cells if cell.block == block])]


def _baseline(inputs: Inputs) -> str | None:
    try:
        return inputs.baseline()
    except MissingInputs:
        return None


def _draw(inputs: Inputs, found: BlockFindings, folder: Path, command: str) -> list[str]:
    """Writes the figures of a block; returns what the lint found."""
    faults = []
    weights = {run.run.run_id: run.weights_sha256 for arm in found.arms for run in arm.runs}
    with style():
        drawn = [*attribution_pages(inputs, found), *representation_pages(inputs, found)]
        pages = [marked_page(page, inputs.results.rows) for page in drawn]
        for page in pages:
            faults += [f"{page.name}: {fault}" for fault in lint(page.figure)]
            settle(page.figure)
            figure = page.name[:3]
            facts = {
                "figure": figure,
                "title": TITLES[figure],
                "command": command,
                "weights_sha256": {run_id: weights[run_id] for run_id in page.run_ids},
                "data_content_sha256": found.content_sha256,
            }
            write_page(inputs, page, folder, FORMATS, facts)
    return faults


def _keep_features(found: BlockFindings, folder: Path) -> None:
    """The head's inputs of the runs whose planes are drawn, for pictures of one's own."""
    folder.mkdir(exist_ok=True)
    for arm in found.arms:
        with (folder / f"{arm.runs[0].run.run_id}.npz").open("wb") as file:
            np.savez(file, sample_ids=found.sample_ids, labels=found.labels, features=arm.features)


def _write_tables(inputs: Inputs, found: Sequence[BlockFindings], folder: Path) -> None:
    grid = inputs.results.name
    frames = {"T13": attribution_frame(grid, found), "T14": representation_frame(grid, found, _baseline(inputs))}
    for name, frame in frames.items():
        if frame is not None:
            for kind in TABLE_FORMATS:
                text = RENDERERS[kind](marked_grid(frame, inputs.results))
                (folder / f"{name}.{kind}").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
