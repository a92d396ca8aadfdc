"""Looks into all networks of a block, one after the other: features of the same images, maps of the same few.

Nothing of a run is kept but its numbers, and the centred inner products of its images for CKA, which wait on disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from analysis.attribution import Scores, area, likeness, order, removals, rng_for, times_even
from analysis.checkpoints import (
    DataFolder,
    MissingRun,
    Network,
    WrongCheckpoint,
    check_answers,
    images_of,
    open_network,
)
from analysis.depths import DEPTHS, HEAD, METHODS
from analysis.figure_inputs import Cell
from analysis.findings import Arm, BlockFindings, RunFeatures, choose_images, first_of, mean_alike
from analysis.load import SeedRun
from analysis.networks import Anatomy, NoSuchPart, Taps, dissect, layer_of, maps
from analysis.representation import centred_gram, effective_rank, separability
from datasets.store import Dataset
from trainable.checkpoint import RunFolder
from trainable.storage import Storage

PASSED = 128
"""Changed images that pass a network at once."""
SCORED = 32
"""Images on which maps are scored."""
CKA_IMAGES = 1000


@dataclass(kw_only=True)
class Looker:
    """What looking into networks needs, and what it met on the way."""

    storage: Storage
    data: DataFolder
    device: torch.device
    seed: int
    num_images: int
    say: Callable[[str], None]
    """Is told how far it is, and of everything that is left out."""
    faults: list[str] = field(default_factory=list)
    """Checkpoints that are not what they should be, in words."""
    _told: set[str] = field(default_factory=set)

    def block(self, block: tuple[str, ...], cells: Sequence[Cell], baseline: str | None) -> BlockFindings | None:
        """Looks into every run of a block that is done; None where no network could be looked into.

        Args:
            block: its name.
            cells: of the block, those with a run that is done.
            baseline: the augmentation that flips are counted from, as the cells name it.

        Raises:
            RecordError: stored predictions are damaged.
        """
        cells = self._comparable(cells)
        run_of = {cell.row.label: self._shown_run(cell) for cell in cells}
        first = cells[0].runs[0]
        ids = first.final.predictions.sample_ids
        labels = first.final.predictions.labels
        content = str(first.trial["content_sha256"])
        right: NDArray[np.bool_] = np.stack([run_of[cell.row.label].final.predictions.correct for cell in cells])
        by_all: NDArray[np.bool_] = np.logical_and.reduce(right)
        chosen = choose_images(
            right, [(cell.arch, cell.aug) for cell in cells], baseline, first_of(ids, self.seed, content, len(ids))
        )
        shown = np.array([at for _, at in chosen], np.intp)
        scored = first_of(ids, self.seed, content, SCORED, preferred=by_all)
        used = first_of(ids, self.seed, content, self.num_images)
        with tempfile.TemporaryFile() as file:
            plan = _Plan(ids=ids, labels=labels, shown=shown, scored=scored, used=used, file=file)
            found = [self._arm(cell, run_of[cell.row.label], plan) for cell in cells]
            arms = [arm for arm in found if arm is not None]
            alike = plan.alike([[one.run for one in arm.runs] for arm in arms])
        if not arms:
            return None
        data = self.data.of_run(arms[0].runs[0].run)
        return BlockFindings(
            block=block,
            content_sha256=content,
            seed=self.seed,
            arms=tuple(arms),
            sample_ids=ids[used],
            labels=labels[used],
            shown_ids=ids[shown],
            shown_labels=labels[shown],
            kinds=tuple(kind for kind, _ in chosen),
            pictures=np.array(data.test.images[ids[shown]]),
            num_scored=len(scored),
            num_scored_right=int(by_all[scored].sum()),
            alike=alike,
            num_alike=plan.num_alike,
        )

    def _comparable(self, cells: Sequence[Cell]) -> list[Cell]:
        """The cells that were judged on the images of the first; the others are told."""
        first = cells[0].runs[0]

        def same(cell: Cell) -> bool:
            run = cell.runs[0]
            return run.trial["content_sha256"] == first.trial["content_sha256"] and np.array_equal(
                run.final.predictions.sample_ids, first.final.predictions.sample_ids
            )

        for cell in cells:
            if not same(cell):
                self.tell(f"row {cell.row.label}: judged on other images than row {cells[0].row.label}; left out")
        return [cell for cell in cells if same(cell)]

    def _shown_run(self, cell: Cell) -> SeedRun:
        """The first seed whose weights are there; the first where none are."""
        return next(
            (run for run in cell.runs if RunFolder(self.storage, run.run_id).has_checkpoint()),
            cell.runs[0],
        )

    def _arm(self, cell: Cell, shown: SeedRun, plan: _Plan) -> Arm | None:
        runs: list[RunFeatures] = []
        features: NDArray[np.float32] | None = None
        mapped: tuple[dict[str, NDArray[np.float64]], tuple[Scores, ...]] | None = None
        for run in cell.runs:
            began = time.monotonic()
            try:
                data = self.data.of_run(run)
                network = open_network(self.storage, run, self.device)
                anatomy = dissect(network.model, network.spec.data.image_size)
                own = self._features(network, anatomy, data, plan)
                if run is shown:
                    mapped = self._mapped(network, anatomy, data, plan)
            except MissingRun as missing:
                self.tell(str(missing))
                continue
            except WrongCheckpoint as wrong:
                self.faults.append(str(wrong))
                self.tell(str(wrong))
                continue
            except NoSuchPart as missing:
                self.tell(f"run {run.run_id} ({run.trial['model']}): {missing}")
                continue
            runs.append(_described(network, own, plan))
            features = own[HEAD] if features is None else features
            spent = f"{time.monotonic() - began:.1f} s"
            self.say(f"{cell.row.label}, seed {run.seed}: {len(plan.used):,} images, {spent}")
        if features is None:
            return None
        answers = shown.final.predictions.predicted[plan.shown]
        return Arm(
            cell=cell,
            runs=tuple(runs),
            features=features,
            shown=None if mapped is None else shown,
            answers=answers,
            maps={} if mapped is None else mapped[0],
            scores=() if mapped is None else mapped[1],
        )

    def _features(
        self, network: Network, anatomy: Anatomy, data: Dataset, plan: _Plan
    ) -> dict[str, NDArray[np.float32]]:
        """By depth, of a network whose answers are those that were stored."""
        ids = plan.ids[plan.used]
        taps = Taps(network.model, anatomy)
        try:
            check_answers(network, images_of(network, data, ids), ids)
        finally:
            found = taps.taken()
        broken = [depth for depth, values in found.items() if not np.isfinite(values).all()]
        if broken:
            raise WrongCheckpoint(f"run {network.run.run_id}: features at {broken[0]} are no finite numbers")
        return found

    def _mapped(
        self, network: Network, anatomy: Anatomy, data: Dataset, plan: _Plan
    ) -> tuple[dict[str, NDArray[np.float64]], tuple[Scores, ...]]:
        """Maps of the images shown, and scores of those that are scored.

        Raises:
            WrongCheckpoint: the network answers otherwise on them than was stored.
        """
        positions = np.searchsorted(np.array(network.run.trial["classes"]), plan.labels).astype(np.int64)
        batches = []
        for chosen in (plan.shown, plan.scored):
            images = images_of(network, data, plan.ids[chosen])
            check_answers(network, images, plan.ids[chosen])
            batches.append((images.to(self.device), torch.from_numpy(positions[chosen]).to(self.device)))
        shown, (images, target) = batches
        untrained = network.untrained(self.seed)
        keys = plan.ids[plan.scored].tolist()
        found: dict[str, NDArray[np.float64]] = {}
        scores: list[Scores] = []
        for method in METHODS:
            try:
                layer = layer_of(anatomy, method)
                found[method] = times_even(maps(network.model, anatomy, method, *shown))
            except NoSuchPart as missing:
                self.tell(f"{network.spec.model.name}: no {method} maps: {missing}")
                continue
            own, other = (maps(one, anatomy, method, images, target) for one in (network.model, untrained))
            scores.append(_scores(network.model, method, layer, own, other, images, target, keys, self.seed))
        return found, tuple(scores)

    def tell(self, line: str) -> None:
        """Says what is left out, once."""
        if line not in self._told:
            self._told.add(line)
            self.say(line)


class _Plan:
    """Which images of a block are looked at, and the inner products of its runs so far."""

    def __init__(
        self,
        *,
        ids: NDArray[np.int32],
        labels: NDArray[np.int16],
        shown: NDArray[np.intp],
        scored: NDArray[np.intp],
        used: NDArray[np.intp],
        file: IO[bytes],
    ) -> None:
        self.ids, self.labels, self.shown, self.scored, self.used = ids, labels, shown, scored, used
        self.num_alike = min(len(used), CKA_IMAGES)
        self._file = file
        self._places: dict[tuple[str, str], int] = {}
        self._size = self.num_alike * (self.num_alike - 1) // 2

    def keep(self, run_id: str, depth: str, features: NDArray[np.float32]) -> None:
        """Puts a run's inner products aside."""
        if self.num_alike < 4:
            return
        gram = centred_gram(features[: self.num_alike])
        self._file.seek(0, 2)
        self._file.write(gram.astype(np.float32).tobytes())
        self._places[run_id, depth] = len(self._places)

    def alike(self, arms: Sequence[Sequence[SeedRun]]) -> dict[str, NDArray[np.float64]]:
        """Debiased CKA of arms by depth, of the depths that two runs have."""
        if not self._places:
            return {}
        self._file.flush()
        kept = np.memmap(self._file, np.float32, "r", shape=(len(self._places), self._size))
        runs = [(number, run) for number, own in enumerate(arms) for run in own]
        found = {}
        for depth in DEPTHS:
            places = [self._places.get((run.run_id, depth)) for _, run in runs]
            rows = [place for place in places if place is not None]
            if len(rows) < 2:
                continue
            pairs = np.full((len(runs),) * 2, np.nan)
            here = [i for i, place in enumerate(places) if place is not None]
            values = kept[rows]
            pairs[np.ix_(here, here)] = values @ values.T
            found[depth] = mean_alike(pairs, [number for number, _ in runs], [run.seed for _, run in runs], len(arms))
        return found


