"""Real harm to real processes of one run: a plain rerun ends with the Parquet of an undisturbed run."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from stores import assert_same_results
from toy import run_spec, write_image_folder

from analysis.load import load_results
from analysis.results_table import results_frame
from datasets.store import Dataset
from trainable import records
from trainable.manifests import write_manifest
from trainable.spec import RunSpec
from trainable.storage import Storage

pytestmark = [pytest.mark.slow]


def program(root: Path, name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A program of tests/support."""
    command = [sys.executable, str(root / "tests" / "support" / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=240, check=False)


def test_killed_at_its_nth_write_for_every_n(root: Path, tmp_path: Path, data_path: Path, toy: Dataset) -> None:
    """Checkpoints at every batch of training and evaluation, best ones of both kinds, every file of the commit; with
    mixing, a hold-out, dropout and stochastic depth."""
    spec = run_spec(
        {
            "data.content_sha256": toy.manifest.content_sha256,
            "data.limit_train": 42,
            "data.limit_eval": 16,
            "data.val_fraction": 0.25,
            "evaluate.select": ["best_on_val", "best_on_test"],
            "augment.mix": "cutmix",
            "augment.mix_alpha": 1.0,
            "augment.hflip_prob": 0.5,
            "model.name": "small_resnet",
            "optim.lr": 1e-3,
            "seed": 2,
            "budget.epochs": 2,
        }
    )
    done = program(root, "killing", spec.canonical(), data_path, tmp_path)
    assert done.returncode == 0, done.stderr
    kills = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert [int(number) for number in kills] == list(range(1, len(kills) + 1))
    for part in ("attempts/", "log.txt", "last/state", "best_on_val/", "best_on_test/", "delete", "epochs/", "logits/"):
        assert any(part in written for written in kills.values()), part
    (commit,) = (int(number) for number, written in kills.items() if written.startswith("commits/"))
    whole = Storage(str(tmp_path / "whole"))
    for number, written in kills.items():
        killed = Storage(str(tmp_path / number))
        assert_same_results(whole, killed)
        assert len(killed.names("commits")) == 1, f"trained twice after a kill at {written}"
        assert killed.names("dims/classes") == whole.names("dims/classes") != []
        if int(number) <= commit:  # nothing is written to what is done
            assert [name for name in killed.names("staging") if name.endswith(".half")] == [], written


@dataclass(frozen=True)
class Harmed:
    """What `harming.py` did to runs."""

    root: Path
    spec: RunSpec
    said: dict[str, list[tuple[int, str]]]

    def store(self, harm: str) -> Storage:
        """The results of one harm."""
        return Storage(str(self.root / harm))

    def is_mended(self, harm: str, whole: str = "whole") -> None:
        """The last process ended well, with the results of an undisturbed run and one commit that counts."""
        assert self.said[harm][-1][0] == 0, self.said[harm]
        assert_same_results(self.store(whole), self.store(harm))

    def attempts(self, harm: str) -> list[records.AttemptRecord]:
        return records.read_attempts(self.store(harm))

    def trial(self, harm: str) -> dict[str, Any]:
        storage = self.store(harm)
        commits = records.read_commits(storage).values()
        return {
            **records.read_table(storage, "provenance", commits).to_pylist()[0],
            **records.read_table(storage, "trials", commits).to_pylist()[0],
        }


@pytest.fixture(scope="module")
def spec(toy: Dataset) -> RunSpec:
    return run_spec(
        {
            "data.content_sha256": toy.manifest.content_sha256,
            "model.name": "small_resnet",
            "augment.mix": "mixup",
            "augment.mix_alpha": 1.0,
        }
    )


@pytest.fixture(scope="module")
def harmed(root: Path, spec: RunSpec, data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Harmed:
    images, home = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("harmed")
    write_image_folder(images, train_per_class=20, test_per_class=10, seed=9)
    done = program(root, "harming", spec.canonical(), data_path, images, home)
    assert done.returncode == 0, done.stderr
    return Harmed(root=home, spec=spec, said=json.loads(done.stdout))


def test_the_clock_set_back_between_attempts(harmed: Harmed) -> None:
    """By five hours after the first kill, by two hours more or less after the second."""
    harmed.is_mended("clock")
    assert [code for code, _ in harmed.said["clock"]] == [-9, -9, 0]
    first, second, third = harmed.attempts("clock")
    assert first.started_at > third.started_at > second.started_at, "the clock was set back"
    assert [record.number for record in (first, second, third)] == [1, 2, 3] and third.outcome == "done"
    trial = harmed.trial("clock")
    assert (trial["attempt_number"], trial["attempt_id"]) == (3, third.attempt_id)
    assert json.loads(trial["attempt_history_json"]) == [first.attempt_id, second.attempt_id]


def test_the_clock_set_back_while_a_run_trains(harmed: Harmed) -> None:
    harmed.is_mended("clock in between")
    (record,) = harmed.attempts("clock in between")
    assert record.ended_at == record.started_at, "no attempt takes less than no time"
    trial = harmed.trial("clock in between")
    assert trial["ended_at"] >= trial["started_at"]
    (cost,) = (harmed.root / "clock in between" / "costs").iterdir()
    assert json.loads(cost.read_text())["setup_s"] >= 0


def test_a_resume_under_other_threads_is_allowed_marked_and_shown(harmed: Harmed) -> None:
    assert [code for code, _ in harmed.said["threads"]] == [0, 0]
    trial = harmed.trial("threads")
    assert trial["attempt_numerics_changed"]
    assert json.loads(trial["attempt_resumed_under_json"]) == [{"step": 4, "changed": {"threads": [1, 2]}}]
    assert json.loads(harmed.trial("whole")["attempt_resumed_under_json"]) == []
    storage = harmed.store("threads")
    log = storage.read(f"runs/{harmed.spec.run_id}/log.txt").decode()
    assert "resumed at step 4; resumed under other numerics (threads 1 to 2): bits may differ; it is marked" in log
    header: dict[str, Any] = {"help": "", "published_eval": None, "overrides": {}}
    row = {"label": "one", "axes": {}, "is_parent": False, "published": None}
    run = {"label": "one", "run_id": harmed.spec.run_id, "seed": 1, "parents": [], "state": "ready", "reason": None}
    write_manifest(
        storage, grid="g", variant="full", written_at=datetime.now(UTC), header=header, rows=[row], runs=[run]
    )
    frame = results_frame(load_results(storage, "g"))
    assert "[1] resumed under other conditions, so bits may differ: threads 1 to 2" in frame.notes


def test_no_memory_is_a_failure_that_says_so(harmed: Harmed) -> None:
    """A real limit on the address space."""
    (code, said), _ = harmed.said["memory"]
    assert code == 3 and said.startswith("out_of_memory=True RuntimeError: ") and "can't allocate memory" in said
    harmed.is_mended("memory", whole="memory whole")
    assert [record.outcome for record in harmed.attempts("memory")] == ["failed", "done"]


@pytest.mark.parametrize("when", ["at the start", "in the middle"])
def test_a_full_table_of_open_files_is_a_message(harmed: Harmed, when: str) -> None:
    (code, said), _ = harmed.said[f"files {when}"]
    assert code in (1, 3) and "Too many open files" in said and "run the same command again" in said
    assert "Traceback" not in said
    harmed.is_mended(f"files {when}")


@pytest.mark.parametrize("change", ["replaced", "removed"])
def test_data_that_change_while_a_run_trains_do_not_reach_it(harmed: Harmed, change: str) -> None:
    """The open files are kept by the system. What the same command finds afterwards is done."""
    harm = f"{change} while it trains"
    assert [code for code, _ in harmed.said[harm]] == [0, 0, 0]
    harmed.is_mended(harm)
    assert len(harmed.store(harm).names("commits")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("replaced", "SpecError: data.content_sha256: the run was planned for "),
        ("removed", "DataError: toy is not prepared in {data}; run: python -m datasets.prepare toy --data {data}"),
        ("cut", "python -m datasets.prepare toy --data {data} --replace"),
    ],
)
def test_data_that_change_between_attempts_fail_it_until_they_are_prepared_again(
    harmed: Harmed, change: str, message: str
) -> None:
    harm = f"{change} between attempts"
    _, (code, said), _ = harmed.said[harm]
    assert code == 3 and message.format(data=harmed.root / "copy") in said
    assert [record.outcome for record in harmed.attempts(harm)] == ["stopped", "failed", "done"]
    harmed.is_mended(harm)


def test_images_cut_under_a_run_kill_it_and_are_refused_until_they_are_prepared_again(harmed: Harmed) -> None:
    """The system's answer to reading a memory map beyond the end of its file is SIGBUS."""
    (killed, _), (refused, said), _ = harmed.said["cut while it trains"]
    assert (killed, refused) == (-7, 3) and "the prepared data are damaged" in said
    assert [record.outcome for record in harmed.attempts("cut while it trains")] == [None, "failed", "done"]
    harmed.is_mended("cut while it trains")


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_at_the_end_of_a_batch_and_a_second_one_at_once(harmed: Harmed, number: str) -> None:
    for times in ("once", "twice"):
        harm = f"asked {times} by {number}"
        (code, said), _ = harmed.said[harm]
        assert code == 130 and said.endswith(f"interrupted; the same command continues run {harmed.spec.run_id}\n")
        assert [record.outcome for record in harmed.attempts(harm)] == ["stopped", "done"]
        harmed.is_mended(harm)
        log = harmed.store(harm).read(f"runs/{harmed.spec.run_id}/log.txt").decode()
        assert f"attempt 2 resumed at step {4 if times == 'once' else 2}" in log


def test_a_commit_record_cut_short_is_said_and_written_anew(harmed: Harmed) -> None:
    harm = "commit cut"
    _, _, (_, mended), (_, again) = harmed.said[harm]
    (line,) = (line for line in mended.splitlines() if line.startswith("trainable.run: "))
    assert line.endswith(".json: not a whole commit record; it does not count") and "is done already" in again
    harmed.is_mended(harm)
    log = harmed.store(harm).read(f"runs/{harmed.spec.run_id}/log.txt").decode()
    assert "attempt 2 resumed at step 12; " in log and "not a whole commit record" in log


def test_a_file_altered_then_removed_as_the_message_asks_is_written_anew(harmed: Harmed) -> None:
    assert ".parquet is missing; it does not count" in harmed.said["file altered"][-1][1]
    harmed.is_mended("file altered")


def test_files_without_their_record_do_not_count(harmed: Harmed) -> None:
    storage = harmed.store("commit lost")
    assert len(storage.names("trials")) == 2 and len(storage.names("commits")) == 1
    harmed.is_mended("commit lost")


def test_a_disk_that_fills_is_said_and_room_is_all_that_it_takes(
    root: Path, spec: RunSpec, data_path: Path, tmp_path: Path
) -> None:
    """A real file system of 3 MB, filled so far that another write fails each time."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare with user namespaces to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    light = {"name": "sgd", "betas": None, "eps": None, "momentum": 0.9}  # the tables need more room than checkpoints
    spec = spec.model_copy(update={"optim": spec.optim.model_copy(update=light)})
    code = [
        sys.executable,
        root / "tests" / "support" / "harming.py",
        spec.canonical(),
        data_path,
        "-",
        tmp_path,
        small,
    ]
    script = f"mount -t tmpfs -o size=3m none {small} && exec {shlex.join(map(str, code))}"
    done = subprocess.run([*unshare, "sh", "-c", script], cwd=root, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    disk = Harmed(root=tmp_path, spec=spec, said=json.loads(done.stdout))
    filled = [said for harm, said in disk.said.items() if harm.startswith("disk")]
    full = [shown for (code, shown), _, _ in filled if code == 1]
    assert all("No space left on device" in shown and "then run the same command again" in shown for shown in full)
    assert all(len([line for line in shown.splitlines() if line.startswith("trainable.run")]) == 1 for shown in full)
    assert any("/checkpoint/" in shown for shown in full)
    assert any(f"/{name}/" in shown for name in ("trials", "predictions", "logits", "provenance") for shown in full)
    for harm in disk.said:
        disk.is_mended(harm)
