"""`--until-decided` as a person types it: real runs on Ray join those that are there, and the same command goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from processes import run
from toy import exec_spec

from trainable import records
from trainable.attempt import Attempt
from trainable.storage import Storage
from tuner.facts import LocalFacts
from tuner.grid import Selection, load_grid
from tuner.ledger import survey, write_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FIELDS = {"budget.epochs": 1, "data.limit_train": 40, "data.limit_eval": 40}
SHORT = ("--epochs", 1, "--limit-train", 40, "--limit-eval", 40)


def test_a_round_of_real_runs_and_its_budget(root: Path, data_path: Path, tmp_path: Path) -> None:
    """The rows of H1 from scratch with one seed: of the two that each lacks, the budget affords the first."""
    storage = Storage(str(tmp_path / "results"))
    selection = Selection(only=(("pretrained", "false"), ("mix", "none"), ("mix", "cutmix")), fields=FIELDS, seeds=(1,))
    grid = load_grid(root / "experiments.yaml", "demo", selection, LocalFacts(data_path, None, download=False))
    for number, planned in enumerate((grid.runs[0], *grid.runs)):  # the first one once more before: it compiles
        where = storage if number else Storage(str(tmp_path / "warm"))
        attempt = Attempt(planned.spec, exec_spec(data_path), where)
        while not attempt.done:
            attempt.advance()
    write_manifest(storage, grid, survey(storage, grid), [], {})
    before = records.read_commits(storage)
    first_run = next(one for one in grid.runs if one.label == "resnet-cutmix")
    trials = records.read_table(storage, "trials", before.values()).to_pylist()
    (hours,) = ((row["train_s"] + row["evaluate_s"]) / 3600 for row in trials if row["run_id"] == first_run.run_id)
    command = ("--grid", "demo", "--data", data_path, "--results", storage.uri, *SHORT, "--until-decided", "H1")
    done = run("tuner.run", *command, "--max-gpu-hours", 1.6 * hours)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "H1: too few seeds to be judged, so this is no look" in done.stdout
    first, last = (json.loads(storage.read(f"looks/demo/{storage.names('looks/demo')[at]}")) for at in (0, -1))
    chosen = {(pick["label"], pick["seed"]) for pick in first["picks"]}
    assert ("resnet-cutmix", 2) in chosen and {seed for _, seed in chosen} <= {2, 3} and not last["picks"]
    added = records.read_commits(storage).keys() - before.keys()
    assert len(added) >= len(chosen)
    assert "device-hours are spent, and the next run would take about" in done.stdout.splitlines()[-1]
    again = run("tuner.run", *command, "--max-gpu-hours", 1.6 * hours)
    assert again.returncode == 1 and records.read_commits(storage).keys() == added | before.keys(), (
        "nothing is run again"
    )
