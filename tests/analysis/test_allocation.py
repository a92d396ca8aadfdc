"""Which seeds decide most: planted evidence with one block that is decided and one that is open."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from published_store import commit_answers, from_correct
from toy import made_up_from

from analysis import allocation
from analysis.allocation import LEAST_SEEDS, MOST_LOOKS, choose, next_seeds
from analysis.gates import read_evidence
from analysis.hypotheses import judge
from analysis.load import load_results
from analysis.power import main
from analysis.registration import registration
from analysis.verdicts import BlockVerdict
from trainable.storage import Storage
from tuner.grid import Selection, load_grid
from tuner.ledger import survey, write_manifest

IMAGES = 2000


def write(storage: Storage, root: Path, seeds: dict[str, tuple[int, ...]], gain: dict[str, float]) -> None:
    """The rows of grid `demo` with and without CutMix: the ResNet gains by it as said for each kind of initial weights,
    the ViT nothing. `seeds` by kind."""
    shared = np.random.default_rng(0).random(IMAGES)
    every = load_grid(root / "experiments.yaml", "demo", Selection(seeds=(1, 2, 3, 4, 5)))
    for run in every.runs:
        kind = run.axes["pretrained"]
        if run.label.startswith("parent") or run.axes["mix"] == "mixup" or run.spec.seed not in seeds[kind]:
            continue
        helped = run.axes["model"] == "small_resnet" and run.axes["mix"] == "cutmix"
        rng = np.random.default_rng(made_up_from(run.spec))
        share = 0.6 + (gain[kind] if helped else 0.0) + rng.normal(0, 0.004)
        correct = 0.9 * shared + 0.1 * rng.random(IMAGES) < share
        commit_answers(storage, run.spec, {"final": from_correct(correct, 5, rng)})
    own = load_grid(
        root / "experiments.yaml", "demo", Selection(seeds=tuple(sorted({*seeds["true"], *seeds["false"]})))
    )
    write_manifest(storage, own, survey(storage, own), [], {})


def asked(storage: Storage, claim: str = "H1") -> dict[str, object]:
    results = load_results(storage, "demo")
    return next_seeds(storage, results, read_evidence(storage, results), registration(), claim).as_json()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Storage:
    """Three seeds: scratch gains 10 points, pretrained about as much as only one look would show."""
    storage = Storage(str(tmp_path_factory.mktemp("open")))
    write(storage, root, {"false": (1, 2, 3), "true": (1, 2, 3)}, {"false": 0.1, "true": 0.0225})
    return storage


def test_only_cells_of_open_blocks_get_seeds(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "demo", "--results", store.uri, "--next", "H1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["is_pilot"], found["level"]) == ("open", False, 0.05 / MOST_LOOKS)
    decided, open_ = found["lines"]
    assert decided.startswith("γ_C scratch: SUPPORTED +") and decided.endswith("3 seeds a cell, decided")
    assert open_.startswith("γ_C pretrained: INCONCLUSIVE ") and open_.endswith("3 seeds a cell, open")
    assert len(found["picks"]) == 4
    assert {pick["label"] for pick in found["picks"]} == {
        f"{model}-pre-{arm}" for model in ("resnet", "vit") for arm in ("default", "cutmix")
    }
    assert {pick["seed"] for pick in found["picks"]} == {4}, "after the highest there is"
    assert main(["--grid", "demo", "--results", store.uri, "--next", "H1"]) == 0
    assert "next: resnet-pre-cutmix with seed 4, about " in capsys.readouterr().out


def test_a_look_judges_more_strictly_than_the_table(store: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gain between the two levels is SUPPORTED in the table, and open for a look; were there but one look, decided."""
    results = load_results(store, "demo")
    nominal = judge(results, read_evidence(store, results), registration(), with_scales=False)
    finding = next(one for one in nominal.of("gamma_cutmix") if one.block["pretrained"] == "true")
    assert finding.verdict is BlockVerdict.SUPPORTED and finding.p_holm is not None
    assert 0.05 / MOST_LOOKS < finding.p_holm < 0.05
    assert asked(store)["state"] == "open"
    monkeypatch.setattr(allocation, "MOST_LOOKS", 1)
    found = asked(store)
    assert (found["state"], found["verdict"], found["picks"]) == ("settled", "SUPPORTED", ())


def test_few_seeds_are_filled_up_and_are_no_look(tmp_path: Path, root: Path) -> None:
    storage = Storage(str(tmp_path))
    write(storage, root, {"false": (1,), "true": (1,)}, {"false": 0.1, "true": 0.1})
    found = asked(storage)
    assert (found["is_pilot"], found["state"]) == (True, "open")
    picks = found["picks"]
    assert isinstance(picks, tuple | list) and len(picks) == 8 * (LEAST_SEEDS - 1)
    assert {pick["seed"] for pick in picks} == {2, 3}


def test_blocks_that_cannot_be_estimated_are_stuck(tmp_path: Path, root: Path) -> None:
    storage = Storage(str(tmp_path))
    write(storage, root, {"false": (1, 2, 3), "true": ()}, {"false": 0.1, "true": 0.1})
    found = asked(storage)
    assert (found["state"], found["picks"]) == ("stuck", ())
    assert "NOT ESTIMABLE: resnet-pre-cutmix: not run" in str(found["lines"])


def test_the_next_seed_goes_where_it_takes_most_variance_an_hour(store: Storage) -> None:
    results = load_results(store, "demo")
    judgement = judge(results, read_evidence(store, results), registration(), with_scales=False)
    open_ = [one for one in judgement.of("gamma_cutmix") if one.block["pretrained"] == "true"]
    labels = list(open_[0].labels)
    even = choose(open_, dict.fromkeys(labels, 1.0))
    assert sorted(even) == sorted(labels), "equal weights, seeds and hours: one seed each"
    cheap = choose(open_, {**dict.fromkeys(labels, 1.0), labels[2]: 0.5})
    assert cheap[0] == labels[2] and cheap.count(labels[2]) == 2, "half the price: 1/3-1/4, then 1/4-1/5, before others"
    dear = choose(open_, {**dict.fromkeys(labels, 1.0), labels[0]: 4.0})
    assert labels[0] not in dear


def test_unknown_claims_name_the_known(store: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--grid", "demo", "--results", store.uri, "--next", "H7"]) == 2
    assert '--next: "H7" is not one of H1, H2, Main, H3' in capsys.readouterr().err
    assert main(["--grid", "demo", "--results", store.uri, "--json"]) == 2
    assert "--json goes with --next CLAIM" in capsys.readouterr().err
