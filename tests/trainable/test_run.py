"""A run in progress: it learns, keeps what its spec says, and says why it cannot go on."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import MIXUP, finished, opened
from toy import exec_spec, run_spec

from datasets.store import Dataset, open_dataset
from trainable.checkpoint import CheckpointError, RunFolder
from trainable.loop import NonFiniteLoss, mixed_cross_entropy
from trainable.run import SpecError, open_run
from trainable.storage import Storage
from trainable.surgery import WeightsError
from trainable.tables import AttemptInfo

pytestmark = pytest.mark.usefixtures("no_garbage")


@pytest.fixture
def known(toy: Dataset) -> dict[str, Any]:
    return {"data.content_sha256": toy.manifest.content_sha256}


def test_it_learns(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = finished(
        opened(storage, data_path, toy, {"model.name": "small_resnet", "budget.epochs": 8, "optim.lr": 3e-3})
    )
    losses = [row["loss_nats"] for row in run.position.rows if row["split"] == "train"]
    tests = [row["top1"] for row in run.position.rows if row["split"] == "test"]
    assert losses[-1] < 0.5 * losses[0] and tests[-1] > 0.8
    run.close()


def test_advance_returns_the_rows_of_one_evaluation(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {})
    rows = run.advance()
    assert [(row["split"], row["eval_index"], row["step"], row["epoch"]) for row in rows] == [
        ("train", 0, 4, 1.0),
        ("test", 0, 4, 1.0),
    ]
    assert rows[0]["num_images"] == 60 and rows[1]["num_images"] == 30
    assert [row["eval_index"] for row in run.advance()] == [1, 1]
    assert not run.done and run.progress == 2 / 3
    run.close()


def test_advance_keeps_to_its_time(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {})
    assert run.advance(0.0) == [] and run.position.step == 1
    assert run.advance(0.0) == [] and run.position.step == 2
    run.close()


def test_a_model_that_ends_in_no_numbers_fails(
    storage: Storage, data_path: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very last step writes weights that no loss has seen."""
    run = opened(storage, data_path, toy, {})
    step = run.loop.optimizer.step

    def last_step() -> None:
        step()
        if run.position.step == run.loop.total - 1:
            with torch.no_grad():
                next(run.loop.model.parameters()).fill_(math.nan)

    monkeypatch.setattr(run.loop.optimizer, "step", last_step)
    with pytest.raises(NonFiniteLoss, match=r"the logits of 30 of 30 images of the test split .* at step 12; lower"):
        finished(run)


