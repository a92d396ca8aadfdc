"""The cluster launcher's and KubeRay's files: whole, consistent, and their commands are commands of this project."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import datasets.prepare
import tuner.run

LAUNCHER_CHECK = """
import json, sys, warnings
warnings.simplefilter("ignore")
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(json.load(sys.stdin))
validate_config(config)
print(json.dumps(sorted(config["available_node_types"])))
"""


@pytest.fixture(scope="module")
def launcher(root: Path) -> dict[str, Any]:
    """The file for `ray up`."""
    return dict(yaml.safe_load((root / "deploy" / "ray-cluster.yaml").read_text()))


@pytest.fixture(scope="module")
def job(root: Path) -> dict[str, Any]:
    """The manifest for KubeRay."""
    return dict(yaml.safe_load((root / "deploy" / "rayjob.yaml").read_text()))


def test_the_launcher_accepts_its_file(launcher: dict[str, Any]) -> None:
    """Ray's own schema and defaults, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER_CHECK], input=json.dumps(launcher), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])
    assert launcher["provider"]["type"] == "local"
    assert launcher["min_workers"] == launcher["max_workers"] == len(launcher["provider"]["worker_ips"])


def test_every_start_of_ray_asks_for_the_token(launcher: dict[str, Any]) -> None:
    starts = launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"]
    starts = [line for line in starts if "ray start" in line]
    assert len(starts) == 2 and all(line.startswith("RAY_AUTH_MODE=token ") for line in starts)
    assert "~/.ray/auth_token" in launcher["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_setup_installs_and_prepares_with_commands_that_exist(launcher: dict[str, Any], root: Path) -> None:
    install, prepare = (line.split(" && ")[-1] for line in launcher["setup_commands"])
    assert install == "make env" and "\nenv:" in (root / "Makefile").read_text()
    words = shlex.split(prepare)
    assert words[1:3] == ["-m", "datasets.prepare"]
    assert datasets.prepare.parser().parse_args(words[3:]).names == ["cifar100", "tiny-imagenet-200"]


def test_the_job_is_a_rayjob_of_our_ray(job: dict[str, Any], root: Path) -> None:
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    dependencies = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert f"ray[default,tune]=={spec['rayClusterSpec']['rayVersion']}" in dependencies
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert spec["shutdownAfterJobFinishes"] is True and spec["backoffLimit"] > 0


def test_the_jobs_command_is_ours(job: dict[str, Any]) -> None:
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "tuner.run"]
    options = tuner.run.parser().parse_args(words[3:])
    assert (options.grid, options.address, str(options.data), options.results) == ("paper", "auto", "/data", "/results")


def test_all_pods_mount_what_the_command_names(job: dict[str, Any]) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = set()
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"] + pod.get("initContainers", []):
            images.add(container["image"])
            mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounted) == {"/data", "/results"} and set(mounted.values()) <= volumes
    assert len(images) == 1, "code, torch and Ray must be the same on all machines"
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_nothing_opens_a_dashboard_or_carries_a_secret(root: Path) -> None:
    """Tokens are made on the spot or lie in files; none is an argument, which every user of a machine could read."""
    for path in sorted(one for one in (root / "deploy").rglob("*") if one.is_file()):
        text = path.read_text()
        assert "0.0.0.0" not in text and not re.search(r"\b(AKIA[0-9A-Z]{12,}|hf_\w{20,}|[0-9a-f]{40,})\b", text), path
        assert not re.search(r"(token|secret|password|key)\w*[=:] *[\"']?[A-Za-z0-9+/]{16,}", text, re.IGNORECASE), path
        for line in text.replace("\\\n", " ").splitlines():
            if "ray start --head" in line and not line.lstrip().startswith("#"):
                assert "--dashboard-host=127.0.0.1" in line, f"{path}: {line}"
            assert "$RAY_AUTH_TOKEN" not in line, f"{path}: {line}"
