"""A training step as one launch: recorded once as a CUDA graph, then replayed on every full batch.

Small images leave a card waiting for the hundreds of kernels of a step to be launched one by one. A recorded step is
the very same kernels without that wait. That it is the same is not believed but tried: before the first replay that
counts, one step is made both ways from one state, and every tensor must come out equal to the bit; else the run goes on
without. Recording leaves no trace in the run: weights, optimiser, sums and random numbers are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Parts = tuple[torch.Tensor, ...]
Step = Callable[..., torch.Tensor]
"""From a batch's tensors to its mean loss; changes weights, optimiser and sums in place."""
Record = Callable[[Callable[[], None]], Callable[[], None]]
"""Runs a step a few times and returns what replays it."""

WARM_UP = 3
"""Steps before recording, as torch asks for: libraries choose and allocate in them."""


class NotTheSame(Exception):
    """A recorded step gives other bits than a plain one."""


def record_on_card(step: Callable[[], None]) -> Callable[[], None]:
    """Warms up on a stream aside, then records. Whatever waits for the device or leaves it raises RuntimeError."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    torch.cuda.empty_cache()  # what plain steps held is room for the recorded one
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # the loader's thread goes on pinning memory
        step()
    return graph.replay


class RecordedStep:
    """A step that was recorded for batches of one shape.

    Args:
        step: to be recorded.
        batch: tensors of a full batch.
        state: every tensor that a step changes, looked up anew at each call: the optimiser makes its own in the first.
        record: `record_on_card`, or what stands for it on a CPU.

    Raises:
        NotTheSame: a replay gives other bits.
        RuntimeError: the step cannot be recorded.
    """

    def __init__(self, step: Step, batch: Parts, state: Callable[[], Sequence[torch.Tensor]], record: Record) -> None:
        self._inputs = tuple(torch.empty_like(part).copy_(part) for part in batch)
        self._loss = torch.zeros((), dtype=torch.float64, device=batch[0].device)

        def whole() -> None:
            self._loss.copy_(step(*self._inputs))

        before = _Snapshot(state())
        try:
            self._replay = record(whole)
            before.put_back(state())
            whole()
            plain = _Snapshot(state())
            before.put_back(state())
            self._replay()
            if not plain.equals(state()):
                raise NotTheSame("a recorded step gives other bits than a plain one")
        finally:
            before.put_back(state())

    @property
    def num_images(self) -> int:
        """Of the batches that it takes."""
        return len(self._inputs[0])

    def __call__(self, *batch: torch.Tensor) -> torch.Tensor:
        """The step on a batch; returns its mean loss, a tensor that the next step overwrites."""
        for own, part in zip(self._inputs, batch, strict=True):
            own.copy_(part, non_blocking=True)
        self._replay()
        return self._loss


class _Snapshot:
    """Copies of tensors in the machine's memory, with the state of torch's generators."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def put_back(self, tensors: Sequence[torch.Tensor]) -> None:
        """Tensors that came later, the optimiser's, began as zeros."""
        with torch.no_grad():
            for number, tensor in enumerate(tensors):
                if number < len(self._tensors):
                    tensor.copy_(self._tensors[number])
                else:
                    tensor.zero_()
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)

    def equals(self, tensors: Sequence[torch.Tensor]) -> bool:
        return len(tensors) == len(self._tensors) and all(
            torch.allclose(one, other.detach().cpu(), rtol=0, atol=0, equal_nan=True)
            for one, other in zip(self._tensors, tensors, strict=True)
        )
