"""What a person sees while a grid runs: one live table on a terminal, plain lines elsewhere. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.dag import RunState

LINE_EVERY_S = 15.0


@dataclass(kw_only=True, slots=True)
class _Line:
    """One run on the board."""

    label: str
    cost: float
    state: RunState
    progress: float = 0.0
    epoch: float | None = None
    loss: float | None = None
    top1: float | None = None
    reason: str | None = None
    started: float | None = None
    changed: float = 0.0


class Board:
    """Shows the runs of a grid. Use as a context manager; `refresh` is called as often as one likes.

    Args:
        title: what is being run.
        labels: by run id, in the grid's order.
        states: where they stand at the beginning.
        cost: relative cost by run id, for the overall bar.
        console: where to draw.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        title: str,
        labels: Mapping[str, str],
        states: Mapping[str, RunState],
        cost: Mapping[str, float],
        console: Console,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title, self._console, self._clock = title, console, clock
        self._lines = {
            run_id: _Line(label=label, cost=cost[run_id], state=states[run_id]) for run_id, label in labels.items()
        }
        self._ahead = sum(line.cost for line in self._lines.values() if not line.state.is_finished()) or 1.0
        self._began = clock()
        self._spoke = clock()
        self._live: Live | None = None
        self._message = ""

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, message: str) -> None:
        """Shows what is going on beyond the runs, such as the start of the cluster."""
        self._message = message
        if self._live is None and message:
            self._speak(message)
        self.refresh()

    def started(self, run_id: str) -> None:
        """A run's process is being started."""
        line = self._lines[run_id]
        line.state, line.started, line.changed = RunState.RUNNING, self._clock(), self._clock()
        self._event(f"{line.label}: started")

    def reported(self, run_id: str, progress: float, rows: Sequence[Mapping[str, Any]]) -> None:
        """A run says how far it is, with the rows of an evaluation if it made one."""
        line = self._lines[run_id]
        line.progress = progress
        for row in rows:
            line.epoch = row["epoch"]
            if row["split"] == "train":
                line.loss = row["loss_nats"]
            elif row["split"] == "test":
                line.top1 = row["top1"]
        self.refresh()

    def ended(self, run_id: str, state: RunState, reason: str | None = None) -> None:
        """A run is done, failed, or blocked by another's failure."""
        line = self._lines[run_id]
        took = f" in {_duration(self._clock() - line.started)}" if line.started is not None else ""
        line.state, line.reason, line.changed = state, reason, self._clock()
        if state is RunState.DONE:
            line.progress = 1.0
            self._event(f"{line.label}: done{took}, top-1 {_percent(line.top1)} % ({self._summary()})")
        else:
            self._event(f"{line.label}: {state.value.upper()}{took}: {reason} ({self._summary()})")

    def refresh(self) -> None:
        """Redraws the table, or speaks a line when the last is long ago."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif self._clock() - self._spoke >= LINE_EVERY_S:
            running = [line for line in self._lines.values() if line.state is RunState.RUNNING]
            shown = ", ".join(f"{line.label} {100 * line.progress:.0f} %" for line in running) or "nothing running"
            self._event(f"{self._summary()}; {shown}")

    def _event(self, text: str) -> None:
        self._spoke = self._clock()
        if self._live is None:
            self._speak(f"[{_duration(self._clock() - self._began):>7}] {text}")
        else:
            self.refresh()

    def _speak(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _summary(self) -> str:
        counts = {state: sum(line.state is state for line in self._lines.values()) for state in RunState}
        done, whole = counts[RunState.DONE], len(self._lines)
        parts = [f"{done} of {whole} done"]
        parts += [f"{counts[state]} {state.value}" for state in (RunState.FAILED, RunState.BLOCKED) if counts[state]]
        share, left = self._share()
        parts.append(f"{100 * share:.0f} % of the work")
        return ", ".join([*parts, f"about {_duration(left)} left"] if left else parts)

    def _share(self) -> tuple[float, float | None]:
        """Share of this invocation's work that is done, and seconds left at the rate so far."""
        todo = [line for line in self._lines.values() if line.started is not None]
        share = min(1.0, sum(line.cost * line.progress for line in todo) / self._ahead)
        elapsed = self._clock() - self._began
        return share, elapsed * (1 - share) / share if share > 0.02 else None

    def _table(self) -> Group:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("run", "", "epoch", "loss", "top-1 %", ""):
            table.add_column(name, justify="right" if name in ("epoch", "loss", "top-1 %") else "left", no_wrap=True)
        for line in self._shown():
            starting = "starting" if line.progress == 0 else ""
            note = {RunState.RUNNING: starting, RunState.FAILED: f"FAILED {line.reason}"}
            table.add_row(
                line.label,
                ProgressBar(total=1.0, completed=line.progress, width=24),
                "" if line.epoch is None else f"{line.epoch:g}",
                "" if line.loss is None else f"{line.loss:.3f}",
                _percent(line.top1),
                Text(note.get(line.state, line.state.value)[:60]),
            )
        head = Text(f"{self._title}  {self._summary()}  {_duration(self._clock() - self._began)}", style="bold")
        return Group(head, table, Text(self._message, style="dim"))

    def _shown(self) -> list[_Line]:
        """Running and failed runs, and the latest finished ones as far as the window allows."""
        lines = [line for line in self._lines.values() if line.state in (RunState.RUNNING, RunState.FAILED)]
        finished = [line for line in self._lines.values() if line.state is RunState.DONE and line.started is not None]
        room = max(2, self._console.size.height - len(lines) - 5)
        latest = sorted(finished, key=lambda line: line.changed)[-room:]
        return latest + lines


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
