"""What a run is (`RunSpec`, hashed) and how it is executed (`ExecSpec`, not hashed).

A run's id is the SHA-256 (first 16 hex) of the canonical JSON of its whole resolved `RunSpec`, its parent's id
included. Same id, same run, done once. A numeric fix raises `SPEC_VERSION`, never silently the meaning of an old id. A
field that is added has a default that leaves everything as it was without the field, and is left out of the canonical
text at that value: old ids keep their meaning, and that default can never change.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import Field, field_validator, model_validator

from datasets.spec import AugmentSpec, DataSpec, Spec
from trainable.models import check_name

SPEC_VERSION = 2
EvalName = Literal["final", "best_on_val", "best_on_test"]
Surgery = Literal["new_head", "resize_positions", "small_stem"]


class VitSpec(Spec):
    """A plain vision transformer, field by field: see `trainable/models/vit_native.py`."""

    patch: int = Field(ge=1)
    """Side of a patch in pixels."""
    width: int = Field(ge=4)
    depth: int = Field(ge=1)
    """Blocks of attention and feed-forward."""
    heads: int = Field(ge=1)
    mlp_width: int = Field(ge=1)
    """Of the feed-forward layers."""
    dropout: float = Field(ge=0, lt=1)
    """After both linear layers of the feed-forward."""
    projection_dropout: float = Field(ge=0, lt=1)
    """After the whole of attention."""
    attention_dropout: float = Field(ge=0, lt=1)
    """On the attention weights."""
    norm: Literal["pre", "post"]
    """LayerNorm before each branch, or after each sum."""
    activation: Literal["relu", "gelu"]
    """Of the feed-forward."""
    qkv_bias: bool
    positions: Literal["sincos_sum", "learned"]
    """sincos_sum: fixed, the sinusoid codes of row and column summed over the whole width, none for the class token;
    learned: a table with a row for the class token, drawn from N(0, 1)."""
    head: Literal["mlp", "norm_linear"]
    """mlp: Linear(4 width), GELU, Linear; norm_linear: LayerNorm, Linear."""
    initialisation: Literal["linear", "attention", "attention_clones"]
    """linear: torch's defaults of linear layers throughout; attention: attention as torch's MultiheadAttention begins
    (Xavier-uniform, biases 0); attention_clones: so, and all blocks between two heads alike, as torch's
    TransformerEncoder begins."""
    aux_depths: tuple[int, ...]
    """Further heads after these many blocks; in training their cross entropies are added to the last head's."""
    relative_attention: bool
    """Transformer-XL's relative positions over the sequence, class token at 0."""
    diagonal_mask: bool
    """No token attends to itself."""
    temperature: Literal["none", "log", "vanilla"]
    """A learnt temperature a block: log multiplies the energies by exp(t), t from 0; vanilla divides by tau, from 1."""

    @model_validator(mode="after")
    def _parts_fit(self) -> VitSpec:
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be a multiple of heads and of 4, got width {self.width}, heads {self.heads}")
        if list(self.aux_depths) != sorted(set(self.aux_depths)) or any(
            not 0 < depth < self.depth for depth in self.aux_depths
        ):
            raise ValueError(f"aux_depths must rise and lie within 1..{self.depth - 1}, got {list(self.aux_depths)}")
        return self


