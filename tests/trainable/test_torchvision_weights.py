"""Weights of torchvision: looked for in order, checked against the hash in their name, called as the models call them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from harm import Harm
from safetensors.torch import save_file

from trainable import torchvision_weights
from trainable.spec import InitSpec
from trainable.surgery import State
from trainable.torchvision_weights import Published, as_named_now, published
from trainable.weights import MissingWeights, find_weights, tensors_sha256

SOURCE = "torchvision/ResNet18_Weights.IMAGENET1K_V1"
FILE = "resnet18-f37072fd.pth"


def hub(source: str = SOURCE, kind: str = "hub") -> InitSpec:
    return InitSpec(kind=kind, source=source, sha256=None, checkpoint=None, surgery=())  # type: ignore[arg-type]


def small(value: float = 1.0) -> State:
    return {"conv1.weight": torch.full((2, 3), value), "bn1.running_var": torch.ones(2)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder of checkpoints, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    path = tmp_path / "torch" / "hub" / "checkpoints"
    path.mkdir(parents=True)
    return path


class Server:
    """Serves one weight file, and says what was asked of it."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, list[str]()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                owner.asked.append(f"HEAD {self.path}")
                self.send_response(200)
                self.end_headers()

            def do_GET(self) -> None:
                owner.asked.append(f"GET {self.path}")
                if not owner.content:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(owner.content)))
                self.end_headers()
                self.wfile.write(owner.content)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    """A torch file as torchvision publishes it."""
    torch.save(small(), tmp_path / "whole.pth")
    return (tmp_path / "whole.pth").read_bytes()


