"""Initial weights: found in timm's formats, never unpickled, loaded as timm does, and accounted for."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from harm import Harm
from safetensors.torch import save_file
from torch import nn

from trainable.models import build_model
from trainable.spec import InitSpec, ModelSpec
from trainable.surgery import WeightsError, load_weights
from trainable.weights import MissingWeights, find_weights, read_weights, tensors_sha256

TAG = "vit_small_patch16_224.augreg_in21k_ft_in1k"


def built(name: str, num_classes: int, image_size: int) -> nn.Module:
    return build_model(ModelSpec(name=name), num_classes, image_size)


def hub(source: str = TAG, sha256: str | None = None, kind: str = "hub") -> InitSpec:
    return InitSpec(kind=kind, source=source, sha256=sha256, checkpoint=None, surgery=("new_head",))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's ViT-S/16 at 224 pixels with 1,000 classes, as the hub would hold them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / f"{TAG}.safetensors"
    save_file(timm.create_model("vit_small_patch16_224", pretrained=False).state_dict(), path)
    return path


def test_vit_weights_load_exactly_as_timm_loads_them(vit_file: Path) -> None:
    """Same file through timm's own `create_model(pretrained=True)`: every tensor but the new head is equal."""
    theirs = timm.create_model(
        "vit_small_patch16_224",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(vit_file)},
        num_classes=100,
        img_size=64,
    ).state_dict()
    model = built("vit_small_patch16_224", 100, 64)
    report = load_weights(model, read_weights(vit_file), ("new_head", "resize_positions"), "file")
    ours = model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("head."))
    assert report.changed == {"pos_embed": "resampled from 197 to 17 tokens"}
    assert report.new == report.dropped == ("head.bias", "head.weight")
    assert len(report.kept) + len(report.changed) + len(report.new) == len(ours)


def test_cnn_weights_load_exactly_as_timm_loads_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path = tmp_path / "resnet18.a1_in1k.safetensors"
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), path)
    theirs = timm.create_model(
        "resnet18", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, num_classes=7
    ).state_dict()
    model = built("resnet18", 7, 32)
    load_weights(model, read_weights(path), ("new_head",), "file")
    ours = model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if not name.startswith("fc."))


def test_the_new_head_keeps_its_fresh_weights() -> None:
    torch.manual_seed(0)
    source = built("small_resnet", 5, 8).state_dict()
    torch.manual_seed(1)
    model = built("small_resnet", 5, 8)
    fresh = model.fc.weight.clone()  # type: ignore[union-attr, operator]
    load_weights(model, source, ("new_head",), "parent")
    assert torch.equal(model.fc.weight, fresh)  # type: ignore[union-attr, arg-type]
    assert torch.equal(model.state_dict()["layer1.0.conv1.weight"], source["layer1.0.conv1.weight"])


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        ((), r"head\.bias is \[1000\], the model needs \[100\]"),
        (("new_head",), r"pos_embed is \[1, 197, 384\], the model needs \[1, 5, 384\].*resize_positions resamples"),
    ],
)
def test_weights_that_do_not_fit_name_tensors_and_mend(vit_file: Path, surgery: tuple[str, ...], message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_weights(built("vit_small_patch16_224", 100, 32), read_weights(vit_file), surgery, "file")


def test_missing_and_unknown_tensors_are_faults() -> None:
    state = built("small_vit", 3, 8).state_dict()
    state["blocks.9.x"] = state.pop("blocks.0.norm1.weight")
    with pytest.raises(
        WeightsError, match=r"blocks\.0\.norm1\.weight is missing; blocks\.9\.x is unknown to the model"
    ):
        load_weights(built("small_vit", 3, 8), state, (), "file")


def test_resize_positions_needs_positions() -> None:
    model = built("small_resnet", 3, 8)
    with pytest.raises(WeightsError, match="resize_positions needs a model with a position table; leave it out"):
        load_weights(model, model.state_dict(), ("resize_positions",), "file")


@pytest.mark.parametrize("place", ["{}.safetensors", "{}.pth", "{}/model.safetensors", "{}/pytorch_model.bin"])
def test_every_format_gives_the_same_identity(place: str, tmp_path: Path) -> None:
    state = built("small_vit", 3, 8).state_dict()
    path = tmp_path / place.format(TAG)
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    found = find_weights(hub(), tmp_path, download=False)
    assert found.path == path and found.sha256 == tensors_sha256(state)


def test_a_hub_cache_copied_by_hand_is_found(tmp_path: Path) -> None:
    state = built("small_vit", 3, 8).state_dict()
    path = tmp_path / f"models--timm--{TAG}" / "snapshots" / "abc" / "model.safetensors"
    path.parent.mkdir(parents=True)
    save_file(state, path)
    assert find_weights(hub(), tmp_path, download=False).path == path


def test_wrapped_torch_files_are_opened(tmp_path: Path) -> None:
    state = built("small_vit", 3, 8).state_dict()
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / f"{TAG}.pth")
    assert find_weights(hub(), tmp_path, download=False).sha256 == tensors_sha256(state)


