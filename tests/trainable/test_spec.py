"""Identity: what changes a number changes the id, what does not is not there; faults name field and mend."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from toy import BASE, VIT, run_spec

from trainable.schemas import TRIALS, spec_columns
from trainable.spec import ExecSpec, RunSpec


def test_the_id_is_the_hash_of_the_canonical_text() -> None:
    import hashlib

    spec = run_spec()
    assert spec.run_id == hashlib.sha256(spec.canonical().encode()).hexdigest()[:16]
    assert json.loads(spec.canonical()) == json.loads(spec.model_dump_json(exclude_defaults=True))
    assert " " not in spec.canonical()


def test_the_canonical_text_round_trips() -> None:
    spec = run_spec({"data.classes": [0, 2], "optim.lr": 3e-4})
    assert RunSpec.model_validate_json(spec.canonical()) == spec


CHANGES = {
    "data.dataset": "other",
    "data.content_sha256": "ab",
    "data.image_size": 16,
    "data.classes": [0, 1],
    "data.val_fraction": 0.1,
    "data.val_seed": 1,
    "data.limit_train": 10,
    "data.limit_eval": 10,
    "data.limit_seed": 1,
    "augment.pad_crop": 4,
    "augment.hflip_prob": 0.5,
    "augment.train_crop": 4,
    "augment.mix_prob": 0.5,
    "augment.mix_scope": "sample",
    "augment.mix_partner": "reverse",
    "augment.normalize": "none",
    "model.name": "small_resnet",
    "optim.name": "adamw",
    "optim.lr": 2e-3,
    "optim.betas": [0.9, 0.99],
    "optim.eps": 1e-7,
    "optim.weight_decay": 0.1,
    "optim.schedule": "constant",
    "optim.schedule_per": "step",
    "optim.min_lr": 1e-5,
    "optim.warmup_steps": 5,
    "optim.precision": "bfloat16",
    "budget.epochs": 4,
    "budget.batch_size": 8,
    "evaluate.every_epochs": 2,
    "evaluate.batch_size": 8,
    "evaluate.select": [],
    "seed": 2,
}


ADDED: dict[str, tuple[object, dict[str, object]]] = {
    "data.resize": ("none", {"data.resize": "bicubic"}),
    "data.jpeg_quality": (None, {"data.resize": "bicubic", "data.jpeg_quality": 90}),
    "augment.train_normalize": (None, {"augment.train_normalize": "none"}),
    "augment.mean": (None, {"augment.normalize": "given", "augment.mean": [0.5] * 3, "augment.std": [0.2] * 3}),
    "augment.std": (None, {"augment.normalize": "given", "augment.mean": [0.5] * 3, "augment.std": [0.3] * 3}),
    "augment.jitter": (None, {"augment.jitter": [0.1, 0.0, 0.0, 0.0]}),
    "augment.rotate_deg": (0.0, {"augment.rotate_deg": 5.0}),
    "augment.erase_prob": (0.0, {"augment.erase_prob": 0.5}),
    "model.num_outputs": (None, {"model.num_outputs": 9}),
    "model.stem": (None, {"model.stem": "small"}),
    "model.group_norm": (None, {"model.group_norm": 2}),
    "model.bn_groups": (1, {"model.bn_groups": 2}),
    "model.input_norm": ("none", {"model.input_norm": "scalar"}),
    "model.mixstyle_depth": (0, {"model.mixstyle_depth": 1}),
    "model.vit": (None, {"model.name": "vit", "model.vit": VIT}),
    "optim.step_size": (None, {"optim.schedule": "step", "optim.step_size": 2, "optim.gamma": 0.1}),
    "optim.gamma": (None, {"optim.schedule": "step", "optim.step_size": 2, "optim.gamma": 0.2}),
    "optim.clip_norm": (None, {"optim.clip_norm": 1.0}),
    "optim.label_smoothing": (0.0, {"optim.label_smoothing": 0.1}),
    "optim.frozen": ((), {"optim.frozen": ["backbone"]}),
    "optim.frozen_batchnorm": ("update", {"optim.frozen": ["backbone"], "optim.frozen_batchnorm": "fixed"}),
    "optim.layer_decay": (None, {"optim.layer_decay": 0.7}),
    "optim.ema_decay": (None, {"optim.ema_decay": 0.99}),
    "budget.drop_last": (False, {"budget.drop_last": True}),
    "budget.compress_to": (None, {"budget.compress_to": 5}),
    "evaluate.train_first": (None, {"evaluate.train_first": 5}),
    "evaluate.train_augmented": (False, {"evaluate.train_first": 5, "evaluate.train_augmented": True}),
    "evaluate.record_steps": (False, {"evaluate.record_steps": True}),
}
"""Fields that came later: the value that leaves everything as it was without them, which can never change, and changes
of which the last is the field's own."""


