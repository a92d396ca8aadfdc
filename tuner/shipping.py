"""Which code the trials run: this checkout's, sent along to machines that may not have it, or an installed package.

A trial imports `datasets`, `trainable` and `tuner`. Joining a cluster from a checkout sends just these three; data,
results and everything else of the checkout stay where they are. An installed package must be installed on every
machine, and a submitted job (`ray job submit --working-dir .`) has its code already.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainable.credentials import is_secret
from trainable.provenance import GIT_VARIABLE, ROOT, git_state
from tuner.actor import thread_environment

PACKAGES = ("datasets", "trainable", "tuner")
_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the driver of a submitted job


@contextmanager
def runtime_env(threads: int, *, joined: bool, files: tuple[Path, ...] = ()) -> Iterator[dict[str, Any]]:
    """Ray's runtime environment of the trials, to be given to `ray.init` before the context ends.

    Args:
        threads: cores of a trial.
        joined: the cluster has other machines, or may get them; one of this machine alone reads the same files.
        files: are sent too, into the working folder.
    """
    variables = thread_environment(threads)
    if (state := git_state()) is not None:
        variables[GIT_VARIABLE] = state
    with tempfile.TemporaryDirectory(prefix="grid-tuner-") as folder:
        for file in files:
            shutil.copy(file, folder)
        if joined and _is_to_be_sent():
            for package in PACKAGES:
                shutil.copytree(ROOT / package, Path(folder, package), ignore=shutil.ignore_patterns("__pycache__"))
        sent = {"working_dir": folder} if any(Path(folder).iterdir()) else {}
        yield {"env_vars": variables, **sent}


def leave_job_folder() -> None:
    """Leaves the working folder of a submitted job: `ray job stop` removes it while the driver still ends trials."""
    if _job_ships_code():
        os.chdir(tempfile.gettempdir())


def keep_keys_home() -> None:
    """Keeps Tune from sending AWS keys of the driver's environment along with every trial: Ray writes what it sends
    into logs that every user of the machine can read, and shows it on the dashboard. Trials have the keys of their
    machine; on a cluster of this machine alone, those are the driver's."""
    from ray.tune.execution import class_cache  # private, and pinned with Ray's version: a test looks at the logs

    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if not is_secret(name)}


def _is_to_be_sent() -> bool:
    installed = not {"site-packages", "dist-packages"}.isdisjoint(ROOT.parts)
    return not installed and not _job_ships_code()


def _job_ships_code() -> bool:
    """Whether this process is the driver of a submitted job whose runtime environment carries code."""
    job = json.loads(os.environ.get(_JOB_VARIABLE, "{}"))
    return not {"working_dir", "py_modules"}.isdisjoint(job.get("runtime_env") or {})
