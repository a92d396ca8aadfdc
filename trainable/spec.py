"""What a run is (`RunSpec`, hashed) and how it is executed (`ExecSpec`, not hashed).

A run's id is the SHA-256 (first 16 hex) of the canonical JSON of its whole resolved `RunSpec`, its parent's id
included. Same id, same run, done once. A default that changes, a field that is added or a numeric fix raises
`SPEC_VERSION`, never silently the meaning of an old id.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, field_validator, model_validator

from datasets.spec import AugmentSpec, DataSpec, Spec
from trainable.models import MODELS, nearest

SPEC_VERSION = 1
EvalName = Literal["final", "best_on_val", "best_on_test"]
Surgery = Literal["new_head", "resize_positions"]


class ModelSpec(Spec):
    """The network. Its image size and number of classes follow from the data."""

    name: str
    """A name of the table in `trainable/models`."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f'"{name}" is not one of {", ".join(MODELS)}{nearest(name, MODELS)}')
        return name


class InitSpec(Spec):
    """Where the initial weights come from."""

    kind: Literal["scratch", "hub", "file", "parent"]
    """Random, a timm tag on the hub (or its file in `--weights`), a file in `--weights`, or another run."""
    source: str | None
    """The timm tag, the file's name, or the parent's run id; null for scratch. (In YAML: the parent row's label.)"""
    sha256: str | None
    """SHA-256 (hex) over the initial tensors of a hub or file source; null until they are at hand, and otherwise."""
    checkpoint: Literal["last", "best_on_test", "best_on_val"] | None
    """Which of the parent's checkpoints; null exactly when kind is not parent."""
    surgery: tuple[Surgery, ...]
    """Changes to the loaded weights, in order: see `trainable/surgery.py`."""

    @model_validator(mode="after")
    def _fields_fit_the_kind(self) -> InitSpec:
        if (self.kind == "scratch") != (self.source is None):
            raise ValueError(f"source must be null for scratch and a name else, got {self.kind} with {self.source}")
        if (self.kind == "parent") != (self.checkpoint is not None):
            raise ValueError("checkpoint must name the parent's checkpoint for kind parent, and be null otherwise")
        if self.kind in ("scratch", "parent") and self.sha256 is not None:
            raise ValueError(f"sha256 must be null for kind {self.kind}")
        if self.kind == "scratch" and self.surgery:
            raise ValueError("surgery must be empty for scratch: there is nothing to operate on")
        return self


class OptimSpec(Spec):
    """Optimiser, learning rate and arithmetic."""

    name: Literal["adam", "adamw", "sgd"]
    lr: float = Field(gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] | None
    """Adam's decay rates; null exactly for sgd."""
    eps: float | None
    """Adam's epsilon; null exactly for sgd."""
    momentum: float | None = Field(ge=0, lt=1)
    """SGD's momentum; null exactly for adam and adamw."""
    weight_decay: float = Field(ge=0)
    """L2 penalty for adam and sgd, decoupled for adamw; on all parameters."""
    schedule: Literal["constant", "cosine"]
    """cosine: from lr to min_lr over the whole budget."""
    schedule_per: Literal["epoch", "step"]
    """How often the schedule moves."""
    min_lr: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    """Linear rise from lr / warmup_steps over the first steps, multiplied onto the schedule."""
    precision: Literal["float32", "bfloat16"]
    """bfloat16: autocast of the forward and backward pass; weights stay float32."""

    @model_validator(mode="after")
    def _fields_fit_the_optimiser(self) -> OptimSpec:
        adam = self.name != "sgd"
        if adam != (self.betas is not None) or adam != (self.eps is not None) or adam == (self.momentum is not None):
            raise ValueError("adam and adamw take betas and eps, momentum null; sgd takes momentum, the others null")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must not exceed lr, got {self.min_lr} over {self.lr}")
        return self


class BudgetSpec(Spec):
    """How long to train: exactly one of epochs and steps."""

    epochs: int | None = Field(ge=1)
    steps: int | None = Field(ge=1)
    batch_size: int = Field(ge=1)
    """Images a step; the short last batch of an epoch is kept."""

    @model_validator(mode="after")
    def _one_duration(self) -> BudgetSpec:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("exactly one of epochs and steps must be a number, the other null")
        return self


class EvaluateSpec(Spec):
    """When and on what to evaluate. The evaluation after the last step is always made and is called final."""

    every_epochs: int | None = Field(ge=1)
    every_steps: int | None = Field(ge=1)
    batch_size: int = Field(ge=1)
    select: tuple[Literal["best_on_val", "best_on_test"], ...]
    """Checkpoints to keep besides the final one: of the evaluation with strictly highest top-1 on that split."""

    @model_validator(mode="after")
    def _one_interval(self) -> EvaluateSpec:
        if (self.every_epochs is None) == (self.every_steps is None):
            raise ValueError("exactly one of every_epochs and every_steps must be a number, the other null")
        if len(set(self.select)) != len(self.select):
            raise ValueError(f"select names a checkpoint twice: {', '.join(self.select)}")
        return self


class RunSpec(Spec):
    """Everything that may change a number of one training."""

    data: DataSpec
    augment: AugmentSpec
    model: ModelSpec
    init: InitSpec
    optim: OptimSpec
    budget: BudgetSpec
    evaluate: EvaluateSpec
    seed: int = Field(ge=0, lt=2**63)
    """Of the initial weights, the order of images, augmentation and the model's own randomness."""
    version: Literal[1]
    """SPEC_VERSION of the code that gives this spec its meaning."""

    @model_validator(mode="after")
    def _parts_fit(self) -> RunSpec:
        held_out = self.data.val_fraction > 0
        if ("best_on_val" in self.evaluate.select or self.init.checkpoint == "best_on_val") and not held_out:
            raise ValueError("best_on_val needs a hold-out: set data.val_fraction above 0, or leave best_on_val out")
        crop = self.augment.train_crop
        if crop is not None and crop > self.data.image_size + 2 * self.augment.pad_crop:
            raise ValueError(
                f"augment.train_crop: {crop} pixels do not fit into images of {self.data.image_size} padded by "
                f"{self.augment.pad_crop}"
            )
        return self

    def canonical(self) -> str:
        """The one JSON text of this spec: keys sorted, no white space, floats in shortest form."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def run_id(self) -> str:
        """16 hex digits; equal exactly when the canonical texts are."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()[:16]

    @property
    def eval_names(self) -> tuple[EvalName, ...]:
        """The evaluations whose predictions are stored, `final` first."""
        return ("final", *self.evaluate.select)

    def unresolved(self) -> str | None:
        """Why this spec cannot run yet; None when everything that it names by hash is known."""
        if self.data.content_sha256 is None:
            return f"data.content_sha256: {self.data.dataset} is not prepared"
        if self.init.kind in ("hub", "file") and self.init.sha256 is None:
            return f"init.sha256: the weights {self.init.source} are not at hand"
        return None


class ExecSpec(Spec):
    """How and where a run is executed; must not change what it means."""

    device: Literal["auto", "cpu", "cuda"]
    data_path: str
    """Folder of the prepared data on the machine that trains."""
    weights_path: str | None
    """Folder of local weight files; null looks on the hub only."""
    cpu_threads: int = Field(ge=1)
    gpu_fraction: float = Field(ge=0)
    """Share of one GPU's memory this run may take (or a whole number of GPUs); 0 for CPU."""
    save_every_s: float = Field(gt=0)
    """Seconds between checkpoints; evaluations that improve a best checkpoint do not wait for it."""
