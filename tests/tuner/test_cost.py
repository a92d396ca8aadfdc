"""Predicted cost: counted on the real model, replaced by what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import run_spec

from datasets.store import Dataset
from trainable.costs import CostRecord, shape_of
from trainable.spec import ModelSpec, RunSpec
from tuner.cost import PROBE_RAM, SETUP_S, Cost, Device, Predictor
from tuner.grid import load_grid
from tuner.profile import profile

CPU = Device(kind="cpu", name="a processor", threads=1)
CARD = Device(kind="cuda", name=None, threads=1)


def predict(spec: RunSpec, toy: Dataset | None, device: Device = CPU, **records: list[CostRecord]) -> Cost:
    data = (toy.manifest, 30) if toy else (None, None)
    cost = Predictor(device, records).predict({"run": (spec, *data)})["run"]
    assert cost is not None
    return cost


def record(spec: RunSpec, **changes: Any) -> CostRecord:
    values: dict[str, Any] = {
        "shape": shape_of(spec),
        "run_id": "r",
        "attempt_id": "a",
        "source": "run",
        "device": "cpu",
        "device_name": "a processor",
        "threads": 1,
        "gpu_fraction": 0.0,
        "seconds_per_step": 0.5,
        "seconds_per_evaluated_image": 0.01,
        "setup_s": 3.0,
        "peak_memory_bytes": 10**9,
    }
    return CostRecord(**{**values, **changes})


def test_paper_rows_have_the_studys_steps(root: Path) -> None:
    runs = {run.label: run.spec for run in load_grid(root / "experiments.yaml", "paper").runs}
    cifar, tiny = (predict(runs[label], None) for label in ("Control-1", "Control-3"))
    assert (cifar.steps, tiny.steps) == (50 * 196, 50 * 391)
    assert (cifar.num_parameters, tiny.num_parameters) == (23_712_932, 23_917_832)
    assert tiny.flops > 6 * cifar.flops, "four times the pixels, twice the images"


def test_the_memory_model_is_near_what_the_papers_models_were_measured_to_take(root: Path) -> None:
    """Peak resident memory at batch 256 in float32 on the CPU: measured on an AMD EPYC, 2026-11-23."""
    runs = {run.label: run.spec for run in load_grid(root / "experiments.yaml", "paper").runs}
    for label, gigabytes in {"Control-1": 2.5, "Control-3": 3.7, "Control-2": 2.3, "Control-4": 3.3}.items():
        assert predict(runs[label], None).memory_bytes == pytest.approx(gigabytes * 1e9, rel=0.1), label


def test_limits_classes_and_epochs_shorten(toy: Dataset) -> None:
    def flops(**fields: object) -> float:
        return predict(run_spec({name.replace("__", "."): value for name, value in fields.items()}), toy).flops

    whole = flops()
    assert flops(budget__epochs=6) == pytest.approx(2 * whole, rel=0.1)
    assert flops(data__limit_train=16) < 0.5 * whole
    assert flops(data__classes=[0, 1]) < 0.8 * whole


def test_a_training_step_costs_three_forward_passes(toy: Dataset) -> None:
    """Steps of 16 images of the 60, an evaluation of 30 images after every 4 steps, and one for best_on_test."""
    forward = profile(ModelSpec(name="small_vit"), 3, 8, 8).flops
    cost = predict(run_spec({"budget.epochs": 3}), toy)
    assert cost.steps == 12 and cost.evaluated_images == 4 * 30
    assert cost.flops == pytest.approx(forward * (3 * 3 * 60 + 4 * 30))


def test_held_out_images_are_evaluated_and_not_trained_on(toy: Dataset) -> None:
    """12 of 60 images held out: 3 steps of 16 an epoch, and 30 + 12 images an evaluation, of which there are 3, and 30
    once more for best_on_val."""
    cost = predict(run_spec({"data.val_fraction": 0.2, "evaluate.select": ["best_on_val"]}), toy)
    assert (cost.steps, cost.evaluated_images) == (9, 3 * 42 + 30)


def test_unknown_data_have_no_cost() -> None:
    assert Predictor(CPU, {}).predict({"run": (run_spec(), None, None)}) == {"run": None}


def test_a_measured_run_of_the_same_shape_replaces_the_model(toy: Dataset) -> None:
    spec = run_spec({"budget.epochs": 3})
    cost = predict(spec, toy, **{shape_of(spec): [record(spec)]})
    assert cost.basis == "measured" and cost.memory_bytes == 1e9
    assert cost.seconds == pytest.approx(3.0 + 12 * 0.5 + 120 * 0.01)
    longer = run_spec({"budget.epochs": 6, "optim.lr": 0.1, "seed": 9})
    assert predict(longer, toy, **{shape_of(spec): [record(spec)]}).seconds == pytest.approx(
        3.0 + 24 * 0.5 + 210 * 0.01
    )


def test_whole_runs_count_before_probes_and_the_highest_peak_before_lower_ones(toy: Dataset) -> None:
    spec = run_spec({"budget.epochs": 3})
    probe = record(spec, source="probe", seconds_per_step=9.0, setup_s=None, peak_memory_bytes=2 * 10**9)
    runs = [record(spec), record(spec, peak_memory_bytes=15 * 10**8)]
    cost = predict(spec, toy, **{shape_of(spec): [probe, *runs]})
    assert cost.memory_bytes == 1.5e9 and cost.seconds < 20


def test_a_probe_alone_leaves_room_for_checkpoints_and_tables_in_ram(toy: Dataset) -> None:
    spec = run_spec({"budget.epochs": 3})
    probe = record(spec, source="probe", setup_s=None)
    assert predict(spec, toy, **{shape_of(spec): [probe]}).memory_bytes == pytest.approx(1e9 * PROBE_RAM)
    card = record(spec, source="probe", setup_s=None, device="cuda")
    assert predict(spec, toy, CARD, **{shape_of(spec): [card]}).memory_bytes == 1e9


@pytest.mark.parametrize("other", [{"device": "cuda"}, {"device_name": "another"}, {"threads": 2}])
def test_measurements_on_another_device_do_not_count(toy: Dataset, other: dict[str, Any]) -> None:
    spec = run_spec()
    assert predict(spec, toy, **{shape_of(spec): [record(spec, **other)]}).basis == "model"


def test_other_shapes_scale_the_model(toy: Dataset) -> None:
    """One shape took three times its modelled step: so does every other on this device."""
    known, unknown = run_spec(), run_spec({"model.name": "small_resnet"})
    modelled = predict(known, toy)
    step = (modelled.seconds - SETUP_S) / (modelled.steps + modelled.evaluated_images / 48)
    slow = record(known, seconds_per_step=3 * step, peak_memory_bytes=int(2 * modelled.memory_bytes))
    found = Predictor(CPU, {shape_of(known): [slow]}).predict(
        {"a": (known, toy.manifest, 30), "b": (unknown, toy.manifest, 30)}
    )
    cost, plain = found["b"], predict(unknown, toy)
    assert cost is not None and cost.basis == "scaled model"
    assert cost.seconds - SETUP_S == pytest.approx(3 * (plain.seconds - SETUP_S), rel=0.05)
    assert cost.memory_bytes == pytest.approx(2 * plain.memory_bytes)


def test_runs_that_fill_a_card_slow_each_other_down(root: Path) -> None:
    spec = load_grid(root / "experiments.yaml", "paper").runs[0].spec
    cost = predict(spec, None, CARD)
    assert cost.seconds_at(1.0) == cost.seconds and cost.seconds_at(0.125) == pytest.approx(8 * cost.busy_s)
    half = predict(
        spec.model_copy(update={"optim": spec.optim.model_copy(update={"precision": "bfloat16"})}), None, CARD
    )
    assert half.busy_s == pytest.approx(cost.busy_s / 2) and half.memory_bytes < cost.memory_bytes


def test_a_run_measured_alone_is_slowed_down_by_neighbours_and_one_measured_among_them_is_not(root: Path) -> None:
    """A probe has the whole card; eight such runs at once cannot each be as fast."""
    spec = load_grid(root / "experiments.yaml", "paper").runs[0].spec
    modelled = predict(spec, None, CARD)
    slow = {"device": "cuda", "seconds_per_step": 1.0, "seconds_per_evaluated_image": 1e-4, "setup_s": 0.0}
    alone = predict(spec, None, CARD, **{shape_of(spec): [record(spec, **slow, gpu_fraction=1.0)]})
    assert alone.basis == "measured" and alone.busy_s == pytest.approx(modelled.busy_s)
    assert alone.seconds_at(0.01) == pytest.approx(100 * modelled.busy_s) and alone.seconds_at(0.01) > alone.seconds
    packed = predict(spec, None, CARD, **{shape_of(spec): [record(spec, **slow, gpu_fraction=0.125)]})
    assert packed.seconds_at(0.125) == packed.seconds == alone.seconds
    fast = {**slow, "seconds_per_step": 1e-6, "seconds_per_evaluated_image": 0.0}
    quick = predict(spec, None, CARD, **{shape_of(spec): [record(spec, **fast, gpu_fraction=1.0)]})
    assert quick.busy_s == pytest.approx(quick.seconds), "arithmetic cannot take longer than the whole"


def test_the_shape_ignores_what_does_not_cost() -> None:
    base = shape_of(run_spec())
    same = [{"optim.lr": 0.1}, {"budget.epochs": 9}, {"seed": 5}, {"data.limit_train": 16}]
    other = [
        {"model.name": "small_resnet"},
        {"budget.batch_size": 8},
        {"augment.pad_crop": 1},
        {"optim.precision": "bfloat16"},
    ]
    assert all(shape_of(run_spec(fields)) == base for fields in same)
    assert all(shape_of(run_spec(fields)) != base for fields in other)
    mixed = [{"augment.mix": "mixup", "augment.mix_alpha": alpha} for alpha in (0.2, 1.0)]
    assert len({shape_of(run_spec(fields)) for fields in mixed}) == 1


def test_on_a_card_both_splits_lie_there_whole(toy: Dataset) -> None:
    """As 8-bit pixels, whatever share of them is trained on; a CPU reads them from the map."""
    spec = run_spec({"data.limit_train": 30, "data.limit_eval": 10})
    many = toy.manifest.model_copy(update={"num_images": toy.manifest.num_images + 10_000})
    for device, expected in ((CARD, 10_000 * 3 * 8 * 8), (CPU, 0)):
        few, more = (Predictor(device, {}).predict({"run": (spec, one, 30)})["run"] for one in (toy.manifest, many))
        assert few is not None and more is not None and more.memory_bytes - few.memory_bytes == expected