@pytest.fixture
def server(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves the file of SOURCE in torchvision's place."""
    monkeypatch.setattr("datasets.download.SCHEMES", ("http://",))  # what this server speaks
    one = Server(content)
    serve(one, hashlib.sha256(content).hexdigest()[:8], monkeypatch)
    yield one
    one.stop()


def serve(server: Server, digits: str, monkeypatch: pytest.MonkeyPatch) -> Published:
    told = replace(published(SOURCE), url=f"{server.address}/models/resnet18-{digits}.pth")
    monkeypatch.setattr(torchvision_weights, "published", lambda source: told)
    return told


def test_the_published_files_are_torchvisions() -> None:
    found = published(SOURCE)
    assert found.url == torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    assert (found.file, found.sha256_begins, found.origin) == (FILE, "f37072fd", "https://download.pytorch.org")
    known = torchvision_weights._known()
    assert len(known) > 100 and all(one.url.startswith("https://") for one in known.values())
    assert all(8 <= len(one.sha256_begins) <= 10 for one in known.values())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"{SOURCE[:-1]}2", rf"publishes no such weights; did you mean {SOURCE}\?"),
        ("torchvision/resnet18", rf"publishes no such weights; did you mean {SOURCE}\?"),
        ("torchvision/ResNet50_Weights.DEFAULT", r"now it is torchvision/ResNet50_Weights\.IMAGENET1K_V2, say that"),
        ("torchvision/VGG16_Weights.IMAGENET1K_FEATURES", "publishes no such weights"),
        ("torchvision/FasterRCNN_ResNet50_FPN_Weights.COCO_V1", "publishes no such weights"),
        ("torchvision/", r"weights torchvision/: torchvision publishes no such weights$"),
    ],
)
def test_unknown_names_are_told_the_nearest(source: str, message: str, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(MissingWeights, match=message):
        find_weights(hub(source), tmp_path, download=False)


def test_the_folder_comes_first_then_the_cache_then_the_address(
    tmp_path: Path, cache: Path, content: bytes, server: Server
) -> None:
    file = torchvision_weights.published(SOURCE).file
    folder = tmp_path / "weights"
    own, named = folder / f"{SOURCE}.safetensors", folder / file
    assert find_weights(hub(), folder, download=True).path == cache / file, "downloaded, to where torchvision looks"
    assert server.asked == ["HEAD /", f"GET /models/{file}"]
    assert find_weights(hub(), folder, download=True).path == find_weights(hub(), None, download=False).path
    assert len(server.asked) == 2, "the cache is enough"
    own.parent.mkdir(parents=True)
    torch.save(small(2.0), named)
    assert find_weights(hub(), folder, download=True).path == named
    save_file(small(3.0), own)
    found = find_weights(hub(), folder, download=True)
    assert found.path == own and found.sha256 == tensors_sha256(small(3.0))
    assert len(server.asked) == 2 and {path.name for path in cache.iterdir()} == {file, f"{file}.lock"}


@pytest.mark.parametrize("place", ["{}.safetensors", "{}.pth", "{}.bin", "{}/model.safetensors"])
def test_local_files_are_found_by_their_source(place: str, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / place.format(SOURCE)
    path.parent.mkdir(parents=True)
    save_file(small(), path) if path.suffix == ".safetensors" else torch.save(small(), path)
    found = find_weights(hub(), tmp_path, download=False)
    assert found.path == path and found.sha256 == tensors_sha256(small()) and found.stand_in is None


def test_a_cached_file_that_is_not_the_published_one_is_not_used(cache: Path, content: bytes, server: Server) -> None:
    file = torchvision_weights.published(SOURCE).file
    torch.save(small(9.0), cache / file)
    with pytest.raises(MissingWeights, match=rf"{file} is not the published file: its SHA-256 does not begin with \w+"):
        find_weights(hub(), None, download=False)
    assert find_weights(hub(), None, download=True).sha256 == tensors_sha256(small()), "it is fetched again"


def test_what_came_must_have_the_hash_of_its_name(
    tmp_path: Path, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, "0badc0de", monkeypatch)
    told = r"resnet18-0badc0de\.pth cannot be had from http://127\.0\.0\.1:\d+ \(what came has SHA-256 \w+, the .* 0badc0de"
    with pytest.raises(MissingWeights, match=told):
        find_weights(hub(), tmp_path, download=True)
    assert [path.name for path in cache.iterdir()] == ["resnet18-0badc0de.pth.lock"]
    server.content = b""
    with pytest.raises(
        MissingWeights, match=r"cannot be had from http://127\.0\.0\.1:\d+ \(HTTPError\), and .* add --w"
    ):
        find_weights(hub(), tmp_path, download=True)


def test_without_network_the_reason_is_the_network(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = replace(published(SOURCE), url=f"http://127.0.0.1:9/models/{FILE}")
    monkeypatch.setattr(torchvision_weights, "published", lambda source: told)
    reason = (
        rf"weights {SOURCE}: http://127\.0\.0\.1:9 cannot be reached \(ConnectionError\), and {tmp_path} holds no "
        rf"{SOURCE}\.safetensors, {SOURCE}\.pth or {FILE}; put a local copy into a folder and add --weights DIR"
    )
    with pytest.raises(MissingWeights, match=reason):
        find_weights(hub(), tmp_path, download=True)
    with pytest.raises(MissingWeights, match=r"not in torch\.hub's cache, and no --weights DIR was given"):
        find_weights(hub(), None, download=False)


def test_only_https_is_asked(tmp_path: Path, cache: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.download.SCHEMES", ("https://",))
    with pytest.raises(MissingWeights, match=r"cannot be had from http://\S+ \(InvalidSchema\)"):
        find_weights(hub(), tmp_path, download=True)
    assert not any(line.startswith("GET") for line in server.asked)


def test_an_unwritable_cache_is_told(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "file"))
    with pytest.raises(MissingWeights, match=r"file/hub/checkpoints cannot be written \(Not a directory\)"):
        find_weights(hub(), tmp_path, download=True)


def test_pickled_code_in_a_cached_file_is_not_run(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one whose hash is right: who publishes is trusted for numbers alone."""
    harm = tmp_path / "harm"
    torch.save({"x": Harm(harm)}, cache / "evil.pth")
    digits = hashlib.sha256((cache / "evil.pth").read_bytes()).hexdigest()[:8]
    (cache / "evil.pth").rename(cache / f"resnet18-{digits}.pth")
    told = replace(published(SOURCE), url=f"https://127.0.0.1:9/resnet18-{digits}.pth")
    monkeypatch.setattr(torchvision_weights, "published", lambda source: told)
    with pytest.raises(MissingWeights, match="not a readable weight file"):
        find_weights(hub(), None, download=False)
    assert not harm.exists()


def test_a_file_of_ones_own_is_taken_as_it_is(tmp_path: Path) -> None:
    """Kind file names a path, whatever it begins with; nothing is renamed or added."""
    path = tmp_path / f"{SOURCE}.pth"
    path.parent.mkdir(parents=True)
    torch.save(small(), path)
    assert find_weights(hub(kind="file"), tmp_path, download=False).state.keys() == small().keys()


OLD = {
    "resnet18": {},
    "vit_b_16": {r"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."},
    "densenet121": {"norm1.": "norm.1.", "norm2.": "norm.2.", "conv1.": "conv.1.", "conv2.": "conv.2."},
}
"""How files of the versions that wrote them call parts of these models."""


@pytest.mark.parametrize("name", OLD)
def test_tensors_are_called_as_the_models_call_them(name: str) -> None:
    """Names as old files have them give the very state that torchvision's own loading gives."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    now = model.state_dict()
    old: State = {}
    for key, value in now.items():
        if key.endswith("num_batches_tracked"):
            continue
        for new, former in OLD[name].items():
            if name != "densenet121" or "denselayer" in key:
                key = key.replace(new, former)
        old[key] = torch.zeros(value.shape, dtype=value.dtype)
    before = set(old)
    found = as_named_now(old)
    assert set(old) == before != set(found) or name == "vit_b_16"
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in now.items()}
    model.load_state_dict(found, strict=True, assign=True)
    counts = [value for key, value in found.items() if key.endswith("num_batches_tracked")]
    assert all(count.dtype == torch.int64 and count.item() == 0 for count in counts)
    assert len(counts) == sum(key.endswith("running_mean") for key in now)


def test_counts_of_batches_that_a_file_has_stay() -> None:
    state = {**small(), "bn1.num_batches_tracked": torch.tensor(7)}
    assert as_named_now(state)["bn1.num_batches_tracked"].item() == 7


def test_identity_is_that_of_the_file_and_not_of_our_names(tmp_path: Path, cache: Path) -> None:
    """So another version of the library, which calls a tensor otherwise, knows the same run."""
    path = tmp_path / f"{SOURCE}.pth"
    path.parent.mkdir()
    torch.save(small(), path)
    found = find_weights(hub(), tmp_path, download=False)
    assert found.sha256 == tensors_sha256(small()) and "bn1.num_batches_tracked" in found.state
