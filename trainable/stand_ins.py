"""Random weights in the names and shapes of published ones, for machines that cannot have those.

    python -m trainable.stand_ins DIR SOURCE [SOURCE ...] [--seed N]

With `--weights DIR` a row that begins from a published file runs from such a stand-in: all of it but what its numbers
mean. So the file says in its metadata what it is, the run's record repeats it, and every run that starts from that run
does, too. The weights are the library's own initialisation from a seeded generator. The same seed gives the same bytes,
as long as library and processor are the same.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from datasets.durable import sync_file, sync_folder
from datasets.terminal import plain
from trainable import torchvision_weights
from trainable.models import nearest
from trainable.surgery import State
from trainable.weights import STAND_IN, MissingWeights, check_source, find_local, stand_in_of, tensors_sha256

SEEDS = range(2**63)


class StandInError(Exception):
    """A stand-in cannot be made or written; the message names the source and the mend."""


def stand_in(source: str, seed: int) -> State:
    """Random tensors by the names of a published file: all parameters and buffers of the library's model, with the
    classes and the image size of those weights.

    Args:
        source: a timm tag or `torchvision/<weights>`.
        seed: 0 to 2^63 - 1. torch's global generator is left as it was.

    Raises:
        StandInError: the library publishes no such weights.
    """
    build = _builder(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {name: value.contiguous() for name, value in build().state_dict().items()}


def write_stand_in(folder: Path, source: str, seed: int) -> tuple[Path, str]:
    """Writes `<folder>/<source>.safetensors`, whole or not at all.

    Returns:
        The file, and the SHA-256 (hex) over its tensors, by which runs know it.

    Raises:
        StandInError: the library publishes no such weights, or the folder holds weights of this source that are no
            stand-in: they are neither replaced nor hidden.
        OSError: cannot be written.
    """
    _check(folder, source)
    state = stand_in(source, seed)
    content = save(state, metadata={STAND_IN: f"seed {seed}"})
    path = folder / f"{source}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with part.open("wb") as file:
            file.write(content)
            sync_file(file)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)
    return path, tensors_sha256(state)


def _check(folder: Path, source: str) -> None:
    """Whether the stand-in of a source may be written.

    Raises:
        StandInError: it may not.
    """
    try:
        known = check_source(source).startswith(torchvision_weights.PREFIX)
        _builder(source)
        there = find_local(source, folder, torchvision_weights.published(source) if known else None)
        if there is not None and stand_in_of(there) is None:
            raise StandInError(
                f"{source}: {there} is no stand-in and is neither replaced nor hidden; move it away, or choose another "
                "DIR"
            )
    except MissingWeights as error:
        raise StandInError(str(error)) from None


def _builder(source: str) -> Callable[[], nn.Module]:
    """The library's constructor of the model whose weights are named.

    Raises:
        StandInError: the library publishes no such weights.
    """
    if source.startswith(torchvision_weights.PREFIX):
        try:
            return torchvision_weights.published(source).build
        except ValueError as error:
            raise StandInError(f"{source}: {error}") from None
    import timm

    known = timm.list_pretrained()
    if source not in known:
        raise StandInError(f"{source}: timm publishes no such weights{nearest(source, known)}")

    def build() -> nn.Module:
        module: nn.Module = timm.create_model(source, pretrained=False)  # the tag brings classes and image size
        return module

    return build


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m trainable.stand_ins`."""
    cli = argparse.ArgumentParser(
        prog="python -m trainable.stand_ins",
        description="Write random weights in the names and shapes of published ones.",
    )
    cli.add_argument("folder", type=Path, metavar="DIR", help="for --weights DIR; made where it is not there")
    cli.add_argument("sources", nargs="+", metavar="SOURCE", help="timm tags, or torchvision/<WeightsEnum>.<NAME>")
    cli.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    return cli


def main(argv: list[str] | None = None) -> int:
    """Prints the SHA-256 of every file's tensors; exit code 0, or 2 when something given cannot be used."""
    options = parser().parse_args(argv)
    faults = [] if options.seed in SEEDS else [f"--seed: {options.seed} is not 0 to 2^63 - 1"]
    for source in options.sources:
        try:
            _check(options.folder, source)
        except StandInError as error:
            faults.append(str(error))
    if not faults:
        torch.set_num_threads(1)  # how an initialisation is shared out among threads could change its last bits
        try:
            for source in dict.fromkeys(options.sources):
                path, digest = write_stand_in(options.folder, source, options.seed)
                print(plain(f"{digest}  {path}: random stand-in, seed {options.seed}"), flush=True)
        except OSError as error:
            faults.append(f"{options.folder}: cannot be written ({error.strerror})")
    for fault in faults:
        print(plain(f"trainable.stand_ins: {fault}"), file=sys.stderr)
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
