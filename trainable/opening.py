"""Builds a run, or resumes it from its folder.

Device, clock, threads and torch's global generator are touched here and nowhere below.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from datasets.plan import Purpose, generator
from datasets.store import Dataset
from datasets.subset import RunRows, select_rows
from trainable.checkpoint import Checkpoint, CheckpointError, RunFolder, model_state
from trainable.costs import CUDA_CONTEXT_BYTES
from trainable.loading import images_on, layout
from trainable.loop import Position
from trainable.models import build_model
from trainable.optim import frozen_modules
from trainable.provenance import reset_peak_memory
from trainable.spec import ExecSpec, RunSpec
from trainable.surgery import LoadReport, WeightsError, load_weights
from trainable.training import TrainingRun
from trainable.weights import find_weights


class SpecError(Exception):
    """A spec cannot run on these data; the message names the field and the mend."""


def open_run(
    spec: RunSpec, exec_spec: ExecSpec, folder: RunFolder, stores: Dataset, parent_folder: RunFolder | None = None
) -> TrainingRun:
    """Builds a run, or resumes it from its folder.

    Weights come from the first of: the run's own last checkpoint, its parent, its file or hub tag, scratch.

    Raises:
        SpecError: the spec cannot run on these data.
        MissingWeights, WeightsError: initial weights cannot be had or do not fit.
        FreezeError: what is to be frozen, or how rates decay, does not fit the model.
        CheckpointError: the parent's checkpoint is damaged or absent. (The run's own damaged checkpoint is set aside
            and the run begins anew, which gives the same bits.)
    """
    if (reason := spec.unresolved()) is not None:
        raise SpecError(f"{reason}; a spec must be resolved before it can run")
    rows = select_rows(spec.data, stores)
    _check(spec, stores, rows)
    device = _device(exec_spec)
    _set_up_torch(exec_spec, device)
    reset_peak_memory(device)

    last, notes = _own_checkpoint(folder)
    if last is not None:
        try:
            return _built(spec, exec_spec, folder, stores, rows, device, parent_folder, last, notes)
        except CheckpointError as error:
            notes = [f"{error}; set aside as {folder.set_aside()}, the run begins anew"]
    return _built(spec, exec_spec, folder, stores, rows, device, parent_folder, None, notes)


def _built(
    spec: RunSpec,
    exec_spec: ExecSpec,
    folder: RunFolder,
    stores: Dataset,
    rows: RunRows,
    device: torch.device,
    parent_folder: RunFolder | None,
    own: Checkpoint | None,
    notes: list[str],
) -> TrainingRun:
    """The run at its own checkpoint, or at its beginning.

    Raises:
        CheckpointError: its own checkpoint is not one from which this version can resume.
    """
    torch.manual_seed(_torch_seed(spec, Purpose.MODEL_INIT))
    model = build_model(spec.model, len(rows.classes), spec.data.image_size)
    _check_batches(spec, model, len(rows.train.index))
    if own is None:
        report = _initialise(spec, exec_spec, model, parent_folder)
        position = Position()
    else:
        report = LoadReport()
        with _unusable_is_told(folder):
            _check_tensors(folder, own, model)
            position = Position.from_dict(own.meta["position"])
    frozen = frozen_modules(model, spec.optim)
    model.to(device, memory_format=layout(spec))  # type: ignore[call-overload]
    on = images_on(spec, stores, device, model, _memory_bytes(exec_spec, device), exec_spec.cpu_threads)
    torch.manual_seed(_torch_seed(spec, Purpose.MODEL_TRAIN))
    run = TrainingRun(spec, exec_spec, folder, stores, rows, model, frozen, on, position, report, notes)
    if own is not None:
        with _unusable_is_told(folder):
            run.restore(own)
    return run


def _own_checkpoint(folder: RunFolder) -> tuple[Checkpoint | None, list[str]]:
    """The run's last checkpoint; a damaged one is set aside, since beginning anew gives the same bits."""
    if not folder.has_checkpoint():
        return None, []
    try:
        return folder.load("last"), []
    except CheckpointError as error:
        return None, [f"{error}; set aside as {folder.set_aside()}, the run begins anew"]


@contextmanager
def _unusable_is_told(folder: RunFolder) -> Iterator[None]:
    """Tells a checkpoint that another version wrote, whole but of other keys or shapes, as what it is."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
            raise
        why = str(error).splitlines()[0] if str(error) else ""
        raise CheckpointError(
            f"{folder.path('checkpoint/last')}: not as this version writes it ({type(error).__name__}: {why})"
        ) from error


def _check_tensors(folder: RunFolder, last: Checkpoint, model: nn.Module) -> None:
    """The model's tensors must be there in every checkpoint of the run, now and not first when they are needed."""
    expected = {name: (value.shape, value.dtype) for name, value in model.state_dict().items()}
    for name in ("last", *folder.best_names(last)):
        try:
            checkpoint = last if name == "last" else folder.load(name)
        except FileNotFoundError as error:
            raise CheckpointError(f"{error}: the weights of {name} are gone") from None
        if {key: (value.shape, value.dtype) for key, value in model_state(checkpoint).items()} != expected:
            raise CheckpointError(f"{folder.path(f'checkpoint/{name}')}: its tensors are not those of this model")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the card or the machine had no memory left. torch's CPU allocator has no class of
    error of its own, and the operating system says it with a number."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    return known or any(words in str(error) for words in ("DefaultCPUAllocator: can't allocate", "std::bad_alloc"))


