"""Every registered model and every variant of the studies: forward, backward, copies, state-dict round trip, count."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from study_models import ENERGIES, OC, VIT, VITN, vit
from torch import nn

from trainable.models import MODELS, build_model, check_name, scalars_of
from trainable.spec import ModelSpec
from trainable.surgery import classifier_name

TV18 = "torchvision/resnet18"
COUNTS: dict[str, tuple[ModelSpec, int, int, int]] = {
    "resnet18": (ModelSpec(name="resnet18"), 32, 100, 11_227_812),
    "resnet50": (ModelSpec(name="resnet50"), 32, 100, 23_712_932),  # as the first study's logs print them
    "resnet50 of 64": (ModelSpec(name="resnet50"), 64, 200, 23_917_832),
    "vit_small_patch16_224": (ModelSpec(name="vit_small_patch16_224"), 32, 100, 21_630_436),
    "vit_small_patch16_224 of 64": (ModelSpec(name="vit_small_patch16_224"), 64, 200, 21_673_544),
    "small_resnet": (ModelSpec(name="small_resnet"), 8, 5, 232_197),
    "small_vit": (ModelSpec(name="small_vit"), 8, 5, 203_909),
    "toy_dilated": (ModelSpec(name="toy_dilated", num_outputs=1000, input_norm="scalar"), 32, 100, 61_896),
    # of another library
    "timm's test_vit": (ModelSpec(name="timm/test_vit"), 32, 5, 300_421),
    "timm's test_byobnet": (ModelSpec(name="timm/test_byobnet"), 32, 5, 201_141),
    "torchvision's squeezenet": (ModelSpec(name="torchvision/squeezenet1_1"), 32, 5, 725_061),
    # the second study's
    "002": (ModelSpec(name=TV18), 64, 200, 11_279_112),
    "002 small stem": (ModelSpec(name=TV18, stem="small"), 64, 200, 11_271_496),
    "002 in halves": (ModelSpec(name=TV18, bn_groups=2), 64, 200, 11_279_112),
    # the third study's
    "003": (ModelSpec(name=TV18, num_outputs=1000, input_norm="scalar"), 32, 100, 11_689_512),
    "003 pcnorm": (ModelSpec(name=TV18, num_outputs=1000, input_norm="channel"), 32, 100, 11_689_512),
    "003 gn": (ModelSpec(name=TV18, num_outputs=1000, group_norm=16), 32, 100, 11_689_512),
    "003 ms1": (ModelSpec(name=TV18, num_outputs=1000, mixstyle_depth=1), 32, 100, 11_689_512),
    "003 ms2": (ModelSpec(name=TV18, num_outputs=1000, mixstyle_depth=2), 32, 100, 11_689_512),
    "003 ms3": (ModelSpec(name=TV18, num_outputs=1000, mixstyle_depth=3), 32, 100, 11_689_512),
    "003 tnc": (ModelSpec(name=TV18), 32, 100, 11_227_812),
    "003 resnet34": (ModelSpec(name="torchvision/resnet34", num_outputs=1000), 32, 100, 21_797_672),
    "003 resnet50": (ModelSpec(name="torchvision/resnet50", num_outputs=1000), 32, 100, 25_557_032),
    "vit-12x256-8x8": (ModelSpec(name="vit", num_outputs=1000, vit=vit(VIT), input_norm="scalar"), 32, 100, 10_814_952),
    "vit-aux-3x4x256-8x8": (
        ModelSpec(name="vit", num_outputs=1000, vit=vit(VIT, aux_depths=(4, 8))),
        32,
        100,
        13_391_288,
    ),
    "vit-24x256-8x8": (ModelSpec(name="vit", num_outputs=1000, vit=vit(VIT, depth=24)), 32, 100, 20_292_072),
    **{
        f"vitn {name}": (ModelSpec(name="vit", num_outputs=1000, vit=vit(VITN, **changes)), 32, 100, count)
        for (name, changes), count in zip(
            ENERGIES.items(),
            (10_805_736, 11_598_312, 10_805_736, 10_805_748, 10_805_748, 10_805_748),
            strict=True,
        )
    },
    # the fourth study's
    "004": (ModelSpec(name="vit", vit=vit(OC)), 32, 100, 1_519_636),
    "004 of 10 classes": (ModelSpec(name="vit", vit=vit(OC)), 32, 10, 1_506_586),
}
LARGE: dict[str, tuple[ModelSpec, int, int, int]] = {
    "vit-b-8x8": (
        ModelSpec(name="vit", num_outputs=1000, vit=vit(VIT, width=768, heads=12, mlp_width=3072)),
        32,
        100,
        90_638_824,
    ),
    "004 deit_tiny": (ModelSpec(name="timm/deit_tiny_patch16_224"), 224, 10, 5_526_346),
    "004 vit_b_16": (ModelSpec(name="torchvision/vit_b_16"), 224, 10, 85_806_346),
    "torchvision's maxvit": (ModelSpec(name="torchvision/maxvit_t"), 224, 5, 30_410_184),
    "torchvision's googlenet": (ModelSpec(name="torchvision/googlenet"), 32, 5, 5_605_029),
    "torchvision's regnet": (ModelSpec(name="torchvision/regnet_y_400mf"), 32, 5, 3_905_349),
    "timm's swin": (ModelSpec(name="timm/swin_tiny_patch4_window7_224"), 64, 5, 27_506_879),
}
"""Counted on the meta device only."""
VARIED = (
    "002 small stem",
    "002 in halves",
    "003 pcnorm",
    "003 gn",
    "003 ms3",
    "vit-aux-3x4x256-8x8",
    "vitn ra",
    "vitn dm-lt",
)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def trained(model: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    outputs = model(images)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def test_every_model_has_a_pinned_count() -> None:
    assert set(MODELS) <= {model.name for model, _, _, _ in COUNTS.values()}


@pytest.mark.parametrize("name", COUNTS)
def test_model(name: str) -> None:
    spec, size, classes, expected = COUNTS[name]
    torch.manual_seed(0)
    model = build_model(spec, classes, size)
    assert model.training and count(model) == expected
    twin, images = copy.deepcopy(model), torch.randn(2, 3, size, size)
    torch.manual_seed(3)
    logits = trained(model, images)
    assert len(logits) == (1 + len(spec.vit.aux_depths) if spec.vit else 1)
    for one in logits:
        assert one.shape == (2, spec.num_outputs or classes) and one.dtype == torch.float32
    torch.stack([one.square().mean() for one in logits]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    torch.manual_seed(3)  # a copy, as a moving average of the weights is, draws the same and follows its own images
    assert torch.equal(trained(twin, images)[0], logits[0])
    for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()

    torch.manual_seed(1)
    other = build_model(spec, classes, size)
    assert not torch.equal(model.eval()(images), other.eval()(images))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(images), other(images))
    assert classifier_name(model) == classifier_name(other)


@pytest.mark.parametrize("name", ["toy_dilated", *VARIED, *LARGE])
def test_every_model_can_be_counted_on_the_meta_device(name: str) -> None:
    spec, size, classes, expected = {**COUNTS, **LARGE}[name]
    before = torch.get_rng_state()
    with torch.device("meta"):
        model = build_model(spec, classes, size)
        logits = trained(model, torch.empty(4, 3, size, size))
    assert count(model) == expected and logits[0].is_meta and logits[0].shape == (4, spec.num_outputs or classes)
    if "regnet" not in spec.name:  # which is built off that device
        assert torch.equal(torch.get_rng_state(), before), "counting draws nothing"


def test_initial_weights_follow_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build_model(ModelSpec(name="small_vit"), 3, 8).state_dict()["pos_embed"])
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_vit", "timm/test_byobnet"])
def test_trying_a_librarys_model_changes_nothing_of_it(name: str) -> None:
    """One image was passed through: no statistics moved, and the library's own constructor draws the same weights."""
    import timm
    import torchvision

    library, _, own = name.partition("/")
    create: Any = timm.create_model if library == "timm" else torchvision.models.get_model
    torch.manual_seed(0)
    ours = build_model(ModelSpec(name=name), 5, 32)
    torch.manual_seed(0)
    theirs = create(own, num_classes=5, **({"img_size": 32} if own == "test_vit" else {}))
    assert all(module.training for module in ours.modules())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


