"""What one image costs a model, counted on torch's meta device: no data, no arithmetic, no memory."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainable.spec import ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Counts of one model at one input size."""

    num_parameters: int
    num_tensors: int
    """Parameter tensors: an optimiser step's unit of overhead."""
    convolution_flops: float
    """Of one image's forward pass; a multiply-add counts two."""
    other_flops: float
    """Matrix products and attention, likewise."""
    num_operations: int
    """Kernels of one forward pass, whatever the batch."""
    saved_bytes: int
    """What one image's forward pass keeps for the backward pass, in float32."""

    @property
    def flops(self) -> float:
        """Of one image's forward pass."""
        return self.convolution_flops + self.other_flops


@cache
def profile(model: ModelSpec, num_classes: int, image_size: int, input_size: int) -> Profile:
    """Counts a forward pass. A model that cannot take images of `input_size` is counted at its own size.

    Counts are kept in the user's cache folder, under the versions of the code that made them, so that a plan need not
    import torch.
    """
    varied = model.model_dump_json(exclude={"name"}, exclude_defaults=True)
    name = model.name.replace("/", "-") + (
        "" if varied == "{}" else f"-{hashlib.sha256(varied.encode()).hexdigest()[:12]}"
    )
    arguments = f"{name}-{num_classes}-{image_size}-{input_size}"
    path = _cache_folder() / f"{arguments}-{_code()}.json"
    with suppress(OSError, ValueError, TypeError):
        return Profile(**json.loads(path.read_bytes()))
    counted = _count(model, num_classes, image_size, input_size)
    with suppress(OSError):  # a cache that cannot be written costs seconds, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = path.with_suffix(f".{os.getpid()}")
        whole.write_text(json.dumps(asdict(counted)))
        whole.replace(path)
    return counted


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "grid-tuner" / "profiles"


@cache
def _code() -> str:
    """What the counts depend on: this file, the models, and the libraries that build them."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for file in (Path(__file__), *sorted((root / "trainable" / "models").glob("*.py"))):
        digest.update(file.read_bytes())
    for library in ("torch", "timm", "torchvision"):
        digest.update(version(library).encode())
    return digest.hexdigest()[:12]


def _count(spec: ModelSpec, num_classes: int, image_size: int, input_size: int) -> Profile:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    from trainable.models import build_model

    class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Operations.count += 1
            return func(*args, **(kwargs or {}))

    batch = 2 * spec.bn_groups  # BatchNorm cannot train on one image
    with torch.device("meta"):
        model = build_model(spec, num_classes, image_size).train()
        own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        saved: dict[int, Any] = {}

        def keep(tensor: Any) -> Any:
            storage = tensor.untyped_storage()
            if storage._cdata not in own:
                saved[storage._cdata] = storage
            return tensor

        counter = FlopCounterMode(display=False)
        operations = Operations()  # type: ignore[no-untyped-call]
        try:
            with counter, operations, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                graph = model(torch.empty(batch, 3, input_size, input_size))
        except AssertionError:
            return _count(spec, num_classes, image_size, image_size)
    flops = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    convolution = sum(count for operation, count in flops.items() if "convolution" in operation)
    parameters = list(model.parameters())
    del graph
    return Profile(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_tensors=len(parameters),
        convolution_flops=convolution / batch,
        other_flops=(sum(flops.values()) - convolution) / batch,
        num_operations=Operations.count,
        saved_bytes=sum(storage.nbytes() for storage in saved.values()) // batch,
    )


def _storage(tensor: Any) -> int:
    return int(tensor.untyped_storage()._cdata)
