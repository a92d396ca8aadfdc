"""Fixtures for all tests. Threads are pinned before torch is imported: two cores, one thread each."""

from __future__ import annotations

import os
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# a test beside may take the memory of the machine; the tests of the monitor turn it on
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parent.parent / ".pytest_cache" / "home")

from collections.abc import Iterator

import pytest
import torch
from toy import run_spec, write_image_folder

from datasets.prepare import prepare
from datasets.store import Dataset
from trainable.spec import RunSpec
from trainable.storage import Storage

torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real images beside the checkout; never part of it."""
    if not SHARED.is_dir():
        pytest.skip("needs the real images of ../shared/data, which are not here")
    return SHARED


@pytest.fixture(scope="session")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data: `toy` (3 classes, 60 train and 30 test images of 8 pixels) and `digits`."""
    path = tmp_path_factory.mktemp("data")
    images = tmp_path_factory.mktemp("images")
    write_image_folder(images, train_per_class=20, test_per_class=10)
    prepare("toy", images, path)
    prepare("digits", None, path)
    return path


@pytest.fixture(scope="session")
def toy(data_path: Path) -> Dataset:
    """The prepared toy images."""
    from datasets.store import open_dataset

    return open_dataset(data_path, "toy")


@pytest.fixture(scope="session")
def toy_spec(toy: Dataset) -> RunSpec:
    """A run on the toy images that can be opened."""
    return run_spec({"data.content_sha256": toy.manifest.content_sha256})


@pytest.fixture(scope="session")
def cifar100_path(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data with the real CIFAR-100."""
    path = tmp_path_factory.mktemp("cifar100")
    prepare("cifar100", shared / "cifar-100-python.tar.xz", path)
    return path


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """An empty results root."""
    return Storage(str(tmp_path / "results"))


@pytest.fixture(scope="session")
def s3_uri() -> Iterator[str]:
    """A bucket of an S3 server in this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    before = {name: os.environ.get(name) for name in keys}
    os.environ.update(keys)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="results")
    yield f"s3://results/{{name}}?scheme=http&endpoint_override={host}:{port}"
    server.stop()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture
def no_garbage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a run collects none: half a second each time in a test's large process; `test_costs.py` measures memory."""
    monkeypatch.setattr("trainable.opening.reset_peak_memory", lambda device: None)