def test_timms_transformers_take_the_images_size() -> None:
    assert build_model(ModelSpec(name="timm/test_vit"), 5, 32).state_dict()["pos_embed"].shape[1] == 1 + (32 // 16) ** 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("small_resnet", "fc"),
        ("small_vit", "head"),
        ("toy_dilated", "head"),
        ("torchvision/resnet18", "fc"),
        ("torchvision/vit_b_16", "heads.head"),
        ("torchvision/vgg11", "classifier.6"),
        ("torchvision/mobilenet_v3_small", "classifier.3"),
        ("torchvision/densenet121", "classifier"),
        ("torchvision/swin_t", "head"),
        ("torchvision/squeezenet1_1", "classifier.1"),
        ("timm/deit_tiny_distilled_patch16_224", "head"),
        ("timm/convnext_atto", "head.fc"),
    ],
)
def test_classifier_is_found_by_name(name: str, expected: str) -> None:
    with torch.device("meta"):
        model = build_model(ModelSpec(name=name), 7, 32)
    found = classifier_name(model)
    assert found == expected and model.get_submodule(found).weight.shape[0] == 7  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "resnet5",
            r'"resnet5" is not one of resnet18, .*, vit, timm/<name>, torchvision/<name>; did you mean resnet50\?',
        ),
        ("keras/resnet18", r'"keras/resnet18" is not one of'),
        ("timm/../x", r'"timm/\.\./x" is not one of'),
        ("timm/", r'"timm/" is not one of'),
    ],
)
def test_what_is_no_name_is_refused_before_anything_is_built(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_name(name)
    with pytest.raises(ValueError, match=message):
        ModelSpec(name=name)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("timm/resnet18x", 32, r'model\.name: timm has no model "resnet18x"; did you mean resnet18\w*\?'),
        (
            "torchvision/resnet8",
            32,
            r'torchvision has no model "resnet8" that classifies images; did you mean resnet18\?',
        ),
        ("torchvision/deeplabv3_resnet50", 32, r'torchvision has no model "deeplabv3_resnet50" that classifies'),
        ("small_vit", 9, r"small_vit cuts the image into 2 x 2 patches; 9 pixels cannot be"),
        ("torchvision/alexnet", 32, r"model\.name: torchvision/alexnet cannot take images of 32 pixels \(Given input"),
        ("torchvision/vit_b_16", 40, r"torchvision/vit_b_16 cannot take images of 40 pixels \(Input shape indivisible"),
        ("torchvision/maxvit_t", 32, r"torchvision/maxvit_t cannot take images of 32 pixels \(Input size \(8, 8\) of"),
        ("timm/efficientformer_l1", 64, r"timm/efficientformer_l1 cannot take images of 64 pixels \(.+\)"),
        ("timm/test_vit", 8, r"timm/test_vit cannot take images of 8 pixels \(.+\)"),
    ],
)
def test_what_cannot_be_built_is_said(name: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        build_model(ModelSpec(name=name), 3, size)


def test_too_little_memory_is_not_taken_for_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    def no_memory(*_: Any, **__: Any) -> nn.Module:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")

    monkeypatch.setattr(timm, "create_model", no_memory)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        build_model(ModelSpec(name="timm/test_vit"), 3, 32)


def test_a_model_that_does_not_classify_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: nn.Conv2d(3, 5, 1))
    with pytest.raises(ValueError, match=r"timm/test_vit gives \[1, 5, 32, 32\] for an image, not one score a class"):
        build_model(ModelSpec(name="timm/test_vit"), 5, 32)


