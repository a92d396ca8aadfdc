"""What a machine of a cluster is asked, without a cluster; tests/integration/test_clusters.py asks real ones."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from toy import exec_spec

from datasets.store import Dataset
from trainable import provenance
from trainable.spec import InitSpec
from trainable.storage import Storage
from trainable.weights import tensors_sha256
from tuner.nodes import Needs, _may_train, _not_runnable, look_around


@pytest.fixture
def needs(data_path: Path, toy: Dataset, storage: Storage) -> Needs:
    """What this machine has."""
    storage.put("staging/marker", b"staging/marker")
    return Needs(
        code_sha256=provenance.tree_sha256(),
        data_path=str(data_path),
        content_sha256={"toy": toy.manifest.content_sha256},
        weights_path=None,
        weights=(),
        results=storage.uri,
        marker="staging/marker",
    )


def test_nothing_is_wrong_and_nothing_is_left(needs: Needs, storage: Storage) -> None:
    assert look_around(needs) == []
    assert storage.names("staging") == ["marker"]


def test_absent_data(needs: Needs, tmp_path: Path) -> None:
    (fault,) = look_around(replace(needs, data_path=str(tmp_path / "none")))
    assert fault == (
        f"toy is not prepared in {tmp_path}/none; run there: python -m datasets.prepare toy --source FOLDER_OR_ZIP "
        f"--data {tmp_path}/none (or give --data on a shared folder)"
    )


def test_published_data_need_no_source(needs: Needs, tmp_path: Path) -> None:
    (fault,) = look_around(replace(needs, content_sha256={"cifar100": "0" * 64}))
    assert "run there: python -m datasets.prepare cifar100 --data" in fault


def test_other_data_of_the_same_name(needs: Needs, toy: Dataset) -> None:
    (fault,) = look_around(replace(needs, content_sha256={"toy": "0" * 64}))
    assert f"has the content {toy.manifest.content_sha256[:16]}, the grid was planned with 0000000000000000" in fault
    assert fault.endswith("--replace")


def test_damaged_data(needs: Needs, data_path: Path, tmp_path: Path) -> None:
    shutil.copytree(data_path / "toy", tmp_path / "toy")
    (tmp_path / "toy" / "train" / "manifest.json").write_text("{}")
    (fault,) = look_around(replace(needs, data_path=str(tmp_path)))
    assert "not a manifest of this project" in fault


def test_a_results_folder_of_this_machine_alone(needs: Needs, tmp_path: Path) -> None:
    (fault,) = look_around(replace(needs, results=str(tmp_path / "other")))
    assert fault.startswith(f"--results {tmp_path}/other is not the driver's folder; give one that all machines share")
    assert not (tmp_path / "other").exists()


def test_a_results_folder_that_cannot_be_written(
    needs: Needs, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Storage, path: str, content: bytes, *, replace: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Storage, "_write", refuse)
    (fault,) = look_around(needs)
    assert f"--results {storage.uri} cannot be used" in fault and "Permission denied" in fault


def test_another_version_of_the_code(needs: Needs) -> None:
    (fault,) = look_around(replace(needs, code_sha256="0" * 64))
    assert "another version of this project is installed in" in fault


def test_weights_are_compared_by_content(needs: Needs, tmp_path: Path) -> None:
    state = {"weight": torch.ones(3)}
    save_file(state, tmp_path / "own.safetensors")
    init = InitSpec(kind="file", source="own", sha256=tensors_sha256(state), checkpoint=None, surgery=())
    here = replace(needs, weights=(init,), weights_path=str(tmp_path))
    assert look_around(here) == []
    (absent,) = look_around(replace(here, weights_path=str(tmp_path / "none")))
    assert absent.startswith("weights own: ") and "holds no own.safetensors" in absent
    (other,) = look_around(replace(here, weights=(init.model_copy(update={"sha256": "0" * 64}),)))
    assert "the run was planned with 0000000000000000" in other


@pytest.mark.parametrize(
    ("has", "on_gpus", "may"),
    [
        ({"CPU": 2.0}, False, True),
        ({"CPU": 1.0}, False, False),
        ({"CPU": 8.0}, True, False),
        ({"CPU": 8.0, "GPU": 1.0}, True, True),
        ({}, False, False),
    ],
)
def test_only_machines_that_may_train_are_asked(has: dict[str, float], on_gpus: bool, may: bool) -> None:
    assert _may_train(has, exec_spec(Path("data"), cpu_threads=2), on_gpus) is may


def test_a_machine_without_the_code_is_told_what_to_install() -> None:
    from ray.exceptions import RaySystemError

    text = _not_runnable(RaySystemError("No module named 'tuner'"))
    assert "No module named 'tuner'" in text and "pip install -r requirements.lock" in text
