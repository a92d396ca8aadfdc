"""From checkpoints to F12, F13, T13 and T14: trained runs of three rows, and everything that may be wrong with them."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import write_manifest_of
from toy import exec_spec, run_spec

from analysis.attribution import hash_order
from analysis.features import main
from analysis.findings import RIGHT_BY_ALL, RIGHT_BY_NONE, RIGHT_BY_SOME, TO_RIGHT, TO_WRONG, choose_images, mean_alike
from analysis.load import load_results
from analysis.representation import centred_gram, cka
from datasets.store import open_dataset
from trainable.attempt import Attempt
from trainable.checkpoint import RunFolder, model_state, save_checkpoint
from trainable.models import build_model
from trainable.spec import ModelSpec, RunSpec
from trainable.storage import Storage

ROWS = {
    "resnet": ("small_resnet", "none", (1, 2)),
    "resnet-cutmix": ("small_resnet", "cutmix", (1, 2)),
    "vit": ("small_vit", "none", (1,)),
}
IMAGES = 110
BLOCK = "digits-pretrained_false"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def specs(data_path: Path) -> dict[str, list[RunSpec]]:
    """Four of the digits' classes, and 140 of their test images."""
    content = open_dataset(data_path, "digits").manifest.content_sha256
    fixed = {
        **{"data.dataset": "digits", "data.content_sha256": content, "data.classes": [3, 5, 6, 9]},
        **{"data.limit_train": 60, "data.limit_eval": 140, "budget.epochs": 2, "evaluate.batch_size": 64},
    }
    return {
        label: [
            run_spec(
                {
                    **{**fixed, "model.name": model, "augment.mix": mix, "seed": seed},
                    "augment.mix_alpha": None if mix == "none" else 1.0,
                }
            )
            for seed in seeds
        ]
        for label, (model, mix, seeds) in ROWS.items()
    }


