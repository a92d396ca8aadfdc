"""One pass of a model over a split: its logits. Also the command that evaluates a stored checkpoint.

python -m trainable.evaluate RUN [--checkpoint last] [--dataset NAME] [--data DIR] [--results URI]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from datasets.epochs import Epochs
from datasets.spec import DataSpec
from datasets.store import NOT_PUBLISHED, DataError, Dataset, open_dataset
from datasets.subset import select_rows
from datasets.terminal import plain
from trainable import metrics
from trainable.checkpoint import CheckpointError, RunFolder, model_state
from trainable.credentials import redacted
from trainable.loading import ImagesOn, evaluation_loader, layout
from trainable.models import build_model
from trainable.spec import RunSpec
from trainable.storage import Storage, StorageError
from trainable.surgery import WeightsError, load_weights
from trainable.weights import NOT_PUBLISHED_WEIGHTS

CHECKPOINTS = ("last", "best_on_test", "best_on_val")


class Pass:
    """One pass of a model over a loader, a batch per step of the iteration, so that the caller may pause or stop.

    Args:
        model: put into evaluation mode while the pass lasts.
        loader: an evaluation loader at its beginning; it is back there when the pass ends.
        device: where the model is.
        spec: the run, for its precision.
        num_classes: outputs to keep; a model may have more than the data have classes.
    """

    def __init__(
        self, model: nn.Module, loader: Epochs[Any], device: torch.device, spec: RunSpec, num_classes: int
    ) -> None:
        self._model, self._loader, self._device, self._num_classes = model, loader, device, num_classes
        self._precision = spec.optim.precision
        self._parts: list[torch.Tensor] = []

    def __iter__(self) -> Generator[None, None, None]:
        start = self._loader.state_dict()
        self._model.eval()
        try:
            for batch in self._loader:
                with torch.inference_mode(), autocast(self._device, self._precision):
                    logits = self._model(batch.images.to(self._device, non_blocking=True))
                    self._parts.append(logits[:, : self._num_classes].float())
                yield None
        finally:
            self._loader.load_state_dict(start)

    def logits(self) -> NDArray[np.float32]:
        """What came of a whole pass: [N, C] float32, in the loader's order."""
        return np.concatenate([part.cpu().numpy() for part in self._parts])


def predict(
    model: nn.Module, loader: Epochs[Any], device: torch.device, spec: RunSpec, num_classes: int
) -> NDArray[np.float32]:
    """Logits of every image of the loader in its order, [N, C] float32."""
    one = Pass(model, loader, device, spec, num_classes)
    for _ in one:
        pass
    return one.logits()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 autocast, or none for float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def find_run(storage: Storage, run: str) -> RunSpec:
    """The spec of a stored run by its id or the beginning of it.

    Raises:
        DataError: none, or more than one, or one of another version of the project.
    """
    known = sorted({name.split("--")[0] for name in storage.names("attempts")})
    matches = [run_id for run_id in known if run_id.startswith(run)]
    if len(matches) != 1:
        raise DataError(
            f"RUN {run}: {'no' if not matches else len(matches)} run of {storage.uri} begins so; "
            f"its runs are {', '.join(known[:8]) or 'none'}{' ...' if len(known) > 8 else ''}"
        )
    try:
        return RunSpec.model_validate_json(storage.read(f"runs/{matches[0]}/spec.json"))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"RUN {matches[0]}: its spec is not one of this version of the project "
            f"({'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']!r}); evaluate it with the "
            "version that trained it"
        ) from None


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m trainable.evaluate`."""
    cli = argparse.ArgumentParser(prog="python -m trainable.evaluate", description="Evaluate a stored checkpoint.")
    cli.add_argument("run", metavar="RUN", help="run id, or the beginning of it")
    cli.add_argument("--checkpoint", choices=CHECKPOINTS, default="last")
    cli.add_argument("--dataset", help="prepared data to evaluate on (default: the run's own)")
    cli.add_argument("--data", type=Path, default=Path("data"), help="folder of the prepared data (default: data)")
    cli.add_argument("--results", default="results", help="results root (default: results)")
    cli.add_argument("--batch-size", type=int, default=256)
    return cli


def main(argv: list[str] | None = None) -> int:
    """Prints the metrics; exit code 0, or 2 when something given cannot be used."""
    options = parser().parse_args(argv)
    try:
        print(_evaluate_stored(options))
    except (DataError, StorageError, CheckpointError, WeightsError, ValueError) as error:
        print(plain(f"trainable.evaluate: {redacted(str(error))}"), file=sys.stderr)
        return 2
    return 0


def _evaluate_stored(options: argparse.Namespace) -> str:
    storage = Storage(options.results)
    spec = find_run(storage, options.run)
    name = options.dataset or spec.data.dataset
    data = open_dataset(options.data, name)
    if spec.data.resize == "none" and data.manifest.image_size != spec.data.image_size:
        raise DataError(
            f"--dataset {name}: images of {data.manifest.image_size} pixels, run {spec.run_id} was trained on "
            f"{spec.data.image_size}; prepare them with --image-size {spec.data.image_size}"
        )
    rows = select_rows(_data_spec(spec.data, data), data)
    try:
        folder = RunFolder(storage, spec.run_id)
        checkpoint = folder.load(options.checkpoint)
        last = checkpoint if options.checkpoint == "last" else folder.load("last")
    except FileNotFoundError:
        raise DataError(
            f"--checkpoint {options.checkpoint}: run {spec.run_id} has none in {storage.folder('runs')}; "
            f"choose one of {', '.join(CHECKPOINTS)} that it kept, or run it first"
        ) from None
    known = checkpoint.meta["num_classes"]
    if len(rows.classes) != known:
        raise DataError(f"--dataset {name}: has {len(rows.classes)} classes, run {spec.run_id} knows {known}")
    model = build_model(spec.model, known, spec.data.image_size)
    load_weights(model, model_state(checkpoint), (), f"run {spec.run_id}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device, memory_format=layout(spec))  # type: ignore[call-overload]
    on = ImagesOn(device=device, channels_last=layout(spec) == torch.channels_last)
    loader = evaluation_loader(spec, data.test, rows.test, on, batch_size=options.batch_size)
    logits = predict(model, loader, device, spec, known)
    numbers = metrics.summarise(metrics.predictions(logits, rows.test.labels, rows.classes), rows.classes)
    mark = "" if data.manifest.published else f" ({NOT_PUBLISHED})"
    head = f"run {spec.run_id} {options.checkpoint} (step {checkpoint.meta['step']:,}) on {name}{mark}, "
    lines = [head + f"{len(logits):,} test images"]
    if (stand_in := (last.meta.get("weights_report") or {}).get("stand_in")) is not None:
        lines.append(f"  initial weights: {NOT_PUBLISHED_WEIGHTS} ({stand_in})")
    return "\n".join([*lines, *(f"  {k:16} {v:.6f}" for k, v in numbers.items())])


def _data_spec(own: DataSpec, data: Dataset) -> DataSpec:
    """The run's own test images where these are its data, else all test images (of the classes the run kept)."""
    if data.manifest.content_sha256 == own.content_sha256:
        return own
    return own.model_copy(update={"limit_train": None, "limit_eval": None, "val_fraction": 0.0})


if __name__ == "__main__":
    sys.exit(main())
