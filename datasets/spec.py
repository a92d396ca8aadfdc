"""What a run reads and how its training images are changed: the two specs that `datasets` owns.

Every field of a spec may change a number, so each is part of a run's identity. A spec has no defaults: what a row of
`experiments.yaml` and its base leave out is an error, never a silent choice.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Spec(BaseModel):
    """A frozen, strictly typed record; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class DataSpec(Spec):
    """Which images a run learns from and is tested on."""

    dataset: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """Name of the prepared data: the folder below `--data`."""
    content_sha256: str | None
    """SHA-256 (hex) over the decoded pixels and labels of both splits; null until the data are at hand or pinned."""
    image_size: int = Field(ge=4, le=1024)
    """Side of the square images in pixels; must be the side of the prepared images."""
    classes: tuple[int, ...] | None
    """The classes to keep, by their number in the data; null keeps all."""
    val_fraction: float = Field(ge=0.0, lt=1.0)
    """Share of every training class that is held out for `best_on_val`; 0 holds nothing out."""
    val_seed: int = Field(ge=0, lt=2**63)
    """Draws the hold-out. Apart from the run's seed, so that all seeds of a row hold out the same images."""
    limit_train: int | None = Field(ge=1)
    """Train on a stratified subset of this many images; null trains on all."""
    limit_eval: int | None = Field(ge=1)
    """Evaluate on a stratified subset of this many images; null evaluates on all."""
    limit_seed: int = Field(ge=0, lt=2**63)
    """Draws the two subsets; the same for all seeds of a row."""

    @model_validator(mode="after")
    def _classes_are_a_set(self) -> DataSpec:
        if self.classes is not None and (len(self.classes) < 2 or list(self.classes) != sorted(set(self.classes))):
            raise ValueError(f"classes must be two or more different numbers in rising order, got {list(self.classes)}")
        return self


class AugmentSpec(Spec):
    """How training images are changed. Test images are only normalised."""

    pad_crop: int = Field(ge=0)
    """Pad by this many black pixels on each side, then cut out a random window; 0 does neither."""
    hflip_prob: float = Field(ge=0.0, le=1.0)
    """Chance that an image is mirrored left to right."""
    train_crop: int | None = Field(ge=4)
    """Side of the random window in pixels; null is the image's own side. Smaller than the image, training and test
    sizes differ: the first study's suspected fault."""
    mix: Literal["none", "mixup", "cutmix", "switch"]
    """Batch mixing; `switch` tosses a fair coin between MixUp and CutMix for every batch (or image, see mix_scope)."""
    mix_alpha: float | None = Field(gt=0.0)
    """lam ~ Beta(alpha, alpha); null exactly when mix is none."""
    mix_prob: float = Field(ge=0.0, le=1.0)
    """Chance that a batch (or image) is mixed at all."""
    mix_scope: Literal["batch", "sample"]
    """One lam, box and coin for the whole batch, or one for every image."""
    mix_partner: Literal["permutation", "reverse"]
    """Whom an image is mixed with: a random permutation of the batch, or the batch reversed (timm's way)."""
    normalize: Literal["dataset", "imagenet", "none"]
    """Subtract mean and divide by standard deviation: the data's own train statistics, ImageNet's, or only scale to
    [0, 1]."""

    @model_validator(mode="after")
    def _alpha_goes_with_mix(self) -> AugmentSpec:
        if (self.mix == "none") != (self.mix_alpha is None):
            raise ValueError(
                f"mix_alpha must be null when mix is none and a number otherwise, got mix {self.mix} with mix_alpha "
                f"{'null' if self.mix_alpha is None else self.mix_alpha}"
            )
        return self
