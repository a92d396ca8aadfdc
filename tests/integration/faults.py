"""A real grid, harmed at a chosen or random moment, run again, and compared with an undisturbed one.

    make chaos MINUTES=60 [SEED=N] [ROUND=K]

A fault is a function of a `Scene` with one invocation under way and the processes it finds there. What must hold is
the same after every fault, see `Scene.check`: the plain rerun ends with 0 and the Parquet of an undisturbed run, no
run was committed twice, no process is left.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml
from processes import start, wait_for
from stores import assert_same_results
from toy import BASE, write_image_folder

from datasets.prepare import prepare
from trainable import records
from trainable.storage import Storage

MARK = "GRID_TUNER_TEST_SCENE"
"""In the environment of every process of a scene, by which they are found whoever their parent is."""
LEFTOVERS_S = 90.0
"""Ray's agents outlive a killed driver for about a minute."""


def write_grid(path: Path, *, epochs: int = 60, without: tuple[str, ...] = (), **changed: dict[str, Any]) -> Path:
    """An experiment file with the grid `faulty` on the toy images: a parent, its child, and runs that mix, hold images
    out, and select by the hold-out; seconds each.

    Args:
        path: the file to write.
        epochs: of every row.
        without: labels to leave out.
        changed: fields by label, over what the row has.
    """
    rows: dict[str, dict[str, Any]] = {
        "vit-mixup": {"augment.mix": "mixup", "augment.mix_alpha": 0.4},
        "vit-child": {"init.kind": "parent", "init.source": "parent", "init.checkpoint": "last"},
        "resnet-val": {"model.name": "small_resnet", "data.val_fraction": 0.2, "evaluate.select": ["best_on_val"]},
        "resnet-cutmix": {
            "model.name": "small_resnet",
            "augment.mix": "cutmix",
            "augment.mix_alpha": 1.0,
            "augment.pad_crop": 1,
            "optim.name": "sgd",
            "optim.momentum": 0.9,
            "optim.betas": None,
            "optim.eps": None,
        },
    }
    rows = {label: {**fields, **changed.pop(label, {})} for label, fields in rows.items() if label not in without}
    rows |= changed
    own = {**BASE, "budget.epochs": epochs, "evaluate.every_epochs": 5}
    del own["init.sha256"], own["data.content_sha256"]
    grid = {
        "help": "Rows of seconds that are harmed",
        "base": own,
        "axes": {"row": {**rows, "parent": {}}},
        "matrix": {"row": list(rows)},
        "rows": {label: {"at": {"row": label}} for label in rows},
        "parents": {"parent": {"at": {"row": "parent"}, "set": {"optim.lr": 2e-3}}},
    }
    if "vit-child" not in rows:
        del grid["parents"]
    path.write_text(yaml.safe_dump({"version": 1, "grids": {"faulty": grid}}))
    return path


