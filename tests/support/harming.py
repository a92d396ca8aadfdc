"""A program that harms runs in one way each, and runs them again.

    python harming.py SPEC DATA IMAGES ROOT

`ROOT/whole` is the undisturbed run, `ROOT/<harm>` one that was harmed and continued. Prints a JSON object: by harm, how
every process ended (exit code, negative for a signal) and what it said. `IMAGES` is another image folder.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import Any

import torch
from killing import Drawing, at_write, in_child, killed_at_write, prepare, train
from rich.console import Console
from torch import nn
from toy import exec_spec

from datasets import prepare as prepare_module
from trainable import models, run
from trainable import storage as storage_module
from trainable.attempt import Attempt, RunFailed
from trainable.spec import RunSpec
from trainable.storage import Storage

FAILED = 3
"""Exit code of a process whose run failed, with its reason on record."""


class Wide(nn.Module):
    """Needs a hundred megabytes to train."""

    def __init__(self, classes: int, size: int) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(3 * size * size, 40_000), nn.Linear(40_000, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, S, S] to logits [B, C]."""
        logits: torch.Tensor = self.head(self.inner(images.flatten(1)).relu())
        return logits


class Scenes:
    """One run, harmed in every way."""

    def __init__(self, spec: RunSpec, data: Path, images: Path, root: Path) -> None:
        self.spec, self.data, self.images, self.root = spec, data, images, root
        self.said: dict[str, list[Any]] = {}

    def play(self, harm: str, *acts: Callable[[Path], None]) -> None:
        """Each act in a process of its own, one after another, on the results of this harm."""
        results = self.root / harm
        self.said[harm] = []
        for act in acts:
            output = self.root / "output"

            def acting(act: Callable[[Path], None] = act, output: Path = output) -> None:
                descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
                try:
                    act(results)
                except RunFailed as error:
                    print(f"out_of_memory={error.out_of_memory} {error}", flush=True)
                    os._exit(FAILED)

            code = in_child(acting)
            self.said[harm].append([code, output.read_text()])

    def train(self, results: Path, **how: Any) -> None:
        train(self.spec, how.pop("data", self.data), results, **how)

    def begun(self, results: Path, data: Path | None = None) -> Attempt:
        """An attempt that has trained for an epoch, and saves after every batch."""
        attempt = Attempt(self.spec, exec_spec(data or self.data, save_every_s=1e-9), Storage(str(results)))
        while not attempt.advance(0.0):
            pass
        return attempt

    def finish(self, attempt: Attempt) -> None:
        while not attempt.done:
            attempt.advance(0.0)

    def clocks(self) -> None:
        def shifted(hours: float, act: Callable[[Path], None]) -> Callable[[Path], None]:
            def acting(results: Path) -> None:
                set_clock(hours)
                act(results)

            return acting

        dies = partial(killed_at_write, 9, self.spec, self.data)
        self.play("clock", dies, shifted(-5, dies), shifted(-3, self.train))

        def while_it_trains(results: Path) -> None:
            attempt = self.begun(results)
            set_clock(-5)
            self.finish(attempt)

        self.play("clock in between", while_it_trains)

    def threads(self) -> None:
        self.play(
            "threads", lambda results: self.begun(results).stop(), lambda results: self.train(results, cpu_threads=2)
        )

    def memory(self) -> None:
        def short(results: Path) -> None:
            size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 60 * 2**20, resource.RLIM_INFINITY))
            self.train(results)

        models.MODELS[self.spec.model.name] = Wide
        self.play("memory whole", self.train)
        self.play("memory", short, self.train)
        models.MODELS[self.spec.model.name] = Drawing

    def files(self) -> None:
        def in_the_middle(results: Path) -> None:
            storage_module.PAUSES_S = (0.01, 0.01)
            attempt = self.begun(results)
            no_further_file()
            self.finish(attempt)

        def at_the_start(results: Path) -> None:
            storage_module.PAUSES_S = (0.01, 0.01)
            no_further_file()
            self.command(results)

        self.play("files at the start", at_the_start, self.train)
        self.play("files in the middle", in_the_middle, self.train)

    def full_disk(self, disk: Path) -> None:
        """Leaves less and less room on a small file system, so that it fills in the middle of one write after another;
        then makes room."""
        filler = disk / "filler"
        used = sum(path.stat().st_blocks * 512 for path in (self.root / "whole").rglob("*") if path.is_file())
        late = [
            used - blocks * 4096 for blocks in (9, 7, 5)
        ]  # the tables and what follows them are a block each or two
        for room in (*(used * parts // 20 for parts in (2, 8, 14, 17)), *late):
            shutil.rmtree(disk / "results", ignore_errors=True)
            filler.write_bytes(b"1" * max(0, shutil.disk_usage(disk).free - room))

            def filled(results: Path) -> None:
                self.command(disk / "results")

            def with_room(results: Path) -> None:
                filler.unlink()
                self.command(disk / "results")

            def kept(results: Path) -> None:
                shutil.copytree(disk / "results", results)

            self.play(f"disk {room}", filled, with_room, kept)

    def images_change(self) -> None:
        def copied() -> Path:
            copy = self.root / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(self.data / "toy", copy / "toy")
            return copy

        def replace(copy: Path) -> None:
            prepare_module.prepare("toy", self.images, copy, replace=True, console=Console(quiet=True))

        def remove(copy: Path) -> None:
            shutil.rmtree(copy / "toy")

        def cut(copy: Path) -> None:
            os.truncate(copy / "toy" / "train" / "images.npy", 4096)

        for name, change in (("replaced", replace), ("removed", remove), ("cut", cut)):

            def while_it_trains(results: Path, change: Callable[[Path], None] = change) -> None:
                copy = copied()
                attempt = self.begun(results, copy)
                change(copy)
                self.finish(attempt)

            def between_attempts(results: Path, change: Callable[[Path], None] = change) -> None:
                copy = copied()
                self.begun(results, copy).stop()
                change(copy)

            def continued(results: Path) -> None:
                self.train(results, data=self.root / "copy")

            def prepared_again(results: Path) -> None:
                self.train(results, data=copied())

            self.play(f"{name} while it trains", while_it_trains, continued, prepared_again)
            self.play(f"{name} between attempts", between_attempts, continued, prepared_again)

    def signals(self) -> None:
        for name, times in (("asked once", 1), ("asked twice", 2)):
            for number in (signal.SIGINT, signal.SIGTERM):

                def ask(path: str, number: int = number, times: int = times) -> None:
                    for _ in range(times):
                        os.kill(os.getpid(), number)

                def asked(results: Path, ask: Callable[[str], None] = ask) -> None:
                    at_write(6, ask)  # the checkpoint after the third batch
                    self.command(results)

                self.play(f"{name} by {signal.Signals(number).name}", asked, self.command)

    def commits(self) -> None:
        def cut(results: Path) -> None:
            storage = Storage(str(results))
            (name,) = storage.names("commits")
            storage.put(f"commits/{name}", storage.read(f"commits/{name}")[:100])

        def alter(results: Path) -> None:
            (path,) = (results / "trials").iterdir()
            path.write_bytes(path.read_bytes()[:-1] + b"?")

        def lose(results: Path) -> None:
            (path,) = (results / "trials").iterdir()
            path.unlink()

        def forget(results: Path) -> None:
            (path,) = (results / "commits").iterdir()
            path.unlink()

        self.play("commit cut", self.train, cut, self.command, self.command)
        self.play("file altered", self.train, alter, lose, self.command)
        self.play("commit lost", self.train, forget, self.command)

    def command(self, results: Path) -> None:
        """`python -m trainable.run` without its planner."""
        row = {"label": "one", "state": "ready", "reason": None, "spec": self.spec.model_dump(mode="json")}
        run._planned_rows = lambda options, passed: [row]
        given = ["--grid", "g", "--label", "one", "--data", str(self.data), "--results", str(results)]
        code = run.main([*given, "--save-every", "0.000001", "--device", "cpu"])
        sys.stdout.flush()
        os._exit(code)


def no_further_file() -> None:
    """Fills this process's table of open files."""
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def set_clock(hours: float) -> None:
    """Moves the clock of this process."""
    real = time.time

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: real() + timedelta(hours=hours).total_seconds()
    for module in list(sys.modules.values()):
        if getattr(module, "datetime", None) is datetime and module.__name__.startswith("trainable"):
            module.datetime = Shifted  # type: ignore[attr-defined]


def main(spec: RunSpec, data: Path, images: Path, root: Path, *small: Path) -> None:
    """See the module. With a fifth argument, a folder on a small file system, that is filled and nothing else done."""
    prepare(spec, data)
    scenes = Scenes(spec, data, images, root)
    scenes.play("whole", scenes.train)
    if small:
        scenes.full_disk(*small)
    else:
        scenes.clocks()
        scenes.threads()
        scenes.memory()
        scenes.files()
        scenes.images_change()
        scenes.signals()
        scenes.commits()
    print(json.dumps(scenes.said))


if __name__ == "__main__":
    main(RunSpec.model_validate_json(sys.argv[1]), *map(Path, sys.argv[2:]))
