"""A grid on machines: devices, shares, what is probed, what is predicted and how far off it was. No Ray process."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainable import records
from trainable.costs import CostRecord, shape_of, write_cost
from trainable.storage import Storage
from tuner.facts import LocalFacts
from tuner.grid import Grid, Selection, load_grid
from tuner.ledger import survey
from tuner.plan import Plan, make_plan, prediction_errors
from tuner.resources import GIB, Node, ResourceError
from tuner.summary import print_plan

CPU = Node(cpus=2, gpus=0, memory_bytes=64 * GIB)
LOGICAL = Node(cpus=8, gpus=1, memory_bytes=64 * GIB)
CARD = Node(cpus=8, gpus=1, memory_bytes=64 * GIB, gpu_memory_bytes=24 * GIB, gpu_name="a card")


@pytest.fixture(scope="module")
def facts(data_path: Path) -> LocalFacts:
    return LocalFacts(data_path, None, download=False)


@pytest.fixture(scope="module")
def demo(root: Path, facts: LocalFacts) -> Grid:
    return load_grid(root / "experiments.yaml", "demo", Selection(seeds=(1, 2)), facts)


def plan(demo: Grid, storage: Storage, facts: LocalFacts, node: Node, **changes: Any) -> Plan:
    settings: dict[str, Any] = {"cpus": 1, "gpu_share": None, "device": "auto", **changes}
    return make_plan(demo, survey(storage, demo), storage, facts, [node], **settings)


def measured(storage: Storage, grid: Grid, **changes: Any) -> None:
    """One record for every shape of the grid."""
    for shape, run in {shape_of(run.spec): run for run in grid.runs}.items():
        values: dict[str, Any] = {
            "shape": shape,
            "run_id": run.run_id,
            "attempt_id": "20260101T000000-probe",
            "source": "probe",
            "device": "cuda",
            "device_name": "a card",
            "threads": 1,
            "gpu_fraction": 1.0,
            "seconds_per_step": 0.1,
            "seconds_per_evaluated_image": 0.001,
            "setup_s": None,
            "peak_memory_bytes": 4 * GIB,
        }
        write_cost(storage, CostRecord(**{**values, **changes}))


def test_a_share_follows_from_what_a_probe_measured(demo: Grid, storage: Storage, facts: LocalFacts) -> None:
    guessed = plan(demo, storage, facts, CARD)
    probed = guessed.to_probe(list(demo.runs))
    shapes = {shape_of(run.spec) for run in demo.runs}
    assert {shape_of(run.spec) for run in probed} == shapes and len(probed) == len(shapes)
    assert guessed.resources.probed(probed[0].run_id, guessed.costs).share == 1.0, "a guess gets a whole card"
    measured(storage, demo)
    known = plan(demo, storage, facts, CARD)
    assert known.to_probe(list(demo.runs)) == []
    assert {known.resources.bundle(run.run_id).share for run in demo.runs} == {0.25}
    assert known.resources.probed(probed[0].run_id, known.costs).share == 0.25
    assert {entry["basis"] for entry in known.predicted().values()} == {"measured"}


@pytest.mark.parametrize("cards", [1, 3, 8, 40])
def test_of_the_shares_that_hold_a_run_the_one_that_ends_soonest_is_kept(
    cards: int, demo: Grid, storage: Storage, facts: LocalFacts
) -> None:
    """No share that a person could give would have ended sooner in the simulation, unless it does not hold the runs."""
    measured(storage, demo, gpu_fraction=1.0)
    node = replace(CARD, gpus=float(cards), cpus=64.0)
    auto = plan(demo, storage, facts, node)
    shares = {auto.resources.bundle(run.run_id).share for run in demo.runs}
    assert min(shares) >= 0.25 - 1e-4 and (shares == {1.0} or cards < 40)
    for given in (1.0, 0.5, 0.3333, 0.25):
        assert auto.schedule.makespan_s <= plan(demo, storage, facts, node, gpu_share=given).schedule.makespan_s + 1e-6


def test_only_shares_that_rest_on_a_guess_are_probed(demo: Grid, storage: Storage, facts: LocalFacts) -> None:
    for node, share in ((CPU, None), (LOGICAL, None), (CARD, 0.5)):
        assert plan(demo, storage, facts, node, gpu_share=share).to_probe(list(demo.runs)) == []


def test_the_device_decides_what_auto_means(demo: Grid, storage: Storage, facts: LocalFacts) -> None:
    def share(node: Node, **changes: Any) -> float:
        one = plan(demo, storage, facts, node, **changes)
        return one.resources.bundle(demo.runs[0].run_id).share

    assert share(CPU) == 0.0 and share(LOGICAL) == 1.0
    assert share(LOGICAL, device="cpu") == 0.0, "cards are left to those that use them"
    assert share(LOGICAL, device="cpu", gpu_share=0.25) == 0.25
    assert plan(demo, storage, facts, CARD, device="cpu").device.kind == "cpu"
    with pytest.raises(ResourceError, match=r"--device cuda: the cluster has no GPU; choose --device cpu, or join one"):
        share(CPU, device="cuda")
    with pytest.raises(ResourceError, match=r"--device cuda: a trial has no share of a GPU; raise --gpu-share"):
        share(LOGICAL, device="cuda", gpu_share=0.0)


def test_the_plan_prices_all_that_is_not_done(demo: Grid, storage: Storage, facts: LocalFacts) -> None:
    one = plan(demo, storage, facts, CPU)
    assert set(one.order().values()) == set(range(1, len(demo.runs) + 1))
    assert one.gpu_hours() == 0 and one.core_hours() == pytest.approx(sum(one.seconds.values()) / 3600)
    assert one.schedule.makespan_s >= one.schedule.lower_bound_s >= sum(one.seconds.values()) / 2


def test_the_error_is_of_runs_that_one_attempt_did_since_then(demo: Grid, storage: Storage) -> None:
    began = datetime.now(UTC) - timedelta(seconds=1)
    whole, twice, failed = (run.run_id for run in demo.runs[:3])
    for run_id, attempt, outcome in (
        (whole, "a1", "done"),
        (twice, "b1", "done"),
        (twice, "b2", "done"),
        (failed, "c1", "failed"),
    ):
        records.start_attempt(storage, run_id, attempt, {})
        records.end_attempt(storage, run_id, attempt, outcome, None)
    measured(storage, demo, attempt_id="a1", peak_memory_bytes=3 * GIB)
    predicted = {
        run_id: {"seconds": 10.0, "memory_bytes": 2.0 * GIB, "basis": "model"} for run_id in (whole, twice, failed)
    }
    (error,) = prediction_errors(storage, predicted, began)
    assert (error.run_id, error.basis, error.memory) == (whole, "model", 1.5) and 0 <= error.seconds < 1
    assert prediction_errors(storage, predicted, datetime.now(UTC)) == []


@pytest.mark.parametrize(("width", "shown", "dropped"), [(60, "share", "steps"), (80, "steps", "id"), (140, "id", "-")])
def test_a_narrow_terminal_loses_columns_and_no_digits(
    demo: Grid, storage: Storage, facts: LocalFacts, width: int, shown: str, dropped: str
) -> None:
    sink = io.StringIO()
    print_plan(demo, survey(storage, demo), plan(demo, storage, facts, CPU), Console(file=sink, width=width))
    head, *lines = sink.getvalue().splitlines()[1:]
    assert "\N{HORIZONTAL ELLIPSIS}" not in sink.getvalue()
    assert shown in head.split() and dropped not in head.split()
    assert all(len(line) <= width for line in lines[: len(demo.runs)])
    assert "makespan" in sink.getvalue()
