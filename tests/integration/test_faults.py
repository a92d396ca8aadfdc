"""Grids that are killed, stopped, shared and starved: a plain rerun ends with the Parquet of an undisturbed run.

The faults and what must hold after each are in faults.py; these are chosen moments, `make chaos` plays random ones.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from faults import FAULTS, Round, Scene, kill, undisturbed, write_grid
from processes import run, wait_for
from stores import assert_same_results

from trainable import records
from trainable.storage import Storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, data_path: Path) -> Storage:
    """What the grid `faulty` gives when nothing happens to it."""
    home = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(home, data_path, write_grid(home / "grid.yaml"))


@pytest.fixture
def scene(tmp_path: Path, data_path: Path, expected: Storage) -> Iterator[Scene]:
    """A results folder of its own for the same grid."""
    one = Scene(home=tmp_path, data=data_path, file=write_grid(tmp_path / "grid.yaml"), expected=expected)
    yield one
    one.close()


def ended(driver: subprocess.Popen[str], code: int) -> str:
    """What a driver printed that ends with this code, with no traceback among it."""
    shown, _ = driver.communicate(timeout=120)
    assert driver.returncode == code, shown
    assert "Traceback" not in shown, shown
    return shown


def typed(scene: Scene) -> str:
    """The scene's command as a person types it."""
    return shlex.join(["python", "-m", "tuner.run", *map(str, scene.arguments)])


def attempts(scene: Scene) -> list[str | None]:
    """How the attempts ended, oldest first."""
    return [record.outcome for record in records.read_attempts(scene.storage)]


def test_trials_node_driver_and_machine_die_and_the_file_is_edited_meanwhile(scene: Scene) -> None:
    """One grid through all of it: two trials at once, the node with its object store, the driver, everything at once.

    Meanwhile a row is added to the file, one is changed and one is removed.
    """
    own = {"augment.mix_alpha": 0.7}
    write_grid(scene.file, without=("resnet-val",), **{"vit-mixup": own, "vit-too-much": {"seed": 9}})
    first = scene.start()
    killed = scene.wait_for_training(trials=2)
    kill(*killed)
    wait_for(lambda: len(scene.trials()) == 2, what="both to be started again")
    write_grid(scene.file)
    wait_for(lambda: any(record.outcome == "done" for record in records.read_attempts(scene.storage)), what="a run")
    kill(*scene.named("raylet/raylet "))
    shown = ended(first, 1)
    assert shown.count("its process died; it goes on from its last checkpoint") == 2, shown
    line = "Ray's node process with the object store (raylet) on this machine has died. What was recorded is safe"
    assert line in shown and shown.strip().endswith(f"Continue with: {typed(scene)}")

    second = scene.start()
    scene.wait_for_training()
    os.kill(second.pid, signal.SIGKILL)
    third = scene.start()  # while workers of the killed driver may still live
    second.communicate()
    scene.wait_for_training()
    kill(*scene.processes())
    assert third.wait() == -signal.SIGKILL
    third.communicate()
    assert "grid faulty: 5 DONE" in scene.finish()
    assert scene.expected is not None
    assert_same_results(scene.expected, scene.storage, list(records.read_commits(scene.expected)))
    scene.expected = None
    scene.check()
    assert attempts(scene).count(None) >= 3, "killed attempts stay on record"
    logs = [path.read_text() for path in (scene.home / "results" / "runs").glob("*/log.txt")]
    assert any("resumed at step" in log for log in logs)