@pytest.fixture(scope="module")
def trained(data_path: Path, specs: dict[str, list[RunSpec]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of all rows; copied by whoever harms them."""
    root = tmp_path_factory.mktemp("trained") / "results"
    storage = Storage(str(root))
    for runs in specs.values():
        for spec in runs:
            attempt = Attempt(spec, exec_spec(data_path), storage)
            while not attempt.done:
                attempt.advance()
    write_manifest_of(storage, specs)
    return root


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "results"))


def explain(results: Path, data: Path, out: Path, *more: str) -> int:
    given = ["--results", str(results), "--data", str(data), "--out", str(out), "--device", "cpu", "--threads", "1"]
    return main([*given, "--images", str(IMAGES), *more])


@pytest.fixture(scope="module")
def explained(trained: Path, data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of everything. Exit code 0 says that every figure passed the lint."""
    out = tmp_path_factory.mktemp("explained")
    assert explain(trained, data_path, out) == 0
    return out / "made"


def test_figures_tables_and_features_are_written(explained: Path, specs: dict[str, list[RunSpec]]) -> None:
    found = {path.name for path in explained.iterdir()}
    pages = [f"F12-{BLOCK}-gradient", f"F12-{BLOCK}-grad-cam", f"F13-{BLOCK}", f"F13-{BLOCK}-pca", f"F13-{BLOCK}-tsne"]
    assert found == {"features"} | {f"{page}.{kind}" for page in pages for kind in ("svg", "png", "csv", "json")} | {
        f"{table}.{kind}" for table in ("T13", "T14") for kind in ("md", "tex", "html", "csv")
    }
    every = {spec.run_id for runs in specs.values() for spec in runs}
    for page in pages:
        facts = json.loads((explained / f"{page}.json").read_text())
        numbers = (explained / f"{page}.csv").read_bytes()
        assert facts["numbers_sha256"] == hashlib.sha256(numbers).hexdigest() and numbers.count(b"\n") > 1
        assert facts["caption"] and facts["alt"] and facts["figure"] == page[:3]
        assert set(facts["weights_sha256"]) == set(facts["runs"]) <= every
        assert all(path.startswith("predictions/") for path in facts["inputs_sha256"])
        assert len(facts["inputs_sha256"]) == len(facts["runs"])
    shown = {runs[0].run_id for runs in specs.values()}
    assert {path.stem for path in (explained / "features").iterdir()} == shown
    assert set(json.loads((explained / f"F12-{BLOCK}-gradient.json").read_text())["runs"]) == shown
    assert set(json.loads((explained / f"F13-{BLOCK}.json").read_text())["runs"]) == every


def test_features_are_those_of_the_stored_network(
    explained: Path, trained: Path, data_path: Path, specs: dict[str, list[RunSpec]]
) -> None:
    """The head's own weights on the kept features give the stored answers, image by image."""
    storage = Storage(str(trained))
    for runs in specs.values():
        spec = runs[0]
        with np.load(explained / "features" / f"{spec.run_id}.npz", allow_pickle=False) as kept:
            features, ids, labels = kept["features"], kept["sample_ids"], kept["labels"]
        assert len(features) == IMAGES
        assert np.array_equal(labels, open_dataset(data_path, "digits").test.labels[ids])
        state = model_state(RunFolder(storage, spec.run_id).load("last"))
        head = "head" if "vit" in spec.model.name else "fc"
        logits = features @ state[f"{head}.weight"].numpy().T + state[f"{head}.bias"].numpy()
        (run,) = [run for run in load_results(storage, "made").done if run.run_id == spec.run_id]
        at = np.searchsorted(run.final.sample_ids, ids)
        assert np.array_equal(np.array(spec.data.classes)[logits.argmax(axis=1)], run.final.predictions.predicted[at])


def test_likeness_of_arms_is_that_of_their_features(explained: Path, specs: dict[str, list[RunSpec]]) -> None:
    """One seed each: computed anew from the features kept; several: only pairs of different seeds count."""
    found = {
        (row["one"], row["other"]): row["value"]
        for row in rows(explained / f"F13-{BLOCK}.csv")
        if row["quantity"] == "cka" and row["depth"] == "head input"
    }
    grams = {}
    for label, runs in specs.items():
        with np.load(explained / "features" / f"{runs[0].run_id}.npz") as kept:
            grams[label] = centred_gram(kept["features"])
    same = cka(grams["resnet"], grams["vit"])
    assert float(found["resnet", "resnet"]) < 0.99 and found["vit", "vit"] == ""
    assert -0.1 < float(found["resnet", "vit"]) < 1 and float(found["resnet", "vit"]) != pytest.approx(same, abs=1e-4)
    (line,) = [row for row in rows(explained / "T14.csv") if row["run"] == "resnet-cutmix"]
    assert float(line["cka_to_baseline"]) == pytest.approx(float(found["resnet", "resnet-cutmix"]))
    assert float(line["cka_of_seeds"]) == pytest.approx(float(found["resnet-cutmix", "resnet-cutmix"]))
    assert line["num_seeds"] == "2" and 1 < float(line["effective_rank head input"]) < 96


def test_scores_name_every_arm_and_method_it_has(explained: Path) -> None:
    lines = rows(explained / "T13.csv")
    assert [(row["run"], row["method"]) for row in lines] == [
        *(("resnet", "gradient"), ("resnet", "grad-cam")),
        *(("resnet-cutmix", "gradient"), ("resnet-cutmix", "grad-cam")),
        ("vit", "gradient"),
    ]
    for row in lines:
        areas = [float(row[f"{name}{control}"]) for name in ("deletion", "insertion") for control in ("", "_random")]
        assert all(0 < area < 1 for area in areas) and -1 <= float(row["likeness_untrained"]) <= 1
    assert (lines[1]["layer"], lines[1]["blocks_high"]) == ("layer2", "4")


def test_again_it_is_the_same_bytes_and_other_seeds_are_not(
    explained: Path, trained: Path, data_path: Path, tmp_path: Path
) -> None:
    rng = torch.get_rng_state()
    assert explain(trained, data_path, tmp_path) == 0
    assert torch.equal(torch.get_rng_state(), rng)
    assert hashes(tmp_path / "made") == hashes(explained)
    assert explain(trained, data_path, tmp_path / "other", "--seed", "1", "--rows", "vit") == 0
    one, other = (
        {row["sample_id"] for row in rows(path / f"F12-{BLOCK}-gradient.csv")}
        for path in (explained, tmp_path / "other" / "made")
    )
    assert one != other


def test_a_wrong_checkpoint_is_never_explained(
    copied: Path, data_path: Path, specs: dict[str, list[RunSpec]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole, of the right run and step, but of other weights: found by its answers."""
    storage, wrong = Storage(str(copied)), specs["resnet"][0].run_id
    folder = RunFolder(storage, wrong)
    last = folder.load("last")
    state = build_model(ModelSpec(name="small_resnet"), 4, 8).state_dict()
    other = {f"model.{name}": value for name, value in state.items()}
    meta = {key: value for key, value in last.meta.items() if key != "format"}
    save_checkpoint(storage, folder.path("checkpoint/last/state.safetensors"), other, meta)
    assert explain(copied, data_path, tmp_path, "--rows", "resnet,vit", "--images", "40") == 1
    shown = capsys.readouterr()
    assert f"run {wrong}: its last checkpoint answers otherwise than the stored predictions on" in shown.err
    facts = json.loads((tmp_path / "made" / f"F12-{BLOCK}-gradient.json").read_text())
    assert facts["runs"] == [specs["vit"][0].run_id]
    assert wrong not in json.loads((tmp_path / "made" / f"F13-{BLOCK}.json").read_text())["runs"]


def test_what_is_not_at_hand_is_named_and_the_rest_goes_on(
    copied: Path, data_path: Path, specs: dict[str, list[RunSpec]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, cut = specs["resnet"][0].run_id, specs["resnet-cutmix"][1].run_id
    shutil.rmtree(copied / "runs" / gone / "checkpoint")
    path = copied / "runs" / cut / "checkpoint" / "last" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    assert explain(copied, data_path, tmp_path, "--images", "40") == 1
    shown = capsys.readouterr()
    assert shown.out.count(f"run {gone}: ") == 1 and "is not there; its weights were not kept" in shown.out
    assert f"run {cut}: " in shown.err and "not a whole checkpoint" in shown.err
    assert "small_vit: no grad-cam maps: 2 x 2 patches, fewer than 4 x 4 say nothing of where" in shown.out
    facts = json.loads((tmp_path / "made" / f"F12-{BLOCK}-gradient.json").read_text())
    assert specs["resnet"][1].run_id in facts["runs"]  # the next seed is shown instead
    shutil.rmtree(copied / "runs")
    assert explain(copied, data_path, tmp_path / "none") == 2
    assert "nothing of grid made could be looked into" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_data_that_are_not_the_runs_are_refused(
    trained: Path, data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(trained, tmp_path, tmp_path / "out") == 2
    assert "digits is not prepared in" in capsys.readouterr().out
    shutil.copytree(data_path / "toy", tmp_path / "digits")
    assert explain(trained, tmp_path, tmp_path / "out") == 2
    assert "holds other data than those of the run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rows", "vit,resent"], '--rows: "resent" is not one of resnet, resnet-cutmix, vit'),
        (["--images", "3"], "--images: 3 is not within 16 to 5,000"),
        (["--threads", "0"], "--threads: 0 is not 1 or more"),
        (["--seed", "-1"], "--seed: -1 is not 0 or more"),
        (["--grid", "other"], "other"),
    ],
)
def test_what_makes_no_sense_is_refused(
    trained: Path, data_path: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(trained, data_path, tmp_path / "out", *more) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_images_are_of_every_kind() -> None:
    """Two architectures, the baseline first; the hash decides within a kind."""
    right = np.array(
        [
            [1, 1, 0, 1, 0, 1, 0],
            [1, 1, 1, 0, 0, 1, 1],
            [1, 1, 0, 1, 0, 0, 1],
            [1, 1, 0, 1, 0, 0, 0],
        ],
        bool,
    )
    places = [("r", "none"), ("r", "mixup"), ("v", "none"), ("v", "mixup")]
    backwards = np.arange(7)[::-1]
    # image 6 flips to right in one architecture and to wrong in the other, 5 differs between architectures alone
    assert choose_images(right, places, "none", backwards) == [
        (RIGHT_BY_ALL, 1), (RIGHT_BY_ALL, 0), (TO_RIGHT, 2), (TO_WRONG, 3)
    ]  # fmt: skip
    assert choose_images(right, places, None, backwards) == [
        (RIGHT_BY_ALL, 1), (RIGHT_BY_ALL, 0), (RIGHT_BY_SOME, 6), (RIGHT_BY_SOME, 5)
    ]  # fmt: skip
    nobody = np.zeros((2, 7), bool)
    assert choose_images(nobody, places[:2], "none", backwards) == [(RIGHT_BY_NONE, 6), (RIGHT_BY_NONE, 5)]


def test_arms_are_compared_over_different_seeds() -> None:
    pairs = np.array([[1.0, 0.2, 0.9, 0.3], [0.2, 1.0, 0.4, 0.8], [0.9, 0.4, 1.0, 0.5], [0.3, 0.8, 0.5, 1.0]])
    found = mean_alike(pairs, [0, 0, 1, 1], [1, 2, 1, 2], 2)
    np.testing.assert_allclose(found, [[0.2, 0.35], [0.35, 0.5]])
    single = mean_alike(pairs[::2, ::2], [0, 1], [1, 1], 2)
    assert np.isnan(single).tolist() == [[True, False], [False, True]] and single[0, 1] == 0.9


def test_chosen_images_do_not_hang_on_the_grid() -> None:
    ids = np.arange(500)
    assert hash_order(ids, 0, "a" * 64)[:5].tolist() == hash_order(ids, 0, "a" * 64)[:5].tolist()
    assert hash_order(ids, 0, "a" * 64)[:5].tolist() != hash_order(ids, 0, "b" * 64)[:5].tolist()
