"""Clusters of several machines: real Ray nodes with addresses of their own, see tests/support/clusters.py.

One machine has two logical GPUs, the other one. The second lacks a folder of the first, and no node knows this
checkout: it runs elsewhere and its environment does not name it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clusters import RAY, Cluster, machines
from processes import command, wait_for
from stores import assert_same_results
from tiny_grid import write_grid
from toy import exec_spec

from trainable import provenance, records
from trainable.attempt import Attempt
from trainable.spec import RunSpec
from trainable.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

LONG = {"budget.epochs": 200, "evaluate.every_epochs": 100}
"""A row of some ten seconds."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two Ray nodes."""
    with machines(2) as both:
        both.start_node(0, cpus=6, gpus=2)
        both.start_node(1, cpus=3, gpus=1)
        both.wait(2)
        yield both


def starts(storage: Storage) -> list[dict[str, Any]]:
    """The records of all attempts, each with the time of its end under `ended_at` and its outcome."""
    found = []
    for name in storage.names("attempts"):
        if not name.endswith(".end.json"):
            start = json.loads(storage.read(f"attempts/{name}"))
            end = json.loads(storage.read(f"attempts/{name.removesuffix('.json')}.end.json"))
            found.append({**start, "ended_at": end["ended_at"], "outcome": end["outcome"]})
    return found


def most_at_once(attempts: list[dict[str, Any]]) -> int:
    """The largest number of attempts that ran at the same time."""
    return max(
        sum(other["started_at"] <= one["started_at"] < other["ended_at"] for other in attempts) for one in attempts
    )


def rows_of_provenance(storage: Storage) -> list[dict[str, Any]]:
    """The provenance of every committed run."""
    rows: list[dict[str, Any]] = records.read_table(
        storage, "provenance", records.read_commits(storage).values()
    ).to_pylist()
    return rows


def given(tmp_path: Path, data_path: Path, count: int, *more: object, **fields: Any) -> list[object]:
    """Arguments of `tuner.run` for a grid of that many rows."""
    rows = {f"row-{seed}": {"seed": seed, **fields} for seed in range(count)}
    file = write_grid(tmp_path / "experiments.yaml", rows)
    results = tmp_path / "results"
    return ["--grid", "tiny", "--experiments", file, "--data", data_path, "--results", results, *more]


def test_twelve_rows_at_a_third_of_a_gpu(cluster: Cluster, data_path: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "results"))
    more = ("--address", "auto", "--gpu-share", "0.3333", "--device", "cpu")
    code, shown = cluster.tuner(*given(tmp_path, data_path, 12, *more), timeout=360)
    assert code == 0, shown
    assert "grid tiny: 12 DONE" in shown
    attempts = starts(storage)
    assert [attempt["outcome"] for attempt in attempts] == ["done"] * 12
    assert {attempt["node"] for attempt in attempts} == {machine.address for machine in cluster.machines}
    cards = {(attempt["node"], *attempt["gpus"]) for attempt in attempts}
    assert len(cards) == 3
    at_once = [most_at_once([one for one in attempts if (one["node"], *one["gpus"]) == card]) for card in cards]
    assert max(at_once) == 3
    for row in rows_of_provenance(storage):
        assert row["code_tree_sha256"] == provenance.tree_sha256()
        assert row["code_git_sha"] == (provenance.git_state() or "").removesuffix("-dirty")
        assert json.loads(row["numerics_json"])["device"] == "cpu"


def test_the_client_runs_a_grid_and_passes_signals_on(cluster: Cluster, data_path: Path, tmp_path: Path) -> None:
    """The command runs in the cluster; its lines, its end and the way to continue are seen here."""
    storage = Storage(str(tmp_path / "results"))
    arguments = given(
        tmp_path, data_path, 1, "--address", cluster.client, "--gpu-share", "0", "--save-every", "0.2", **LONG
    )
    client = cluster.popen(command("tuner.run", *arguments))
    wait_for_checkpoint(client, storage)
    client.send_signal(signal.SIGTERM)
    shown, _ = client.communicate(timeout=60)
    assert client.returncode == 130, shown
    typed = shlex.join(["python", "-m", "tuner.run", *map(str, arguments)])
    assert "row-0: started" in shown and f"Continue with: {typed}" in shown and "Traceback" not in shown
    (attempt,) = starts(storage)
    assert attempt["outcome"] == "stopped"

    code, shown = cluster.tuner(*arguments)
    assert code == 0, shown
    assert "1 begun earlier will continue from their checkpoints" in shown and "grid tiny: 1 DONE" in shown