def test_signals_once_and_twice_at_any_time(scene: Scene) -> None:
    """Each stop says how to go on; what was running is saved by the first, and kept as it was by the second."""
    early = scene.start()
    assert early.stdout is not None
    while "starting Ray" not in early.stdout.readline():
        assert early.poll() is None
    early.send_signal(signal.SIGTERM)
    assert f"interrupted; continue with: {typed(scene)}" in ended(early, 130)

    once = scene.start(OMP_NUM_THREADS="8", MKL_NUM_THREADS="8")
    trial, *_ = scene.wait_for_training()
    threads = {trial.environ()[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    assert threads == {"1"}, "what a shell has set does not reach the trials"
    once.send_signal(signal.SIGTERM)
    assert f"Continue with: {typed(scene)}" in ended(once, 130)
    assert set(attempts(scene)) <= {"stopped", "done"}

    for name in ("press_ctrl_c_twice", "terminate_twice"):
        twice = scene.start()
        scene.wait_for_training()
        FAULTS[name](scene, twice, random.Random(0))
        assert f"ontinue with: {typed(scene)}" in ended(twice, 130)
    scene.finish()
    scene.check()


def test_a_second_driver_says_who_holds_what_and_neither_trains_a_row_twice(scene: Scene) -> None:
    first = scene.start()
    scene.wait_for_training(trials=2)
    second = scene.finish()
    shown = ended(first, 0)
    assert "2 held; results in" in second and f"scheduled by process {first.pid} on" in second
    assert "grid faulty: 5 DONE" in shown and "grid faulty: 5 DONE" in second
    assert attempts(scene) == ["done"] * 5
    scene.check()


def test_rays_memory_monitor_ends_a_trial_and_the_grid_goes_on_with_fewer_at_a_time(scene: Scene) -> None:
    """Memory really runs short, while two rows train, until a trial is killed. Ray ends the whole experiment then."""
    from ray._private.utils import get_system_memory, get_used_memory

    scene.expected = None
    write_grid(scene.file, epochs=150, without=("vit-child", "resnet-val"))
    total, used = get_system_memory(), get_used_memory()
    limit = used + 5 * 1024**3
    if limit > 0.9 * total:
        pytest.skip("needs 5 GiB of free memory to take away")
    driver = scene.start(RAY_memory_usage_threshold=f"{limit / total:.4f}", RAY_memory_monitor_refresh_ms="100")
    trials = scene.wait_for_training(trials=2)
    taken = []
    deadline = time.monotonic() + 60
    while all(trial.is_running() for trial in trials) and time.monotonic() < deadline:
        if get_used_memory() < limit + 0.02 * total:
            taken.append(bytearray(b"x") * 64 * 1024**2)
    taken.clear()
    shown = ended(driver, 0)
    assert "a machine ran low on memory and Ray ended a trial; going on with 1 at a time" in shown
    assert "grid faulty: 2 DONE" in shown
    scene.check()


def test_a_machine_that_never_has_the_memory(scene: Scene) -> None:
    """Every trial is killed as it starts: the grid ends, says why, and a rerun with memory goes on."""
    scene.expected = None
    write_grid(scene.file, epochs=2, without=("vit-mixup", "vit-child", "resnet-val"))
    started = scene.start(RAY_memory_usage_threshold="0.001", RAY_memory_monitor_refresh_ms="100")
    shown = ended(started, 1)
    assert "FAILED resnet-cutmix: its process died too often without getting on; a machine short of memory" in shown
    assert "grid faulty: 1 DONE" in scene.finish()
    scene.check()


def test_a_failed_parent_blocks_its_child_only_and_is_tried_again(scene: Scene) -> None:
    """A loss that is not a number ends that run with its step, and the grid goes on."""
    scene.expected = None
    write_grid(scene.file, epochs=2, without=("resnet-val", "resnet-cutmix"))
    file = scene.file.read_text().replace("optim.lr: 0.002", "optim.lr: 1.0e+30")
    scene.file.write_text(file)
    for told in ("3 runs, 0 done, 3 to run", "3 runs, 1 done, 2 to run"):
        shown = ended(scene.start(), 1)
        assert told in shown
        assert "grid faulty: 1 DONE, 1 FAILED, 1 BLOCKED" in shown
        assert "FAILED parent: NonFiniteLoss: the loss was not a finite number at step" in shown
        assert "BLOCKED vit-child: its parent parent is failed" in shown
    assert sorted(map(str, attempts(scene))) == ["done", "failed", "failed"]
    table = run("analysis.tables", "--results", scene.home / "results", "--out", scene.home / "out")
    assert "FAILED: NonFiniteLoss" in table.stdout and "vit-mixup" in table.stdout


def test_a_round_of_chaos_follows_from_its_seed_and_number() -> None:
    assert Round.draw(5, 3, 20.0) == Round.draw(5, 3, 20.0) != Round.draw(6, 3, 20.0)
    drawn = {Round.draw(1, number, 20.0).harms[0][0] for number in range(len(FAULTS))}
    assert drawn == set(FAULTS), "every fault has its turn"


def test_a_check_that_can_fail(scene: Scene, tmp_path: Path) -> None:
    """Another result, a run committed twice, and a process that is left are all noticed."""
    other = Scene(home=tmp_path / "other", data=scene.data, file=scene.file, expected=scene.expected)
    with pytest.raises(AssertionError):
        other.check()
    other.expected = None
    for attempt in ("a", "b"):
        record = {"run_id": "0" * 16, "attempt_id": attempt, "files": []}
        other.storage.put(f"commits/{'0' * 16}--{attempt}.json", json.dumps(record).encode())
    with pytest.raises(AssertionError, match="trained twice"):
        other.check()
    sleeper = subprocess.Popen(["sleep", "60"], env={**os.environ, "GRID_TUNER_TEST_SCENE": other.mark})
    assert [process.pid for process in other.processes()] == [sleeper.pid]
    kill(psutil.Process(sleeper.pid))
    assert sleeper.wait() == -signal.SIGKILL and other.processes() == []