def test_outputs_must_cover_the_classes() -> None:
    with pytest.raises(ValueError, match=r"model\.num_outputs: 4 is less than the 5 classes of the data"):
        build_model(ModelSpec(name="small_resnet", num_outputs=4), 5, 8)


def test_scalars_are_named_by_the_part_that_tells_them() -> None:
    parts = vit(VITN, depth=2, temperature="log")
    model = build_model(ModelSpec(name="vit", vit=parts, input_norm="channel"), 3, 32)
    model(torch.zeros(2, 3, 32, 32))
    found = scalars_of(nn.ModuleDict({"inner": model}))
    statistics = {f"inner.input_norm.{key}.{i}": 0.0 for key in ("mean", "var") for i in range(3)}
    assert found == {"inner.temperature.0": 1.0, "inner.temperature.1": 1.0, **statistics}
    assert scalars_of(model) == {key.removeprefix("inner."): value for key, value in found.items()}
    assert scalars_of(build_model(ModelSpec(name="small_vit"), 3, 8)) == {}


def test_reading_a_spec_loads_no_library() -> None:
    code = (
        "import sys, trainable.spec, trainable.models as m; m.check_name('timm/x'); "
        "print('loaded:', *({'torch', 'timm', 'torchvision'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("loaded:\n", "")
