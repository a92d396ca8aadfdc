"""Before a grid starts on a cluster: every machine that may train has the code, the data, the weights and the results.

One light task a machine looks and reports. What a machine lacks is named with what to type there, before any trial
starts; a trial that found out by itself would fail on one machine and pass on another. Machines that join later are
not asked; a run that fails there says the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.published import PUBLISHED
from datasets.store import DataError, read_manifest
from trainable.costs import cpu_name
from trainable.spec import ExecSpec, InitSpec, RunSpec
from trainable.storage import Storage, StorageError
from tuner.resources import Node, gpu_cards

ANSWER_TIMEOUT_S = 300.0  # a machine may have to fetch the code, start a process and import torch from a cold disk


class NodeError(Exception):
    """Machines of the cluster lack what the grid needs; the message names each with its mend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """What every machine must have."""

    code_sha256: str
    """Of the driver's code, see `provenance.tree_sha256`."""
    data_path: str
    content_sha256: Mapping[str, str]
    """Content hash by data set."""
    weights_path: str | None
    weights: tuple[InitSpec, ...]
    """Initial weights of kind hub or file, with their hashes."""
    results: str
    """The results root as given."""
    marker: str
    """Path below the results root of a file that the driver wrote."""


def check_nodes(
    specs: Sequence[RunSpec], *, storage: Storage, results: str, exec_spec: ExecSpec, on_gpus: bool
) -> None:
    """Asks every machine that may train. The cluster must be connected.

    Args:
        specs: the runs that are to be run.
        storage: the results root.
        results: its path or URI as the machines are to open it.
        exec_spec: where data and weights are to lie on every machine, and how many cores a trial takes.
        on_gpus: trials take a share of a GPU, so that machines without one get none.

    Raises:
        NodeError: something is missing somewhere.
    """
    asked = [node for node in ray.nodes() if node["Alive"] and _may_train(node["Resources"], exec_spec, on_gpus)]
    from trainable import provenance

    marker = f"staging/{uuid.uuid4().hex}"
    needs = Needs(
        code_sha256=provenance.tree_sha256(),
        data_path=exec_spec.data_path,
        content_sha256={spec.data.dataset: str(spec.data.content_sha256) for spec in specs},
        weights_path=exec_spec.weights_path,
        weights=tuple({str(spec.init): spec.init for spec in specs if spec.init.kind in ("hub", "file")}.values()),
        results=results,
        marker=marker,
    )
    storage.put(marker, marker.encode())
    try:
        faults = _ask(asked, needs)
    finally:
        storage.delete(marker)
    if faults:
        lines = [f"  {fault} (on {', '.join(nodes)})" for fault, nodes in faults.items()]
        raise NodeError("\n".join(["machines of the cluster lack what this grid needs; nothing was started:", *lines]))


def machines(*, joined: bool) -> tuple[Node, ...]:
    """The machines of the connected cluster. Cards that NVIDIA's library does not see are taken as logical ones.

    Args:
        joined: the cluster has other machines than this one, and each is asked.
    """
    found = []
    for node in [node for node in ray.nodes() if node["Alive"]]:
        has = node["Resources"]
        name, cards = _look_at(node["NodeID"]) if joined else hardware()
        found.append(
            Node(
                cpus=has.get("CPU", 0.0),
                gpus=has.get("GPU", 0.0),
                memory_bytes=has.get("memory", float("inf")),
                cpu_name=name,
                gpu_memory_bytes=min((memory for _, memory in cards), default=None),
                gpu_name=cards[0][0] if cards else None,
            )
        )
    return tuple(found)


def hardware() -> tuple[str, list[tuple[str, float]]]:
    """The processor's name and the cards of the machine that this runs on."""
    return cpu_name(), gpu_cards()