def _initialise(spec: RunSpec, exec_spec: ExecSpec, model: nn.Module, parent_folder: RunFolder | None) -> LoadReport:
    """Initial weights of a run that has no checkpoint of its own."""
    init = spec.init
    if init.kind == "scratch":
        return LoadReport(new=tuple(sorted(model.state_dict())))
    if init.kind == "parent":
        assert parent_folder is not None and init.checkpoint is not None, "the caller opens the parent's folder"
        mend = (
            f"put the checkpoint back, or remove {parent_folder.storage.folder('commits')}/{init.source}--*.json to "
            "have the parent trained again"
        )
        try:
            parent = parent_folder.load(init.checkpoint)
            last = parent if init.checkpoint == "last" else parent_folder.load("last")  # it alone says where both began
        except FileNotFoundError as error:
            raise WeightsError(
                f"init.source: parent run {init.source} has no checkpoint {init.checkpoint} ({error}); run the parent, "
                f"and if it is done: {mend}"
            ) from None
        except CheckpointError as error:
            raise CheckpointError(f"init.source: parent run {init.source}: {error}; {mend}") from None
        report = load_weights(model, model_state(parent), init.surgery, f"parent run {init.source}")
        told = last.meta.get("weights_report")
        return replace(report, stand_in=told.get("stand_in") if isinstance(told, dict) else None)
    folder = Path(exec_spec.weights_path) if exec_spec.weights_path else None
    weights = find_weights(init, folder, download=True)
    return replace(load_weights(model, weights.state, init.surgery, str(weights.path)), stand_in=weights.stand_in)


def _check(spec: RunSpec, stores: Dataset, rows: RunRows) -> None:
    manifest = stores.manifest
    if manifest.content_sha256 != spec.data.content_sha256:
        raise SpecError(
            f"data.content_sha256: the run was planned for {str(spec.data.content_sha256)[:16]}, the prepared "
            f"{manifest.dataset} is {manifest.content_sha256[:16]}; plan anew, or prepare the former data again"
        )
    if spec.data.resize == "none" and manifest.image_size != spec.data.image_size:
        raise SpecError(
            f"data.image_size: {spec.data.image_size} pixels, but {manifest.dataset} is prepared at "
            f"{manifest.image_size}; set data.image_size to that, or data.resize to a rule"
        )
    if len(rows.test.index) == 0 or len(rows.train.index) == 0:
        raise SpecError("data.classes: leaves no images to train or test on")


def _check_batches(spec: RunSpec, model: nn.Module, num_train: int) -> None:
    """BatchNorm cannot train on a batch of one image whose last feature map is one pixel: say so before it does."""
    if spec.budget.drop_last and num_train < spec.budget.batch_size:
        raise SpecError(
            f"budget.drop_last: {num_train} images are less than one batch of {spec.budget.batch_size}, which leaves "
            "nothing to train on; lower batch_size or set drop_last to false"
        )
    last = spec.budget.batch_size
    if not spec.budget.drop_last:
        last = num_train % spec.budget.batch_size or min(num_train, spec.budget.batch_size)
    part = -(-last // spec.model.bn_groups)  # as torch.chunk cuts
    if last - part * ((last - 1) // part) == 1 and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()
    ):
        what = "batch" if spec.model.bn_groups == 1 else f"part (model.bn_groups {spec.model.bn_groups}) of a batch"
        raise SpecError(
            f"budget.batch_size: {num_train} images in batches of {spec.budget.batch_size} leave a last {what} of one "
            f"image, on which {spec.model.name}'s BatchNorm cannot train; change batch_size or data.limit_train by one"
        )


def _device(exec_spec: ExecSpec) -> torch.device:
    if exec_spec.device == "cuda" and not torch.cuda.is_available():
        raise SpecError("device: cuda was asked for, but torch sees no CUDA device here; use cpu or auto")
    wanted = "cuda" if exec_spec.device == "auto" and torch.cuda.is_available() else exec_spec.device
    return torch.device("cpu" if wanted == "auto" else wanted)


def _set_up_torch(exec_spec: ExecSpec, device: torch.device) -> None:
    """Threads, determinism and, on a shared card, the cap on its memory."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its bits only with this
    torch.set_num_threads(exec_spec.cpu_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a pass over memory that is then overwritten
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
        if 0 < exec_spec.gpu_fraction < 1:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(memory_cap(exec_spec.gpu_fraction, total), device)


def _memory_bytes(exec_spec: ExecSpec, device: torch.device) -> int:
    """Of the card, what this run may take; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    share = exec_spec.gpu_fraction
    return min(free, int(memory_cap(share, total) * total)) if 0 < share < 1 else free


def memory_cap(share: float, total_bytes: int) -> float:
    """The fraction of a card's memory that torch may reserve in a trial with this share of the card.

    What CUDA itself takes for the process's context lies outside of torch's count and inside of the share.
    """
    return max(share - CUDA_CONTEXT_BYTES / total_bytes, share / 2)


def _torch_seed(spec: RunSpec, purpose: Purpose) -> int:
    return int(generator(spec.seed, purpose).integers(2**63))
