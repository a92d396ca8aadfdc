"""What a trial asks of the cluster: cores, a share of a card, memory; and more of it after an out-of-memory.

Ray's fraction of a GPU limits nothing, so a trial caps itself to its share (`trainable/opening.py`) and dies alone.
Shares are 1/k, since fractions never straddle cards.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil

from trainable.costs import CUDA_CONTEXT_BYTES, cpu_name
from tuner.cost import GPU_FLOPS, Cost

HEADROOM = 1.1
"""A share holds this many times the peak that is known or predicted."""
GIB = 2**30
QUARTER = GIB // 4


class ResourceError(Exception):
    """The machines cannot hold a trial, or their description cannot be read; the message names the mend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One machine."""

    cpus: float
    gpus: float
    memory_bytes: float
    """RAM that trials may take together."""
    cpu_name: str | None = None
    gpu_memory_bytes: float | None = None
    """Of one card; None where there is none, or where it is only logical."""
    gpu_name: str | None = None
    gpu_flops: float = GPU_FLOPS


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What one trial is given."""

    cpus: int
    share: float
    """Of one GPU, or a whole number of GPUs; 0 trains on the CPU."""
    memory_bytes: int
    """RAM that Ray sets aside; 0 leaves it out of account."""

    def as_ray(self) -> dict[str, float]:
        """For a placement group."""
        asked = {"CPU": float(self.cpus), "GPU": self.share, "memory": float(self.memory_bytes)}
        return {name: amount for name, amount in asked.items() if amount}


