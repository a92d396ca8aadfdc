"""Working state of a run on disk: tensors in safetensors, everything else as JSON in the same file's header.

One checkpoint is one file, so it is whole or absent. A digest over tensors and JSON tells damage from a good file.
Nothing is ever pickled.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from trainable.storage import Storage
from trainable.surgery import State
from trainable.weights import tensors_sha256

FORMAT = 1


class CheckpointError(Exception):
    """A checkpoint cannot be used; the message names it and the mend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """What one file holds."""

    tensors: State
    meta: dict[str, Any]
    """JSON values."""


def save_checkpoint(storage: Storage, path: str, tensors: State, meta: dict[str, Any]) -> None:
    """Writes a checkpoint atomically.

    Raises:
        StorageError: cannot be written; the previous one is intact.
    """
    whole = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    text = json.dumps({"format": FORMAT, **meta}, sort_keys=True)
    storage.put(path, save(whole, metadata={"meta": text, "sha256": _digest(whole, text)}))


def load_checkpoint(storage: Storage, path: str) -> Checkpoint:
    """Reads a checkpoint whole.

    Raises:
        FileNotFoundError: absent.
        CheckpointError: truncated, altered, or of another format.
    """
    content = storage.read(path)
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        text, expected = header["meta"], header["sha256"]
        meta = json.loads(text)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(storage, path, f"not a whole checkpoint ({(str(error) or repr(error)).splitlines()[0]})") from None
    if _digest(tensors, text) != expected:
        raise _bad(storage, path, "its content was altered: the digest does not match")
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        known = meta.get("format") if isinstance(meta, dict) else None
        raise _bad(storage, path, f"format {known}, this version reads format {FORMAT}")
    return Checkpoint(tensors=tensors, meta=meta)


def model_state(checkpoint: Checkpoint) -> State:
    """The model's tensors of a checkpoint, without the optimiser's."""
    return {
        name.removeprefix("model."): value for name, value in checkpoint.tensors.items() if name.startswith("model.")
    }


class RunFolder:
    """The working state of one run: `runs/<run_id>/{spec.json,log.txt,checkpoint/}` below a results root.

    `last` is one file. A best checkpoint is named by its step and is written before the `last` that points to it, so
    that every `last` finds the best weights it speaks of, whenever a run is killed.
    """

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.storage, self.run_id = storage, run_id
        self._root = f"runs/{run_id}"

    def path(self, name: str) -> str:
        """A file of this run, relative to the results root."""
        return f"{self._root}/{name}"

    def load(self, name: str) -> Checkpoint:
        """The checkpoint `last`, `best_on_test` or `best_on_val`.

        Raises:
            FileNotFoundError: the run keeps none of this name (yet).
            CheckpointError: damaged, of another format, of another run, or without what this version looks for.
        """
        checkpoint = self._load(self._last_path)
        if name == "last":
            return checkpoint
        step = _best_steps(self.storage, self._last_path, checkpoint).get(name)
        if step is None:
            raise FileNotFoundError(self.storage.folder(self.path(f"checkpoint/{name}")))
        path = self._best_path(name, step)
        best = self._load(path)
        if best.meta.get("step") != step:
            raise _bad(self.storage, path, f"holds the weights of step {best.meta.get('step')}")
        return best

    def best_names(self, last: Checkpoint) -> list[str]:
        """The best checkpoints that `last` speaks of.

        Raises:
            CheckpointError: it does not say, as this version would.
        """
        return list(_best_steps(self.storage, self._last_path, last))

    def has_checkpoint(self) -> bool:
        """Whether there is a `last`, whole or not."""
        return self.storage.exists(self._last_path)

    def set_aside(self) -> str:
        """Moves `last` out of the way, so that the run begins anew: that gives the same bits.

        Returns:
            Where it lies now, relative to the results root.
        """
        aside = self.path(f"damaged/{int(time.time() * 1000)}.safetensors")
        if self.has_checkpoint():
            self.storage.put(aside, self.storage.read(self._last_path))
            self.storage.delete(self._last_path)
        return aside

    def save(self, tensors: State, meta: dict[str, Any], best: dict[str, State]) -> None:
        """Writes new best weights, then `last`, then removes best weights that nothing points to any more.

        Raises:
            StorageError: cannot be written; the former checkpoint is intact.
        """
        named = {name: entry["step"] for name, entry in meta["position"]["best"].items()}
        for name, state in best.items():
            own = {"run_id": self.run_id, "step": named[name], "num_classes": meta["num_classes"]}
            save_checkpoint(self.storage, self._best_path(name, named[name]), _prefixed(state), own)
        save_checkpoint(self.storage, self._last_path, tensors, {"run_id": self.run_id, **meta})
        for name, step in named.items():
            folder = self.path(f"checkpoint/{name}")
            for file in self.storage.names(folder):
                if file != f"{step}.safetensors":
                    self.storage.delete(f"{folder}/{file}")

    @property
    def _last_path(self) -> str:
        return self.path("checkpoint/last/state.safetensors")

    def _best_path(self, name: str, step: int) -> str:
        return self.path(f"checkpoint/{name}/{step}.safetensors")

    def _load(self, path: str) -> Checkpoint:
        checkpoint = load_checkpoint(self.storage, path)
        if checkpoint.meta.get("run_id") != self.run_id:
            raise _bad(self.storage, path, f"belongs to run {checkpoint.meta.get('run_id')}, not to {self.run_id}")
        return checkpoint