def test_averages_that_overflow_fail_where_the_loss_does_not_show_it(
    storage: Storage, data_path: Path, toy: Dataset
) -> None:
    """BatchNorm trains by the batch and is evaluated by its averages."""
    run = opened(storage, data_path, toy, {"model.name": "small_resnet", **MIXUP})
    norm = next(module for module in run.loop.model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var.fill_(math.inf)
    norm.running_mean.fill_(math.nan)  # type: ignore[union-attr]
    with pytest.raises(NonFiniteLoss, match=r"the logits of 30 of 30 images of the test split .* at step 4"):
        finished(run)


@pytest.mark.parametrize("fields", [{}, MIXUP, {"model.name": "small_resnet", "optim.precision": "bfloat16"}])
def test_a_loss_that_is_no_number_in_the_last_batch_is_seen(
    fields: dict[str, Any], storage: Storage, data_path: Path, toy: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = opened(storage, data_path, toy, fields)
    forward = run.loop.model.forward

    def poisoned(images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = forward(images)
        return logits * math.nan if run.loop.model.training and run.position.step == 11 else logits

    monkeypatch.setattr(run.loop.model, "forward", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"the loss was not a finite number at step 11 \(epoch 2\.75"):
        finished(run)


def test_logits_beyond_half_precision_stay_finite(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = finished(opened(storage, data_path, toy, {"budget.epochs": 1}))
    run._logits["final"] = run._logits["final"] * np.float32(1e6)
    info = AttemptInfo(attempt_id="1", number=1, history=(), started_at=datetime.now(UTC))
    logits = np.stack(run.finish(info)["logits"].to_pandas()["logits"])
    assert np.isfinite(logits).all() and np.abs(logits).max() == np.finfo(np.float16).max
    run.close()


def test_best_on_test_keeps_the_first_of_equal_epochs(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = finished(opened(storage, data_path, toy, {"budget.epochs": 6}))
    tests = [row["top1"] for row in run.position.rows if row["split"] == "test"]
    assert run.position.best["best_on_test"]["eval_index"] == int(np.argmax(tests))
    assert run.position.best["best_on_test"]["top1"] == max(tests)
    best = (run._logits["best_on_test"].argmax(axis=1) == toy.test.labels).mean()
    assert best == max(tests)


def test_training_accuracy_under_mixing_stands_in_its_own_column(
    storage: Storage, data_path: Path, toy: Dataset
) -> None:
    plain = opened(storage, data_path, toy, {}).advance()[0]
    mixed = opened(storage, data_path, toy, MIXUP).advance()[0]
    assert plain["top1"] is not None and plain["top1_mixed"] is None and plain["mix_lam_mean"] is None
    assert mixed["top1"] is None and 0 <= mixed["top1_mixed"] <= 1 and 0 < mixed["mix_lam_mean"] < 1


def test_loss_is_the_two_weighted_losses() -> None:
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
    a, b, lam = torch.tensor([0, 1]), torch.tensor([2, 0]), torch.tensor([0.7, 0.7])
    log_p = torch.log_softmax(logits, dim=1)
    expected = -(0.7 * (log_p[0, 0] + log_p[1, 1]) + 0.3 * (log_p[0, 2] + log_p[1, 0])) / 2
    assert mixed_cross_entropy(logits, a, b, lam).item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_loss_that_is_no_number_stops_with_its_step(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {"optim.lr": 1e30, "model.name": "small_resnet"})
    with pytest.raises(
        NonFiniteLoss, match=r"not a finite number at step \d+ \(epoch .*, lr 1e\+30\); lower optim\.lr"
    ):
        finished(run)
    run.close()


def test_a_child_starts_from_its_parents_weights(storage: Storage, data_path: Path, toy: Dataset) -> None:
    parent = finished(opened(storage, data_path, toy, {}))
    child = {
        "init.kind": "parent",
        "init.source": parent.spec.run_id,
        "init.checkpoint": "best_on_test",
        "init.surgery": ["new_head"],
        "seed": 5,
    }
    run = opened(storage, data_path, toy, child, parent=parent.spec.run_id)
    best = parent.folder.load("best_on_test").tensors
    state = run.loop.model.state_dict()
    assert all(torch.equal(state[name], best[f"model.{name}"]) for name in state if not name.startswith("head."))
    assert not torch.equal(state["head.weight"], best["model.head.weight"])
    assert run.report["new"] == run.report["dropped"] == ("head.bias", "head.weight")
    assert run.spec.run_id != parent.spec.run_id


def test_a_parent_of_other_classes_is_said(storage: Storage, data_path: Path, toy: Dataset) -> None:
    parent = finished(opened(storage, data_path, toy, {"data.classes": [0, 1]}))
    child = {"init.kind": "parent", "init.source": parent.spec.run_id, "init.checkpoint": "last", "seed": 5}
    with pytest.raises(WeightsError, match=r"head\.weight is \[2, \d+\], the model needs \[3, \d+\].*new_head leaves"):
        opened(storage, data_path, toy, child, parent=parent.spec.run_id)


def test_a_parent_without_weights_is_said(storage: Storage, data_path: Path, toy: Dataset) -> None:
    child = {"init.kind": "parent", "init.source": "a" * 16, "init.checkpoint": "last"}
    with pytest.raises(WeightsError, match=r"parent run a{16} has no checkpoint last .* run the parent"):
        opened(storage, data_path, toy, child, parent="a" * 16)


def test_seeds_give_other_runs(storage: Storage, data_path: Path, toy: Dataset) -> None:
    logits = [finished(opened(storage, data_path, toy, {"seed": seed}))._logits["final"] for seed in (1, 2)]
    assert (logits[0] != logits[1]).any()


def test_smaller_training_crops_are_possible_for_a_cnn(storage: Storage, data_path: Path, toy: Dataset) -> None:
    fields = {"model.name": "small_resnet", "augment.train_crop": 4}
    looked_at = opened(storage, data_path, toy, fields)
    assert next(iter(looked_at.loop.train)).images.shape == (16, 3, 4, 4)
    assert next(iter(looked_at.loop.evaluated["test"])).images.shape == (16, 3, 8, 8)
    assert finished(opened(storage, data_path, toy, fields)).done


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.content_sha256": None}, r"data\.content_sha256: toy is not prepared; a spec must be resolved"),
        ({"data.content_sha256": "0" * 64}, r"planned for 0{16}, the prepared toy is \w{16}; plan anew"),
        ({"data.image_size": 16}, r"data\.image_size: 16 pixels, but toy is prepared at 8"),
        (
            {"model.name": "small_resnet", "data.limit_train": 17},
            r"budget\.batch_size: 17 images in batches of 16 leave a last batch of one image.*BatchNorm",
        ),
        (
            {"model.name": "small_resnet", "model.bn_groups": 2, "data.limit_train": 19},
            r"19 images in batches of 16 leave a last part \(model\.bn_groups 2\) of a batch of one image",
        ),
    ],
)
def test_specs_that_cannot_run_say_why(
    fields: dict[str, Any], message: str, storage: Storage, data_path: Path, toy: Dataset
) -> None:
    with pytest.raises(SpecError, match=message):
        opened(storage, data_path, toy, fields)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a card where there is none")
def test_a_missing_card_is_said(storage: Storage, data_path: Path, toy: Dataset) -> None:
    with pytest.raises(SpecError, match="device: cuda was asked for, but torch sees no CUDA device here"):
        opened(storage, data_path, toy, {}, device="cuda")


def test_predictions_that_contradict_the_curve_are_refused(storage: Storage, data_path: Path, toy: Dataset) -> None:
    run = opened(storage, data_path, toy, {"budget.epochs": 4})
    while run.progress < 1:
        run.advance()
    best = run.position.best["best_on_test"]
    best["step"] = 4
    run.position.rows[1]["top1"] = -1.0
    run.loop.best_weights["best_on_test"] = run.loop.model.state_dict()
    with pytest.raises(
        CheckpointError, match=r"the weights kept as best_on_test give top-1 .* -1\.0000 was seen at step 4"
    ):
        finished(run)


@pytest.mark.slow
def test_resnets_little_brother_learns_cifar100(cifar100_path: Path, tmp_path: Path) -> None:
    """ResNet-18 on 1,000 real CIFAR-100 images: the loss falls and the test beats chance."""
    data = open_dataset(cifar100_path, "cifar100", verify=False)
    fields = {
        "data.dataset": "cifar100",
        "data.content_sha256": data.manifest.content_sha256,
        "data.image_size": 32,
        "data.limit_train": 1000,
        "data.limit_eval": 1000,
        "model.name": "resnet18",
        "budget.epochs": 3,
        "budget.batch_size": 40,
        "evaluate.batch_size": 256,
    }
    spec = run_spec(fields)
    storage = Storage(str(tmp_path / "results"))
    run = finished(open_run(spec, exec_spec(cifar100_path), RunFolder(storage, spec.run_id), data))
    losses = [row["loss_nats"] for row in run.position.rows if row["split"] == "train"]
    tests = [row["top1"] for row in run.position.rows if row["split"] == "test"]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0] - 0.3
    assert tests[-1] > 0.03, "chance is 0.01"
    run.close()
