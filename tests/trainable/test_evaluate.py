"""The command that evaluates a stored checkpoint, on the run's own data and on others."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from toy import exec_spec, run_spec, write_image_folder

from datasets.prepare import prepare
from datasets.store import Dataset
from trainable import records
from trainable.attempt import Attempt
from trainable.evaluate import main
from trainable.storage import Storage


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, data_path: Path, toy: Dataset) -> tuple[Storage, str]:
    storage = Storage(str(tmp_path_factory.mktemp("results")))
    spec = run_spec({"data.content_sha256": toy.manifest.content_sha256, "model.name": "small_resnet"})
    attempt = Attempt(spec, exec_spec(data_path), storage)
    while not attempt.done:
        attempt.advance()
    return storage, spec.run_id


def arguments(results: tuple[Storage, str], data: Path, *more: str, run: str | None = None) -> list[str]:
    storage, run_id = results
    return [run or run_id[:8], "--results", storage.uri, "--data", str(data), *more]


@pytest.mark.parametrize(("checkpoint", "name"), [("last", "final"), ("best_on_test", "best_on_test")])
def test_it_repeats_the_recorded_numbers(
    results: tuple[Storage, str], data_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: str, name: str
) -> None:
    assert main(arguments(results, data_path, "--checkpoint", checkpoint)) == 0
    shown = capsys.readouterr().out
    (trial,) = records.read_table(results[0], "trials", records.read_commits(results[0]).values()).to_pylist()
    assert f"top1             {trial[f'{name}_top1']:.6f}" in shown
    assert f"nll_nats         {trial[f'{name}_nll_nats']:.6f}" in shown
    assert "on toy (not the published data), 30 test images" in shown


def test_on_other_data_of_the_same_kind(
    results: tuple[Storage, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image_folder(tmp_path / "images", train_per_class=2, test_per_class=40, seed=9)
    prepare("other", tmp_path / "images", tmp_path / "data", console=Console(quiet=True))
    assert main(arguments(results, tmp_path / "data", "--dataset", "other")) == 0
    assert "on other (not the published data), 120 test images" in capsys.readouterr().out


def test_a_run_of_another_version_is_left_to_that_version(
    tmp_path: Path, data_path: Path, toy: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = Storage(str(tmp_path))
    spec = run_spec({"data.content_sha256": toy.manifest.content_sha256, "budget.epochs": 1})
    Attempt(spec, exec_spec(data_path), storage)
    path = f"runs/{spec.run_id}/spec.json"
    storage.put(path, json.dumps({**json.loads(storage.read(path)), "version": 1}).encode())
    assert main(arguments((storage, spec.run_id), data_path)) == 2
    assert (
        f"RUN {spec.run_id}: its spec is not one of this version of the project (version: Input should be 2, got 1); "
        "evaluate it with the version that trained it"
    ) in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_is_said(
    results: tuple[Storage, str], data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image_folder(tmp_path / "images", train_per_class=2, test_per_class=2, size=16)
    prepare("larger", tmp_path / "images", tmp_path / "data", console=Console(quiet=True))
    cases = {
        "no run of .* begins so; its runs are": arguments(results, data_path, run="zzz"),
        "digits: has 10 classes, run .* knows 3": arguments(results, data_path, "--dataset", "digits"),
        "images of 16 pixels, run .* was trained on 8": arguments(results, tmp_path / "data", "--dataset", "larger"),
        "cifar10 is not prepared": arguments(results, data_path, "--dataset", "cifar10"),
        "--checkpoint best_on_val: run .* has none": arguments(results, data_path, "--checkpoint", "best_on_val"),
    }
    for message, given in cases.items():
        assert main(given) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