def test_machines_that_lack_data_or_results_are_named(cluster: Cluster, data_path: Path, tmp_path: Path) -> None:
    if not cluster.isolated:
        pytest.skip("needs mount namespaces: without, all machines share their folders")
    shutil.copytree(data_path / "toy", cluster.head_only / "data" / "toy")
    arguments = given(tmp_path, cluster.head_only / "data", 2, "--address", cluster.address)
    arguments[arguments.index(tmp_path / "results")] = cluster.head_only / "results"
    code, shown = cluster.tuner(*arguments)
    assert code == 2
    assert "machines of the cluster lack what this grid needs; nothing was started" in shown
    data = cluster.head_only / "data"
    assert f"toy is not prepared in {data}; run there: python -m datasets.prepare toy --source FOLDER_OR_ZIP" in shown
    assert f"--results {cluster.head_only / 'results'} is not the driver's folder" in shown
    other = cluster.machines[1].address
    assert (
        shown.count(f"(on {other})") == 2 and cluster.machines[0].address not in shown.split("nothing was started")[1]
    )
    storage = Storage(str(cluster.head_only / "results"))
    assert storage.names("attempts") == [] and storage.names("staging") == []


def test_a_submitted_job_is_stopped_cleanly_and_continues(cluster: Cluster, data_path: Path, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "results"))
    arguments = given(tmp_path, data_path, 1, "--address", "auto", "--gpu-share", "0", "--save-every", "0.2", **LONG)
    described = {"env_vars": {"GRID_TUNER_GIT": "0" * 40, "RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    submit = [RAY, "job", "submit", "--address", cluster.jobs, "--working-dir", ".", "--runtime-env-json"]
    submit += [json.dumps(described), "--submission-id"]
    typed = ["--", "python", "-m", "tuner.run", *map(str, arguments)]
    job = cluster.popen([*submit, "first", *typed])
    try:
        wait_for_checkpoint(job, storage)
    finally:
        code, shown = cluster.run([RAY, "job", "stop", "--address", cluster.jobs, "first"])
    assert code == 0, shown
    job.communicate(timeout=60)
    _, shown = cluster.run([RAY, "job", "logs", "--address", cluster.jobs, "first"])
    assert f"Continue with: {shlex.join(typed[1:])}" in shown, shown
    (attempt,) = starts(storage)
    assert attempt["outcome"] == "stopped"

    code, shown = cluster.run([*submit, "second", *typed])
    assert code == 0, shown
    assert "1 begun earlier will continue" in shown and "grid tiny: 1 DONE" in shown
    (row,) = rows_of_provenance(storage)
    assert row["code_git_sha"] == "0" * 40 and row["code_tree_sha256"] == provenance.tree_sha256()


def wait_for_checkpoint(process: subprocess.Popen[str], storage: Storage) -> None:
    """Waits until some run has one while the process lives."""
    root = storage.local_root
    assert root is not None

    def saved() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return any(root.glob("runs/*/checkpoint/last/*.safetensors"))

    wait_for(saved, what="a checkpoint")


def test_a_machine_of_the_cluster_dies(cluster: Cluster, data_path: Path, tmp_path: Path) -> None:
    """Its node with the object store and its trial are gone at once; another machine goes on with the run.

    The last test of this module: the machine stays dead.
    """
    storage = Storage(str(tmp_path / "results"))
    more = ("--address", cluster.address, "--gpu-share", "1", "--device", "cpu", "--save-every", "0.2")
    driver = cluster.popen(command("tuner.run", *given(tmp_path, data_path, 3, *more, **LONG)))
    there = cluster.machines[1].address

    def training_there() -> dict[str, Any] | None:
        assert driver.poll() is None, driver.communicate()[0]
        for record in records.read_attempts(storage):
            start = json.loads(storage.read(f"attempts/{record.run_id}--{record.attempt_id}.json"))
            if start["node"] == there and storage.exists(f"runs/{record.run_id}/checkpoint/last/state.safetensors"):
                return dict(start)
        return None

    lost = wait_for(training_there, what="a run on the second machine to keep a checkpoint")
    cluster.kill_node(1)
    shown, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, shown
    assert "its process died; it goes on from its last checkpoint" in shown and "grid tiny: 3 DONE" in shown
    assert "Traceback" not in shown, shown
    first, second = (one for one in records.read_attempts(storage) if one.run_id == lost["run_id"])
    assert (first.outcome, second.outcome) == (None, "done")
    assert "attempt 2 resumed at step" in storage.read(f"runs/{lost['run_id']}/log.txt").decode()

    undisturbed = Storage(str(tmp_path / "undisturbed"))
    spec = RunSpec.model_validate_json(storage.read(f"runs/{lost['run_id']}/spec.json"))
    attempt = Attempt(spec, exec_spec(data_path), undisturbed)
    while not attempt.done:
        attempt.advance()
    assert_same_results(undisturbed, storage, [lost["run_id"]])