@dataclass(kw_only=True)
class Scene:
    """One results folder, the grid that fills it, and what an undisturbed run of it gave."""

    home: Path
    data: Path
    file: Path
    expected: Storage | None
    settings: dict[str, str] = field(default_factory=dict)
    """Further environment."""
    options: tuple[object, ...] = ()
    """Further options of tuner.run."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    resumed_s: float = 0.0
    """Seconds from the last rerun's start to its first attempt, or to its end where nothing was left to train."""

    def __post_init__(self) -> None:
        self.storage = Storage(str(self.home / "results"))
        self._started: list[subprocess.Popen[str]] = []

    @property
    def arguments(self) -> tuple[object, ...]:
        """Of tuner.run."""
        places = ("--experiments", self.file, "--data", self.data, "--results", self.home / "results")
        return ("--grid", "faulty", "--save-every", "0.3", *places, *self.options)

    def start(self, **settings: str) -> subprocess.Popen[str]:
        """One invocation of the grid."""
        process = start("tuner.run", *self.arguments, env={MARK: self.mark, **self.settings, **settings})
        self._started.append(process)
        return process

    def finish(self, *, timeout: float = 300) -> str:
        """The plain rerun, to its end. Returns what it printed."""
        known, began = len(self.storage.names("attempts")), time.monotonic()
        again = self.start()
        while again.poll() is None and len(self.storage.names("attempts")) == known:
            time.sleep(0.05)
        self.resumed_s = time.monotonic() - began
        shown, _ = again.communicate(timeout=timeout)
        assert again.returncode == 0, f"exit code {again.returncode}:\n{shown}"
        assert "Traceback" not in shown, shown
        return shown

    def check(self) -> None:
        """What holds after every fault.

        Raises:
            AssertionError: the promise is broken; the message says how.
        """
        if self.expected is not None:
            assert_same_results(self.expected, self.storage)
        commits = [commit["run_id"] for commit in map(self._commit, self.storage.names("commits")) if commit]
        assert len(commits) == len(set(commits)), f"trained twice: {sorted(commits)}"
        left = [path.name for path in (self.home / "results" / "staging").glob("*")]
        assert not left, f"half-written files are left: {left}"
        wait_for(lambda: not self.processes(), timeout=LEFTOVERS_S, what="the end of every process of the grid")

    def _commit(self, name: str) -> dict[str, Any] | None:
        """A commit record with all its files; None where one is gone."""
        commit: dict[str, Any] = json.loads(self.storage.read(f"commits/{name}"))
        return commit if all(self.storage.exists(file["path"]) for file in commit["files"]) else None

    def processes(self) -> list[psutil.Process]:
        """Every living process of this scene."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def trials(self) -> list[psutil.Process]:
        """The processes that train now, by their attempts' records."""
        found = []
        for record in records.read_attempts(self.storage):
            if record.outcome is None:
                path = f"attempts/{record.run_id}--{record.attempt_id}.json"
                with suppress(psutil.NoSuchProcess):
                    process = psutil.Process(json.loads(self.storage.read(path))["pid"])
                    if self._is_ours(process):
                        found.append(process)
        return list({process.pid: process for process in found}.values())

    def named(self, text: str) -> list[psutil.Process]:
        """Processes of this scene with `text` in their command line."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def saved(self, run_id: str | None = None) -> list[Path]:
        """The last checkpoints of runs that are not done."""
        done = records.read_commits(self.storage)
        found = (self.home / "results" / "runs").glob(f"{run_id or '*'}/checkpoint/last/state.safetensors")
        return sorted(path for path in found if path.parents[2].name not in done)

    def wait_for_training(self, trials: int = 1) -> list[psutil.Process]:
        """Waits until so many trials train and a checkpoint is kept."""
        return list(
            wait_for(
                lambda: self.saved() and len(found := self.trials()) >= trials and found, what=f"{trials} living trials"
            )
        )

    def close(self) -> None:
        """Kills what is left."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self._started:
            if started.stdout is not None and not started.stdout.closed:
                started.communicate()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, OSError):
            return False


def kill(*processes: psutil.Process) -> None:
    """SIGKILL to all of them, as nearly at once as one process can: stopped first, so that none sees another die."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def undisturbed(home: Path, data: Path, file: Path) -> Storage:
    """The results of the grid when nothing happens to it."""
    scene = Scene(home=home, data=data, file=file, expected=None)
    try:
        scene.finish()
    finally:
        scene.close()
    return scene.storage


# The faults: each is given the scene, the driver of an invocation under way, and where its random numbers come from.
Fault = Callable[[Scene, "subprocess.Popen[str]", random.Random], None]
FAULTS: dict[str, Fault] = {}


def fault(function: Fault) -> Fault:
    """Adds a fault under its function's name."""
    FAULTS[function.__name__] = function
    return function