def test_other_tensors_are_another_identity() -> None:
    state = built("small_vit", 3, 8).state_dict()
    changed = {**state, "head.bias": state["head.bias"] + 1}
    renamed = {name.replace("head.bias", "head.b"): value for name, value in state.items()}
    assert len({tensors_sha256(one) for one in (state, changed, renamed)}) == 3


def test_exchanged_file_is_noticed(tmp_path: Path) -> None:
    save_file(built("small_vit", 3, 8).state_dict(), tmp_path / f"{TAG}.safetensors")
    with pytest.raises(MissingWeights, match=r"holds tensors of SHA-256 \w{16}, the run was planned with 0{16}"):
        find_weights(hub(sha256="0" * 64), tmp_path, download=False)


def test_missing_weights_say_where_was_looked(tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=rf"weights {TAG}: not in the hub's cache, and no --weights DIR was given"):
        find_weights(hub(), None, download=False)
    with pytest.raises(MissingWeights, match=rf"{tmp_path} holds no {TAG}\.safetensors, {TAG}\.pth or"):
        find_weights(hub(), tmp_path, download=False)
    with pytest.raises(MissingWeights, match=r"weights own\.pth: .* holds no own\.pth"):
        find_weights(hub("own.pth", kind="file"), tmp_path, download=False)


def test_without_network_the_reason_is_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingWeights, match=r"http://127\.0\.0\.1:9 cannot be reached \(ConnectionError\)"):
        find_weights(hub(), None, download=True)


def test_pickled_code_in_a_weight_file_is_not_run(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    torch.save({"x": Harm(harm)}, tmp_path / f"{TAG}.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"x": Harm(harm)}, protocol=2))
    for path in (tmp_path / f"{TAG}.pth", tmp_path / "raw.pth"):
        with pytest.raises(MissingWeights, match="not a readable weight file"):
            read_weights(path)
    assert not harm.exists()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x10\0\0\0\0\0\0\0garbage")
    with pytest.raises(MissingWeights, match=rf"{name}: not a readable weight file \(.*\); get it anew"):
        read_weights(tmp_path / name)


def test_a_file_without_tensors_is_named(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(MissingWeights, match="holds no table of tensors by name"):
        read_weights(tmp_path / "x.pth")


@pytest.mark.parametrize("source", ["../secret.pth", "/etc/secret.pth", "a/../../secret.pth", "..\\x.pth", "*", "x\n"])
def test_sources_cannot_leave_the_folder(source: str, tmp_path: Path) -> None:
    for kind, folder in (("file", tmp_path), ("hub", tmp_path), ("hub", None)):
        with pytest.raises(MissingWeights, match="must be a name within --weights"):
            find_weights(hub(source, kind=kind), folder, download=False)


HEADERS = {
    "length beyond all memory": b"\xff" * 8 + b"{}",
    "length of a gigabyte": (1 << 30).to_bytes(8, "little") + b"{}",
    "shape beyond all memory": b'{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}',
    "data beyond the file": b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
    "offsets that fall": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}',
    "nested": b"[" * 200_000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_headers_are_named(name: str, tmp_path: Path) -> None:
    header = HEADERS[name]
    whole = header if header.startswith(b"\xff") or b"@" in header[:8] else len(header).to_bytes(8, "little") + header
    (tmp_path / "x.safetensors").write_bytes(whole + bytes(4))
    with pytest.raises(MissingWeights, match=r"x\.safetensors: not a readable weight file \(.*\); get it anew"):
        read_weights(tmp_path / "x.safetensors")
