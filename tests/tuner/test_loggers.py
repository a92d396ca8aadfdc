"""Which trackers there are, what they refuse, and what they are given."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from toy import run_spec

from trainable.storage import Storage
from tuner import loggers
from tuner.loggers import LoggerError, check_loggers, evaluations, file_name, folder, parameters


def test_names_in_the_order_given_each_once(storage: Storage) -> None:
    assert check_loggers("wandb, tensorboard,wandb", storage) == ("wandb", "tensorboard")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensorbord", '--log: "tensorbord" is not one of tensorboard, wandb, mlflow; did you mean tensorboard?'),
        ("", '--log: "" is not one of tensorboard, wandb, mlflow'),
    ],
)
def test_an_unknown_tracker_is_named_with_its_neighbour(text: str, message: str, storage: Storage) -> None:
    with pytest.raises(LoggerError) as error:
        check_loggers(text, storage)
    assert str(error.value) == message


def test_a_missing_extra_is_named(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(LoggerError) as error:
        check_loggers("wandb", storage)
    assert str(error.value) == "--log wandb: wandb is not installed; run: pip install grid-tuner[wandb]"


def test_an_object_store_is_refused(s3_uri: str) -> None:
    with pytest.raises(LoggerError, match=r"trackers write to a local folder, and --results s3://.* is not one"):
        check_loggers("mlflow", Storage(s3_uri.format(name="log")))


def test_extras_of_pyproject_have_the_trackers_names(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert set(project["optional-dependencies"]) >= set(loggers.PACKAGES)


def test_names_and_folders(storage: Storage) -> None:
    assert file_name("a b/c:ü-1", "0123") == "a_b_c_-1-0123"
    assert folder(storage, "wandb") == storage.local_root / "loggers" / "wandb"  # type: ignore[operator]


def test_a_spec_becomes_flat_parameters() -> None:
    flat = parameters(json.loads(run_spec().canonical()))
    assert (flat["optim.lr"], flat["model.name"], flat["optim.betas"]) == (1e-3, "small_vit", "[0.9, 0.999]")
    assert flat["budget.steps"] == "null" and flat["seed"] == 1


def test_evaluations_are_scalars_without_nulls() -> None:
    common = {"step": 4, "epoch": 1.0, "images_per_s": None}
    rows = [
        {**common, "split": "train", "loss_nats": 1.0, "top1": None, "images_per_s": 50.0},
        {**common, "split": "test", "loss_nats": 1.5, "top1": 0.5},
        {**common, "split": "val", "loss_nats": 1.75, "top1": 0.25},
    ]
    assert evaluations(rows) == [
        {
            "step": 4,
            "epoch": 1.0,
            "train_loss_nats": 1.0,
            "images_per_s": 50.0,
            "test_loss_nats": 1.5,
            "test_top1": 0.5,
            "val_loss_nats": 1.75,
            "val_top1": 0.25,
        }
    ]
    assert evaluations([]) == []