@fault
def kill_a_trial(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    kill(*rng.sample(found := scene.trials(), min(1, len(found))))


@fault
def kill_two_trials(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    kill(*scene.trials()[:2])


@fault
def kill_the_driver(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    driver.kill()


@fault
def kill_the_machine(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    kill(*scene.processes())


@fault
def kill_the_node(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    """Ray's node process holds the object store."""
    kill(*scene.named("raylet/raylet "))


@fault
def kill_the_control_store(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    kill(*scene.named("gcs/gcs_server "))


@fault
def kill_the_dashboard(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    """Nobody needs it to train."""
    kill(*scene.named("dashboard/dashboard.py"))


@fault
def terminate(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    driver.send_signal(signal.SIGTERM)


@fault
def terminate_twice(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    driver.send_signal(signal.SIGTERM)
    time.sleep(rng.uniform(0, 2))
    driver.send_signal(signal.SIGTERM)


def _ctrl_c(driver: subprocess.Popen[str]) -> None:
    """A terminal sends it to every process of the foreground group."""
    with suppress(ProcessLookupError):  # the grid was done before
        os.killpg(driver.pid, signal.SIGINT)


@fault
def press_ctrl_c(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    _ctrl_c(driver)


@fault
def press_ctrl_c_twice(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    _ctrl_c(driver)
    time.sleep(rng.uniform(0, 2))
    _ctrl_c(driver)


@fault
def start_a_second_driver(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    """Both end well, and no run has two attempts that trained."""
    shown = scene.finish()
    if driver.wait(timeout=300) != 0:
        raise AssertionError(f"the first driver ended with {driver.returncode}; the second said:\n{shown}")


def _harmed_checkpoint(scene: Scene, rng: random.Random, harm: Callable[[bytes], bytes]) -> None:
    kill(*scene.processes())
    for path in rng.sample(found := scene.saved(), min(1, len(found))):
        path.write_bytes(harm(path.read_bytes()))


@fault
def truncate_a_checkpoint(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    _harmed_checkpoint(scene, rng, lambda content: content[: rng.randrange(len(content))])


@fault
def flip_a_bit_of_a_checkpoint(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    def flip(content: bytes) -> bytes:
        at = rng.randrange(len(content))
        return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]

    _harmed_checkpoint(scene, rng, flip)


@fault
def exchange_two_checkpoints(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    kill(*scene.processes())
    if len(found := scene.saved()) > 1:
        one, other = (path.read_bytes() for path in found[:2])
        found[0].write_bytes(other)
        found[1].write_bytes(one)


@fault
def lose_a_committed_file(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    """A commit without one of its files is none: its run is finished again from its checkpoint."""
    kill(*scene.processes())
    if commits := list(records.read_commits(scene.storage).values()):
        (scene.home / "results" / rng.choice(rng.choice(commits).files).path).unlink()


@fault
def lose_a_commit_record(scene: Scene, driver: subprocess.Popen[str], rng: random.Random) -> None:
    """Files that no record names are nothing."""
    kill(*scene.processes())
    if found := sorted((scene.home / "results" / "commits").glob("*.json")):
        rng.choice(found).unlink()


@dataclass(frozen=True, kw_only=True)
class Round:
    """What happens to one scene, all of it from the seed and the number."""

    number: int
    harms: tuple[tuple[str, float], ...]
    """Faults, and seconds from the start of their invocation."""

    @classmethod
    def draw(cls, seed: int, number: int, last_s: float) -> Round:
        rng = random.Random(f"{seed}/{number}")
        names = sorted(FAULTS)
        first = names[number % len(names)]  # every fault has its turn
        harms = [first, *rng.choices(names, k=rng.randrange(2))]
        return cls(number=number, harms=tuple((name, round(rng.uniform(0, last_s), 2)) for name in harms))


def play(one: Round, seed: int, scene: Scene) -> dict[str, Any]:
    """Harms a scene as the round says, runs the grid to its end, and checks.

    Raises:
        AssertionError: a promise is broken.
    """
    rng = random.Random(f"{seed}/{one.number}/within")
    for name, after_s in one.harms:
        driver = scene.start()
        with suppress(subprocess.TimeoutExpired):
            driver.wait(timeout=after_s)
        FAULTS[name](scene, driver, rng)
        try:
            shown, _ = driver.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the driver hangs after {name}") from None
        if name not in ("kill_the_driver", "kill_the_machine", "kill_the_node") and driver.returncode >= 0:
            assert "Traceback" not in shown, shown
    began = time.monotonic()
    scene.finish()
    finish_s = time.monotonic() - began
    scene.check()
    attempts = len(records.read_attempts(scene.storage))
    return {"resume_s": round(scene.resumed_s, 1), "finish_s": round(finish_s, 1), "attempts": attempts}


def main() -> int:
    """`make chaos`. Prints the seed and every round; a failed round is replayed with SEED and ROUND."""
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--minutes", type=float, default=60.0)
    cli.add_argument("--seed", type=int, default=None)
    cli.add_argument("--first", type=int, default=0, help="begin with this round (default: 0)")
    cli.add_argument("--round", type=int, default=None, help="play this one only")
    cli.add_argument(
        "--last-s", type=float, default=None, help="latest moment of a harm (default: as long as a run takes)"
    )
    options = cli.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    home = Path(tempfile.mkdtemp(prefix="chaos-"))
    write_image_folder(home / "images", train_per_class=20, test_per_class=10)
    prepare("toy", home / "images", home / "data")
    file = write_grid(home / "grid.yaml")
    began = time.monotonic()
    expected = undisturbed(home / "undisturbed", home / "data", file)
    last_s = options.last_s or round(time.monotonic() - began, 1)
    print(f"seed {seed}; an undisturbed grid takes {last_s} s; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC", flush=True)
    first = options.first if options.round is None else options.round
    failed, number = [], first
    while options.round is not None or time.monotonic() - began < 60 * options.minutes:
        one = Round.draw(seed, number, last_s)
        scene = Scene(home=home / f"round{number}", data=home / "data", file=file, expected=expected)
        told = {"round": number, "harms": one.harms}
        try:
            print(json.dumps({**told, **play(one, seed, scene)}), flush=True)
            shutil.rmtree(scene.home)
        except AssertionError as error:
            failed.append(number)
            print(json.dumps({**told, "FAILED": str(error)}), flush=True)
            print(
                f"kept in {scene.home}; again with: make chaos SEED={seed} ROUND={number} LAST_S={last_s}", flush=True
            )
        finally:
            scene.close()
        if options.round is not None:
            break
        number += 1
    print(f"seed {seed}: {number - first} rounds, failed: {failed or 'none'}; {datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    if not failed:
        shutil.rmtree(home)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