class Resources:
    """Gives every run its bundle.

    Args:
        nodes: the machines.
        cpus: cores, and threads, of a trial.
        gpu_share: for all; None derives each run's from its predicted or measured peak.
        costs: predictions by run id; None where nothing is known.
        at_least: share of a card that no run gets less of where shares follow from memory.

    Raises:
        ResourceError: no machine can hold a trial.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        *,
        cpus: int,
        gpu_share: float | None,
        costs: Mapping[str, Cost | None],
        at_least: float = 0.0,
    ) -> None:
        self.nodes = tuple(nodes)
        gpus = [node for node in nodes if node.gpus]
        if gpu_share and not gpus:
            raise ResourceError(f"--gpu-share {gpu_share:g}: the cluster has no GPU; leave it out or set 0")
        self._card = min((node.gpu_memory_bytes for node in gpus if node.gpu_memory_bytes), default=None)
        self._ram = max((node.memory_bytes for node in nodes), default=0.0)
        self.from_memory = gpu_share is None and self._card is not None
        """Whether shares follow from the memory that runs take on a card."""
        self._bundles: dict[str, Bundle] = {}
        known = [cost for cost in costs.values() if cost is not None]
        for run_id, cost in costs.items():
            if gpu_share is not None:
                share = gpu_share
            elif not gpus:
                share = 0.0
            elif self._card is None or cost is None:
                share = 1.0
            else:
                share = max(share_for(cost.memory_bytes, self._card), at_least)
            self._bundles[run_id] = Bundle(cpus=cpus, share=share, memory_bytes=0)
        if not any(bundle.share for bundle in self._bundles.values()):
            self._set_memory(costs, max((cost.memory_bytes for cost in known), default=0.0), cpus)
        for bundle in set(self._bundles.values()):
            if not any(_fits(bundle, node) for node in nodes):
                raise ResourceError(_too_large(bundle, nodes))

    def bundle(self, run_id: str) -> Bundle:
        """What a run asks for now."""
        return self._bundles[run_id]

    def add(self, run_id: str, like: str) -> None:
        """A further run, which asks for what a known one does."""
        self._bundles[run_id] = self._bundles[like]

    def probed(self, run_id: str, costs: Mapping[str, Cost | None]) -> Bundle:
        """What a probe asks for: a whole card where the run's share would only be guessed."""
        cost, bundle = costs[run_id], self._bundles[run_id]
        if self.from_memory and (cost is None or cost.basis != "measured"):
            return Bundle(cpus=bundle.cpus, share=1.0, memory_bytes=0)
        return bundle

    def more_memory(self, run_id: str) -> Bundle | None:
        """Twice the memory after an out-of-memory.

        Returns:
            The new bundle; None when the run had a whole card, or a machine's whole RAM, already.
        """
        old = self._bundles[run_id]
        if old.share:
            if old.share >= 1:
                return None
            new = Bundle(cpus=old.cpus, share=_fraction(max(1, int(1 / old.share + 1e-3) // 2)), memory_bytes=0)
        else:
            if not old.memory_bytes < self._ram < float("inf"):
                return None
            asked = 2 * old.memory_bytes or int(self._ram / 2)
            new = Bundle(cpus=old.cpus, share=0.0, memory_bytes=min(int(self._ram), asked))
        self._bundles[run_id] = new
        return new

    def uses_gpus(self) -> bool:
        """Whether any run takes a share of a card."""
        return any(bundle.share for bundle in self._bundles.values())

    def slots(self) -> int:
        """The most trials that could run at once, machine by machine."""
        small = min(bundle.share for bundle in self._bundles.values())
        cpus = min(bundle.cpus for bundle in self._bundles.values())
        return sum(_room(Bundle(cpus=cpus, share=small, memory_bytes=0), node) for node in self.nodes)

    def _set_memory(self, costs: Mapping[str, Cost | None], largest: float, cpus: int) -> None:
        """Sets RAM aside only where trials on all cores could need more than a machine has; in whole quarters of a
        GiB, so that runs of about the same size have equal bundles and can follow each other in one process."""
        if all(largest * (node.cpus // cpus) <= node.memory_bytes for node in self.nodes):
            return
        for run_id, cost in costs.items():
            need = cost.memory_bytes if cost else largest
            old = self._bundles[run_id]
            self._bundles[run_id] = Bundle(
                cpus=old.cpus, share=0.0, memory_bytes=int(min(-(-need // QUARTER) * QUARTER, self._ram))
            )


def share_for(peak_bytes: float, card_bytes: float) -> float:
    """The smallest 1/k of a card that holds a peak with room to spare, and what CUDA takes beside it."""
    return _fraction(int(card_bytes // (peak_bytes * HEADROOM + CUDA_CONTEXT_BYTES)))


def shares_to_try(runs: int, cards: int) -> list[float]:
    """Least shares worth trying for a grid: every 1/k from one run a card to as many as there are."""
    most = max(1, min(MOST_A_CARD, -(-runs // max(1, cards))))
    return [_fraction(parts) for parts in range(1, most + 1)]


def _fraction(parts: int) -> float:
    """1/parts, cut after four digits as Ray counts, so that all parts fit."""
    return int(10_000 / max(1, parts)) / 10_000


def _room(bundle: Bundle, node: Node) -> int:
    """Trials of one kind that a machine holds at once."""
    room = int(node.cpus // bundle.cpus)
    if bundle.share > 1:
        room = min(room, int(node.gpus // bundle.share))
    elif bundle.share:
        room = min(room, int(node.gpus) * int(1 / bundle.share + 1e-9))
    if bundle.memory_bytes:
        room = min(room, int(node.memory_bytes // bundle.memory_bytes))
    return room


def _fits(bundle: Bundle, node: Node) -> bool:
    return _room(bundle, node) > 0


def _too_large(bundle: Bundle, nodes: Sequence[Node]) -> str:
    seen = "; ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "no machine"
    return (
        f"a trial asks for {bundle.cpus} CPUs and {bundle.share:g} GPUs, which no machine of the cluster has ({seen}); "
        "lower --cpus-per-trial or --gpu-share"
    )


MOST_A_CARD = 8
"""Runs a card above which shares follow from memory alone."""
_KEYS = ("nodes", "cpus", "gpus", "gpu_memory_gib", "memory_gib", "gpu_tflops")


def described(text: str) -> tuple[Node, ...]:
    """Machines as `--on` describes them: `gpus=2,gpu_memory_gib=24,cpus=24`, all alike where `nodes` says several.

    Raises:
        ResourceError: unknown or missing keys, or values that are no positive numbers.
    """
    values: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        key = key.strip()
        if key not in _KEYS or not equals:
            raise ResourceError(f'--on {text}: "{part}" is not one of {", ".join(f"{one}=N" for one in _KEYS)}')
        try:
            values[key] = float(value)
        except ValueError:
            raise ResourceError(f'--on {text}: {key} must be a number, got "{value}"') from None
        whole = key in ("nodes", "cpus", "gpus")
        if not 0 <= values[key] < float("inf") or (whole and not values[key].is_integer()):
            raise ResourceError(f"--on {text}: {key} must be a {'whole ' if whole else ''}number from 0, got {value}")
    if values.get("cpus", 0) < 1 or values.get("nodes", 1) < 1:
        raise ResourceError(f"--on {text}: cpus and nodes must be at least 1")
    gpus = values.get("gpus", 0)
    if gpus and not values.get("gpu_memory_gib"):
        raise ResourceError(f"--on {text}: gpu_memory_gib=N is missing, the memory of one card")
    node = Node(
        cpus=values["cpus"],
        gpus=gpus,
        memory_bytes=values["memory_gib"] * GIB if "memory_gib" in values else float("inf"),
        gpu_memory_bytes=values["gpu_memory_gib"] * GIB if gpus else None,
        gpu_flops=values.get("gpu_tflops", GPU_FLOPS / 1e12) * 1e12,
    )
    return (node,) * int(values.get("nodes", 1))


def this_machine() -> tuple[Node, ...]:
    """The machine that this process runs on, as a Ray cluster of its own would have it."""
    cards = gpu_cards()
    return (
        Node(
            cpus=float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
            gpus=float(len(cards)),
            memory_bytes=0.7 * psutil.virtual_memory().available,
            cpu_name=cpu_name(),
            gpu_memory_bytes=min((memory for _, memory in cards), default=None),
            gpu_name=cards[0][0] if cards else None,
        ),
    )


def gpu_cards() -> list[tuple[str, float]]:
    """(name, bytes of memory) of every NVIDIA card that this process may use, without touching CUDA."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(number) for number in range(pynvml.nvmlDeviceGetCount())]
        return [
            (str(pynvml.nvmlDeviceGetName(handle)), float(pynvml.nvmlDeviceGetMemoryInfo(handle).total))
            for handle in handles
        ]
    finally:
        pynvml.nvmlShutdown()