def _best_steps(storage: Storage, path: str, last: Checkpoint) -> dict[str, int]:
    try:
        return {name: int(entry["step"]) for name, entry in last.meta["position"]["best"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _bad(storage, path, f"does not say which weights were the best ({error!r})") from None


def _prefixed(state: State) -> State:
    return {f"model.{name}": value for name, value in state.items()}


def _digest(tensors: State, text: str) -> str:
    return hashlib.sha256((tensors_sha256(tensors) + text).encode()).hexdigest()


def _bad(storage: Storage, path: str, why: str) -> CheckpointError:
    return CheckpointError(f"{storage.folder(path)}: {why}")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[State, dict[str, Any]]:
    """An optimiser's state as named tensors and JSON."""
    state = optimizer.state_dict()
    tensors: State = {}
    values: dict[str, dict[str, Any]] = {}
    for number, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{number}.{key}"] = value
            else:
                values.setdefault(str(number), {})[key] = value
    groups = [
        {key: float(value) if isinstance(value, torch.Tensor) else value for key, value in group.items()}
        for group in state["param_groups"]
    ]
    return tensors, {"values": values, "param_groups": groups}


_OF_HERE = ("fused", "foreach", "capturable", "lr")
"""Settings of a group that say how it is computed here and now; the rate is set before every step."""
_OPTIMIZER_STATE = {
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.SGD: {"momentum_buffer"},
}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: State, meta: dict[str, Any]) -> None:
    """Puts a packed state back.

    Raises:
        KeyError, TypeError, ValueError: it is not a state of this optimiser, which torch would notice steps later.
    """
    state: dict[int, dict[str, Any]] = {int(number): dict(entries) for number, entries in meta["values"].items()}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".", 2)
            state.setdefault(int(number), {})[key] = tensor
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    for index, entries in state.items():
        if entries.keys() != _OPTIMIZER_STATE[type(optimizer)]:
            raise ValueError(f"optimiser state {index} has {', '.join(sorted(entries))}")
        for key, value in entries.items():
            if key != "step" and (not isinstance(value, torch.Tensor) or value.shape != shapes[index]):
                raise ValueError(f"optimiser state {index}: {key} is not of the parameter's shape")
    groups = [
        {**group, **{key: own[key] for key in _OF_HERE if key in own}}
        for group, own in zip(meta["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for parameter, entries in optimizer.state.items():  # as the parameter lies in memory, or kernels go the slow way
        for key, value in entries.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                entries[key] = torch.empty_like(parameter).copy_(value)
