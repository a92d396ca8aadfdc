"""Which code is sent to a cluster, and that what is sent is whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainable import provenance
from tuner import shipping


def test_a_cluster_of_this_machine_gets_no_copy() -> None:
    with shipping.runtime_env(2, joined=False) as settings:
        assert "working_dir" not in settings
        assert settings["env_vars"]["OMP_NUM_THREADS"] == "2"


GREEDY = """
import os, time, psutil, torch
torch.set_num_threads(2)  # as a model of one's own may
one, seen = torch.rand(600, 600), psutil.Process()
def spent(): return {thread.id: thread.user_time + thread.system_time for thread in seen.threads()}
one @ one
before, began = spent(), time.process_time()
while time.process_time() - began < 0.6:
    one @ one
    one.exp()
print(sum(seconds - before.get(thread, 0) > 0.06 for thread, seconds in spent().items()))
from tuner.actor import hold_threads
hold_threads(1)
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("limited", [True, False])
def test_a_model_that_asks_torch_for_more_threads_gets_none(limited: bool, root: Path) -> None:
    """Counted by the kernel's own times of every thread; without the limit there are two, so the count can fail."""
    free = {name: value for name, value in os.environ.items() if "THREAD" not in name}
    with shipping.runtime_env(1, joined=False) as settings:
        environment = {**free, **(settings["env_vars"] if limited else {})}
        done = subprocess.run(
            [sys.executable, "-c", GREEDY], cwd=root, env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1" if limited or os.cpu_count() == 1 else "2", "1"]


def test_keys_are_not_sent_with_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune would put them into every trial's runtime environment, which Ray logs."""
    from ray.tune.execution import class_cache

    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(class_cache.ENV_VARS_TO_PROPAGATE))
    assert "AWS_SECRET_ACCESS_KEY" in class_cache.ENV_VARS_TO_PROPAGATE, "or Ray has mended it"
    shipping.keep_keys_home()
    assert not [name for name in class_cache.ENV_VARS_TO_PROPAGATE if "KEY" in name or "TOKEN" in name]
    assert "RAY_CHDIR_TO_TRIAL_DIR" in class_cache.ENV_VARS_TO_PROPAGATE


def test_a_checkout_sends_three_packages_that_work_elsewhere(root: Path, tmp_path: Path) -> None:
    """A process that sees the copy alone finds the same hash of the code, and is told the commit."""
    file = tmp_path / "own.yaml"
    file.write_text("version: 1\n")
    code = (
        "import tuner.actor, tuner.nodes, tuner.command; from trainable import provenance as p; "
        "print(tuner.__file__, p.tree_sha256(), p.git_state())"
    )
    with shipping.runtime_env(1, joined=True, files=(file,)) as settings:
        sent = Path(settings["working_dir"])
        assert sorted(path.name for path in sent.iterdir()) == ["datasets", "own.yaml", "trainable", "tuner"]
        assert not list(sent.rglob("__pycache__"))
        environment = {**os.environ, **settings["env_vars"], "PYTHONPATH": str(sent), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(sent / "tuner" / "__init__.py"),
        provenance.tree_sha256(),
        str(provenance.git_state()),
    ]
    assert not sent.exists()


def test_an_installed_package_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "ROOT", Path("/usr/lib/python3.11/site-packages"))
    with shipping.runtime_env(1, joined=True) as settings:
        assert "working_dir" not in settings


@pytest.mark.parametrize(("described", "sent"), [({"working_dir": "gcs://x.zip"}, False), ({"env_vars": {}}, True)])
def test_a_submitted_job_brings_its_own_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, described: dict[str, object], sent: bool
) -> None:
    """And leaves its folder, which Ray removes when the job is stopped."""
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": described}))
    monkeypatch.chdir(tmp_path)
    with shipping.runtime_env(1, joined=True) as settings:
        assert ("working_dir" in settings) is sent
    shipping.leave_job_folder()
    assert (Path.cwd() == tmp_path) is sent
