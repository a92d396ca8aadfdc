"""What a run reads and how its training images are changed: the two specs that `datasets` owns.

Every field of a spec may change a number, so each is part of a run's identity. A field has either no default, so that
a row of `experiments.yaml` that leaves it out is an error, or is an addition that is off where it is left out: then its
default is the value at which the code is as if the field did not exist. See `trainable.spec.RunSpec.canonical`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, model_validator

Strength = Annotated[float, Field(ge=0.0, le=1.0)]
Hue = Annotated[float, Field(ge=0.0, le=0.5)]


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
    """Side in pixels of the square images that the model gets; without `resize`, that of the prepared images."""
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
    resize: Literal["none", "bilinear", "bicubic", "bicubic_opencv"] = "none"
    """How prepared images become `image_size`: bilinear and bicubic as Pillow does (antialiased when it shrinks),
    bicubic_opencv as OpenCV enlarges (sharper: a = -0.75); none leaves them as they are."""
    jpeg_quality: int | None = Field(default=None, ge=1, le=100)
    """Compress every resized image as JPEG (4:2:0) of this quality and decode it again, as the second study's 224-pixel
    set was; null does not."""

    @model_validator(mode="after")
    def _jpeg_follows_resize(self) -> DataSpec:
        if self.jpeg_quality is not None and self.resize == "none":
            raise ValueError(f"jpeg_quality must be null where resize is none, got {self.jpeg_quality}")
        return self

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
    normalize: Literal["dataset", "imagenet", "none", "given"]
    """Subtract mean and divide by standard deviation: the data's own train statistics, ImageNet's, those of `mean` and
    `std`, or only scale to [0, 1]."""
    train_normalize: Literal["dataset", "imagenet", "none"] | None = None
    """Normalise training images so instead, and test images as `normalize` says: the first study's suspected fault;
    null treats both alike."""
    mean: tuple[float, float, float] | None = None
    """Per channel, of pixels in [0, 1]; null exactly when normalize is not given."""
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Likewise."""
    jitter: tuple[Strength, Strength, Strength, Hue] | None = None
    """Strengths of random brightness, contrast, saturation (factors from 1 - s to 1 + s) and hue (turned by up to this
    part of the circle), in a random order for every image; null jitters nothing."""
    rotate_deg: float = Field(default=0.0, ge=0.0, le=180.0)
    """Turn every image by a random angle of up to this many degrees either way; nearest pixel, black outside."""
    erase_prob: float = Field(default=0.0, ge=0.0, le=1.0)
    """Chance that a random box of an image (2 to 33 % of it, sides in ratio 0.3 to 3.3) is set to 0 once it is
    normalised."""

    @model_validator(mode="after")
    def _alpha_goes_with_mix(self) -> AugmentSpec:
        if (self.mix == "none") != (self.mix_alpha is None):
            raise ValueError(
                f"mix_alpha must be null when mix is none and a number otherwise, got mix {self.mix} with mix_alpha "
                f"{'null' if self.mix_alpha is None else self.mix_alpha}"
            )
        return self

    @model_validator(mode="after")
    def _given_statistics_are_given(self) -> AugmentSpec:
        given = self.normalize == "given"
        if given != (self.mean is not None) or given != (self.std is not None):
            raise ValueError(f"mean and std must be three numbers when normalize is given, null for {self.normalize}")
        return self
