"""deploy/slurm.sh, with `srun`, `scontrol`, `ray`, `hostname` and `python` of our own on its PATH."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from processes import wait_for

# Each program writes its words into calls.log. `srun` runs what follows its options and ends all of it when it is ended,
# as the real one does.
PROGRAMS = {
    "srun": """
        while [[ $1 == --* ]]; do shift; done
        setsid "$@" &
        trap "kill -- -$!" TERM
        wait""",
    "hostname": "echo 10.0.0.1 10.1.0.1",
    "scontrol": """
        case $1 in
            show) printf "node1\\nnode2\\nnode3\\n" ;;
            requeue) [[ $2 == 4242 ]] ;;
            *) echo "unknown: $*" >&2; exit 1 ;;
        esac""",
    "ray": """
        echo $$ >> "$LOG.steps"
        exec sleep 60""",
    "python": """
        case "$*" in
            "-c import secrets"*) echo 0123 ;;
            "-c import ray"*) [[ $(wc -l < "$LOG.steps") == "${STEPS:-2}" ]] && echo 3 || echo 1 ;;
            *)
                echo token $RAY_AUTH_MODE $RAY_AUTH_TOKEN $RAY_TMPDIR >> "$LOG"
                trap 'echo driver saves >> "$LOG"; sleep 0.3; exit ${STOPPED:-130}' TERM
                touch "$LOG.running"
                for _ in $(seq "${TENTHS:-0}"); do sleep 0.1; done
                exit "${CODE:-0}" ;;
        esac""",
}


class Job:
    """The script under a fake Slurm of three machines."""

    def __init__(self, root: Path, tmp_path: Path, **settings: str) -> None:
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, body in PROGRAMS.items():
            program = folder / name
            program.write_text(f'#!/bin/bash\necho {name} "$@" >> "$LOG"\n{body}\n')
            program.chmod(0o755)
        self.log = tmp_path / "calls.log"
        slurm = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_CPUS_PER_TASK": "8"}
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(self.log), "SLURM_GPUS_ON_NODE": "2"}
        self.process = subprocess.Popen(
            ["bash", str(root / "deploy" / "slurm.sh"), "--grid", "paper", "--only", "label=a b"],
            cwd=tmp_path,
            env={**environment, **slurm, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def calls(self) -> list[str]:
        """What was called, in order."""
        return self.log.read_text().splitlines() if self.log.exists() else []

    def running(self) -> bool:
        """Whether the driver has begun."""
        return Path(f"{self.log}.running").exists()

    def end(self) -> int:
        """Waits for the script; nothing that it started may live on."""
        shown, _ = self.process.communicate(timeout=30)
        assert shown == "", shown
        steps = [int(line) for line in Path(f"{self.log}.steps").read_text().split()]
        wait_for(lambda: not any(map(psutil.pid_exists, steps)), timeout=5, what="the end of Ray's nodes")
        assert len(steps) == 2
        return self.process.returncode


def test_head_and_workers_are_started_and_the_driver_joins_them(root: Path, tmp_path: Path) -> None:
    job = Job(root, tmp_path)
    assert job.end() == 0
    has = "--num-cpus=8 --num-gpus=2 --block"
    (head,) = [call for call in job.calls if call.startswith("ray start --head")]
    assert head.startswith("ray start --head --node-ip-address=10.0.0.1 --port=24242") and head.endswith(has)
    assert f"ray start --address=10.0.0.1:24242 {has}" in job.calls
    steps = [call for call in job.calls if call.startswith("srun")]
    assert any("--nodes=1 --ntasks=1 --nodelist=node1 ray start --head" in step for step in steps)
    assert any("--nodes=2 --ntasks=2 --ntasks-per-node=1 --exclude=node1" in step for step in steps)
    assert "python -m tuner.run --grid paper --only label=a b --address 10.0.0.1:24242" in job.calls
    assert "token token 0123 /tmp/ray-4242" in job.calls
    assert not any("requeue" in call for call in job.calls)


@pytest.mark.parametrize("code", ["1", "2"])
def test_a_failure_is_the_jobs_and_is_not_tried_again(root: Path, tmp_path: Path, code: str) -> None:
    job = Job(root, tmp_path, CODE=code)
    assert job.end() == int(code)
    assert not any("requeue" in call for call in job.calls)


def test_preemption_saves_and_queues_again_once(root: Path, tmp_path: Path) -> None:
    """A second signal must not reach the driver, which would end at once."""
    job = Job(root, tmp_path, TENTHS="200")
    wait_for(job.running, timeout=20, what="the driver")
    job.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "driver saves" in job.calls, timeout=10, what="the driver's clean stop")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 130
    assert job.calls.count("driver saves") == 1
    assert job.calls[-1] == "scontrol requeue 4242" and job.calls.count("scontrol requeue 4242") == 1


def test_preemption_before_the_driver_runs_queues_again(root: Path, tmp_path: Path) -> None:
    job = Job(root, tmp_path, STEPS="never")
    wait_for(lambda: len(job.calls) > 12, timeout=20, what="the script to wait for Ray's nodes")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 130
    assert "scontrol requeue 4242" in job.calls and not any("tuner.run" in call for call in job.calls)


def test_a_grid_that_ends_in_time_is_not_queued_again(root: Path, tmp_path: Path) -> None:
    """The signal comes while the last run is committed: the driver ends with 0 all the same."""
    job = Job(root, tmp_path, TENTHS="8", STOPPED="0")
    wait_for(job.running, timeout=20, what="the driver")
    job.process.send_signal(signal.SIGTERM)
    assert job.end() == 0
    assert not any("requeue" in call for call in job.calls)


def test_the_script_asks_slurm_for_a_warning_and_a_requeue(root: Path) -> None:
    script = root / "deploy" / "slurm.sh"
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
    asked = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    assert {"--signal=B:TERM@120", "--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(asked)