def fields_of(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields_of(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def test_only_fields_that_came_later_have_a_default_and_it_is_pinned() -> None:
    found = dict(fields_of(RunSpec))
    assert {path: field.default for path, field in found.items() if not field.is_required()} == {
        path: neutral for path, (neutral, _) in ADDED.items()
    }
    assert {path for path, field in found.items() if field.is_required()} == set(BASE)


@pytest.mark.parametrize("path", ADDED)
def test_a_later_field_is_nothing_at_its_default_and_another_run_otherwise(path: str) -> None:
    neutral, changes = ADDED[path]
    plain = run_spec({path: neutral})
    assert plain.canonical() == run_spec().canonical() and f'"{path.rpartition(".")[2]}"' not in plain.canonical()
    without = {name: value for name, value in changes.items() if name != path}
    changed = run_spec(changes)
    assert changed.run_id != plain.run_id
    try:
        assert changed.run_id != run_spec(without).run_id
    except ValidationError:
        assert path in ("augment.mean", "augment.std", "model.vit", "optim.step_size", "optim.gamma")


@pytest.mark.parametrize("path", CHANGES)
def test_every_field_changes_the_id(path: str) -> None:
    assert run_spec({path: CHANGES[path]}).run_id != run_spec().run_id


def test_no_field_was_forgotten() -> None:
    together = {"augment.mix", "augment.mix_alpha", "budget.steps", "evaluate.every_steps", "optim.momentum", "version"}
    assert set(CHANGES) | together | {path for path in BASE if path.startswith("init.")} == set(BASE)


def test_integer_and_float_are_one_number() -> None:
    assert run_spec({"optim.weight_decay": 0}).run_id == run_spec({"optim.weight_decay": 0.0}).run_id


@given(lr=st.floats(1e-6, 10, allow_nan=False))
def test_floats_keep_every_bit(lr: float) -> None:
    assert RunSpec.model_validate_json(run_spec({"optim.lr": lr}).canonical()).optim.lr == lr


def test_devices_paths_and_threads_are_not_part_of_it() -> None:
    assert not set(ExecSpec.model_fields) & set(RunSpec.model_fields)
    text = run_spec().canonical()
    assert not any(f'"{name}"' in text for name in ExecSpec.model_fields)


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        run_spec().seed = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optim.lr": "1e-3"}, "valid number"),
        ({"seed": -1}, "greater than or equal to 0"),
        ({"seed": 1.5}, "valid integer"),
        ({"augment.mix": "mixup"}, "mix_alpha must be null when mix is none and a number otherwise"),
        ({"augment.mix_alpha": 1.0}, "got mix none with mix_alpha 1.0"),
        ({"budget.steps": 5}, "exactly one of epochs and steps"),
        ({"budget.epochs": None}, "exactly one of epochs and steps"),
        ({"evaluate.every_steps": 5}, "exactly one of every_epochs and every_steps"),
        ({"augment.normalize": "given"}, "mean and std must be three numbers when normalize is given, null for given"),
        ({"augment.mean": [0.1, 0.1, 0.1]}, "null for dataset"),
        ({"augment.jitter": [0.1, 0.1, 0.1, 0.6]}, "less than or equal to 0.5"),
        ({"data.jpeg_quality": 90}, "jpeg_quality must be null where resize is none, got 90"),
        ({"model.name": "resnet5"}, "did you mean resnet50?"),
        ({"model.name": "keras/resnet50"}, "timm/<name>, torchvision/<name>"),
        ({"model.name": "timm/../x"}, "is not one of"),
        ({"model.name": "vit"}, "vit must be given exactly for the model vit"),
        ({"model.name": "vit", "model.vit": {**VIT, "heads": 3}}, "width must be a multiple of heads"),
        ({"model.name": "vit", "model.vit": {**VIT, "aux_depths": [2]}}, "aux_depths must rise and lie within 1..1"),
        ({"model.group_norm": 4, "model.bn_groups": 2}, "group_norm leaves no BatchNorm to split"),
        ({"optim.schedule": "step"}, "step_size and gamma must be numbers for schedule step"),
        ({"optim.gamma": 0.1}, "null for cosine"),
        ({"optim.schedule": "warmup_decay"}, "warmup_decay moves per step and needs warmup_steps above 0"),
        ({"optim.frozen_batchnorm": "fixed"}, "needs frozen modules"),
        ({"evaluate.train_augmented": True}, "train_augmented needs train_first"),
        ({"evaluate.select": ["best_on_val"]}, "best_on_val needs a hold-out: set data.val_fraction above 0"),
        ({"evaluate.select": ["best_on_test", "best_on_test"]}, "select names a checkpoint twice"),
        ({"optim.name": "sgd"}, "sgd takes momentum, the others null"),
        ({"optim.min_lr": 1.0}, "min_lr must not exceed lr, got 1.0 over 0.001"),
        ({"model.name": "smal_vit"}, r'"smal_vit" is not one of .*; did you mean small_vit\?'),
        ({"init.source": "x"}, "source must be null for scratch"),
        ({"init.kind": "parent", "init.source": "x"}, "checkpoint must name the parent's checkpoint"),
        ({"init.surgery": ["new_head"]}, "surgery must be empty for scratch"),
        ({"augment.train_crop": 12}, "12 pixels do not fit into images of 8 padded by 0"),
        ({"data.classes": [2, 1]}, "two or more different numbers in rising order"),
        ({"data.dataset": "../x"}, "should match pattern"),
        ({"version": 1}, "Input should be 2"),
        ({"data.colour": 1}, "Extra inputs are not permitted"),
    ],
)
def test_faults_name_the_field_and_what_is_allowed(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        run_spec(fields)


def test_unresolved_says_what_is_missing() -> None:
    assert run_spec().unresolved() == "data.content_sha256: toy is not prepared"
    hub = {"data.content_sha256": "ab", "init.kind": "hub", "init.source": "resnet50.a1_in1k"}
    assert run_spec(hub).unresolved() == "init.sha256: the weights resnet50.a1_in1k are not at hand"
    assert run_spec({**hub, "init.sha256": "cd"}).unresolved() is None


def test_columns_of_trials_say_what_the_spec_says() -> None:
    """Every value once only, so that none can stand for another."""
    fields = {
        "data.dataset": "toy",
        "data.content_sha256": "a" * 64,
        "data.image_size": 48,
        "data.limit_train": 41,
        "data.limit_eval": 42,
        "data.val_fraction": 0.25,
        "augment.mix": "mixup",
        "augment.mix_alpha": 0.7,
        "augment.mix_prob": 0.9,
        "augment.mix_scope": "sample",
        "augment.pad_crop": 3,
        "augment.train_crop": 40,
        "augment.hflip_prob": 0.5,
        "augment.normalize": "imagenet",
        "model.name": "small_resnet",
        "init.kind": "hub",
        "init.source": "tag",
        "init.sha256": "b" * 64,
        "optim.name": "adamw",
        "optim.lr": 0.02,
        "optim.weight_decay": 0.05,
        "optim.schedule": "constant",
        "optim.precision": "bfloat16",
        "budget.batch_size": 17,
    }
    names = {"data.dataset": "dataset", "model.name": "model", "optim.name": "optimizer"}
    names |= {path: path.replace(".", "_") for path in fields if path.startswith("init.")}
    expected = {names.get(path, path.split(".")[1]): value for path, value in fields.items()}
    found = spec_columns(run_spec({**fields, "seed": 19}).model_dump(mode="json"))
    assert found == {**expected, "seed": 19, "spec_version": 2}
    assert found.keys() <= set(TRIALS.names)