def _look_at(node_id: str) -> tuple[str, list[tuple[str, float]]]:
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    try:
        asked = ray.remote(num_cpus=0, max_retries=1)(hardware).options(scheduling_strategy=where).remote()
        answer: tuple[str, list[tuple[str, float]]] = ray.get(asked, timeout=ANSWER_TIMEOUT_S)
    except (RayError, GetTimeoutError):
        return "", []  # `check_nodes` says what is wrong with this machine
    return answer


def _may_train(has: Mapping[str, float], exec_spec: ExecSpec, on_gpus: bool) -> bool:
    return has.get("CPU", 0) >= exec_spec.cpu_threads and (has.get("GPU", 0) > 0 or not on_gpus)


def _ask(nodes: Sequence[Mapping[str, Any]], needs: Needs) -> dict[str, list[str]]:
    """Addresses of machines by fault."""
    look = ray.remote(num_cpus=0, max_retries=1)(look_around)
    asked = {
        node["NodeManagerAddress"]: look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(needs)
        for node in nodes
    }
    faults: dict[str, list[str]] = {}
    for address, answer in asked.items():
        try:
            found = ray.get(answer, timeout=ANSWER_TIMEOUT_S)
        except GetTimeoutError:
            found = [f"gave no answer within {ANSWER_TIMEOUT_S:.0f} s; look at the machine with: ray status"]
        except RayError as error:
            found = [_not_runnable(error)]
        for fault in found:
            faults.setdefault(fault, []).append(address)
    return faults


def _not_runnable(error: RayError) -> str:
    last = next((line for line in reversed(str(error).splitlines()) if line.strip()), error.__class__.__name__)
    return (
        f"this code cannot be run ({last.strip()}); install the same version of this project and its dependencies "
        "there: python -m pip install -r requirements.lock && python -m pip install --no-deps ."
    )


def look_around(needs: Needs) -> list[str]:
    """What is wrong on this machine, each fault with its mend; empty when all is there."""
    faults = [*_code(needs), *_data(needs), *_results(needs)]
    return faults + ([] if faults else _weights(needs))


def _code(needs: Needs) -> list[str]:
    from trainable import provenance

    if provenance.tree_sha256() == needs.code_sha256:
        return []
    return [
        f"another version of this project is installed in {provenance.ROOT}; install the driver's version there, or "
        "start from a checkout, which sends its code along"
    ]


def _data(needs: Needs) -> list[str]:
    path = Path(needs.data_path)
    faults = []
    for name, content in needs.content_sha256.items():
        source = "" if name in PUBLISHED else " --source FOLDER_OR_ZIP"
        mend = f"python -m datasets.prepare {name}{source} --data {path}"
        try:
            manifest = read_manifest(path, name)
        except DataError as error:
            faults.append(str(error))
            continue
        if manifest is None:
            faults.append(f"{name} is not prepared in {path}; run there: {mend} (or give --data on a shared folder)")
        elif manifest.content_sha256 != content:
            faults.append(
                f"{name} in {path} has the content {manifest.content_sha256[:16]}, the grid was planned with "
                f"{content[:16]}; run there, from the driver's source: {mend} --replace"
            )
    return faults


def _results(needs: Needs) -> list[str]:
    """Reads the driver's file and leaves, for a moment, one of its own."""
    own = f"{needs.marker}-{uuid.uuid4().hex}"
    try:
        storage = Storage(needs.results)
        if storage.read(needs.marker) != needs.marker.encode():
            raise FileNotFoundError(needs.marker)
        storage.put(own, b"")
        storage.delete(own)
    except FileNotFoundError:
        return [
            f"--results {needs.results} is not the driver's folder; give one that all machines share, or a bucket such "
            "as s3://bucket/study"
        ]
    except (OSError, StorageError) as error:
        return [f"--results {needs.results} cannot be used ({str(error).splitlines()[0]}); mend the access there"]
    return []


def _weights(needs: Needs) -> list[str]:
    from trainable.weights import MissingWeights, find_weights

    faults = []
    for init in needs.weights:
        try:
            find_weights(init, Path(needs.weights_path) if needs.weights_path else None, download=True)
        except MissingWeights as error:
            faults.append(str(error))
    return faults