class ModelSpec(Spec):
    """The network. Its image size and, unless `num_outputs` says otherwise, its outputs follow from the data."""

    name: str
    """A name of the table in `trainable/models`, `timm/<name>` or `torchvision/<name>`."""
    num_outputs: int | None = Field(default=None, ge=2)
    """Outputs of the head where they are more than the classes. The surplus takes part in the loss of training and is
    left out of every evaluation; null has one output a class."""
    stem: Literal["small"] | None = None
    """small: a ResNet's first convolution becomes 3x3, stride 1, with bias, and its max-pool goes."""
    group_norm: int | None = Field(default=None, ge=1)
    """Every BatchNorm becomes a GroupNorm of this many groups."""
    bn_groups: int = Field(default=1, ge=1)
    """In training, BatchNorm normalises this many equal parts of a batch apart; its running statistics follow the first
    part (as one process on several GPUs did)."""
    input_norm: Literal["none", "scalar", "channel"] = "none"
    """Normalise the input by running statistics, one for all pixels or one a channel: see `RunningNorm`."""
    mixstyle_depth: int = Field(default=0, ge=0, le=4)
    """MixStyle after this many of a ResNet's stages, from the first: see `MixStyle`."""
    vit: VitSpec | None = None
    """The parts of the model `vit`; null exactly for all others."""

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        check_name(name)
        return name

    @model_validator(mode="after")
    def _fields_fit_the_name(self) -> ModelSpec:
        if (self.name == "vit") != (self.vit is not None):
            raise ValueError(f"vit must be given exactly for the model vit, got {self.name}")
        if self.group_norm is not None and self.bn_groups > 1:
            raise ValueError("group_norm leaves no BatchNorm to split: set bn_groups to 1")
        return self


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
    schedule: Literal["constant", "cosine", "step", "warmup_decay"]
    """cosine: from lr to min_lr over the whole budget; step: times gamma after every step_size; warmup_decay: from
    min_lr linearly to lr over warmup_steps, then linearly back to min_lr at the end (DeepSpeed's WarmupDecayLR)."""
    schedule_per: Literal["epoch", "step"]
    """How often the schedule moves."""
    min_lr: float = Field(ge=0)
    warmup_steps: int = Field(ge=0)
    """Linear rise from lr / warmup_steps over the first steps, multiplied onto the schedule; see also warmup_decay."""
    precision: Literal["float32", "bfloat16"]
    """bfloat16: autocast of the forward and backward pass; weights stay float32."""
    step_size: int | None = Field(default=None, ge=1)
    """Of schedule step, in epochs or steps as schedule_per says; null for the others."""
    gamma: float | None = Field(default=None, gt=0, le=1)
    """Likewise."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Gradients of a larger norm (over all parameters together) are scaled down to it; null clips nothing."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """This share of the training target is spread evenly over all outputs."""
    frozen: tuple[str, ...] = ()
    """Modules that are not trained, by the beginning of their dotted names; `backbone` is all but the classifier."""
    frozen_batchnorm: Literal["update", "fixed"] = "update"
    """BatchNorm of frozen modules: normalises by the batch and goes on to follow it, or stays as it was loaded."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """The rate falls by this factor from layer to layer, from the head down (timm's grouping); null leaves one rate."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Evaluate, select and keep an exponential moving average of the weights (BatchNorm's averages are the last ones);
    null does not."""

    @model_validator(mode="after")
    def _fields_fit_the_optimiser(self) -> OptimSpec:
        adam = self.name != "sgd"
        if adam != (self.betas is not None) or adam != (self.eps is not None) or adam == (self.momentum is not None):
            raise ValueError("adam and adamw take betas and eps, momentum null; sgd takes momentum, the others null")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must not exceed lr, got {self.min_lr} over {self.lr}")
        if (self.schedule == "step") != (self.step_size is not None) or (self.step_size is None) != (
            self.gamma is None
        ):
            raise ValueError(f"step_size and gamma must be numbers for schedule step, null for {self.schedule}")
        if self.schedule == "warmup_decay" and (self.schedule_per != "step" or not self.warmup_steps):
            raise ValueError("schedule warmup_decay moves per step and needs warmup_steps above 0")
        if self.frozen_batchnorm == "fixed" and not self.frozen:
            raise ValueError("frozen_batchnorm fixed needs frozen modules; leave it out where nothing is frozen")
        return self


class BudgetSpec(Spec):
    """How long to train: exactly one of epochs and steps."""

    epochs: int | None = Field(ge=0)
    """0 trains nothing and evaluates the initial weights."""
    steps: int | None = Field(ge=0)
    """Likewise."""
    batch_size: int = Field(ge=1)
    """Images a step; the short last batch of an epoch is kept unless drop_last."""
    drop_last: bool = False
    """Leave the short last batch of an epoch out."""
    compress_to: int | None = Field(default=None, ge=1)
    """Train this many steps instead, with the schedule of the learning rate squeezed in proportion: short runs; null
    trains the whole budget."""

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
    train_first: int | None = Field(default=None, ge=1)
    """Evaluate on the first so many training images, too, as the split `train_<number>`; null does not."""
    train_augmented: bool = False
    """Change those images as training does (drawn once, the same for all evaluations): the third study's slip."""
    record_steps: bool = False
    """Write loss, gradient norm and learning rate of every step into the table `steps`."""

    @model_validator(mode="after")
    def _one_interval(self) -> EvaluateSpec:
        if (self.every_epochs is None) == (self.every_steps is None):
            raise ValueError("exactly one of every_epochs and every_steps must be a number, the other null")
        if len(set(self.select)) != len(self.select):
            raise ValueError(f"select names a checkpoint twice: {', '.join(self.select)}")
        if self.train_augmented and self.train_first is None:
            raise ValueError("train_augmented needs train_first: it says how that split is seen")
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
    version: Literal[2]
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
        """The one JSON text of this spec: keys sorted, no white space, floats in shortest form; fields that have a
        default are there only where they differ from it."""
        values = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False)

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