def _described(network: Network, features: dict[str, NDArray[np.float32]], plan: _Plan) -> RunFeatures:
    for depth, values in features.items():
        plan.keep(network.run.run_id, depth, values)
    return RunFeatures(
        run=network.run,
        weights_sha256=network.weights_sha256,
        dims={depth: values.shape[1] for depth, values in features.items()},
        ranks={depth: effective_rank(values) for depth, values in features.items()},
        separability=separability(features[HEAD], plan.labels[plan.used]),
    )


def _scores(
    model: nn.Module,
    method: str,
    layer: str,
    own: NDArray[np.float64],
    untrained: NDArray[np.float64],
    images: torch.Tensor,
    target: torch.Tensor,
    keys: Sequence[int],
    seed: int,
) -> Scores:
    grid = (own.shape[1], own.shape[2])
    flat = np.zeros(grid)
    areas = []
    for i, key in enumerate(keys):
        rng = rng_for(seed, method, key)
        orders = [order(values, rng) for values in (own[i], flat, untrained[i])]
        areas.append(_areas(model, images[i], int(target[i]), orders, grid))
    found = np.array(areas)  # [n, orders, deletion and insertion]
    return Scores(
        method=method,
        layer=layer,
        grid=grid,
        deletion=found[:, 0, 0],
        insertion=found[:, 0, 1],
        deletion_random=found[:, 1, 0],
        insertion_random=found[:, 1, 1],
        deletion_untrained=found[:, 2, 0],
        insertion_untrained=found[:, 2, 1],
        likeness=np.array([likeness(one, other) for one, other in zip(own, untrained, strict=True)]),
    )


def _areas(
    model: nn.Module, image: torch.Tensor, target: int, orders: Sequence[NDArray[np.intp]], grid: tuple[int, int]
) -> NDArray[np.float64]:
    """[orders, 2] areas under the probability of the class as blocks are taken away and put back. What is gone has the
    image's own mean colour."""
    gone = np.stack([removals(blocks, grid, image.shape[-1]) for blocks in orders])
    both = torch.from_numpy(np.stack([gone, ~gone], axis=1)).to(image.device)  # [orders, 2, k + 1, S, S]
    mean = image.mean(dim=(1, 2), keepdim=True)
    changed = torch.where(both.flatten(0, 2)[:, None], mean, image)
    with torch.inference_mode():
        found = torch.cat([model(part).float().softmax(dim=1)[:, target] for part in torch.split(changed, PASSED)])
    return area(found.double().cpu().numpy().reshape(both.shape[:3]), grid[0] * grid[1])
