"""What a person sees while a grid runs: one live table on a terminal, plain lines elsewhere. Knows nothing of Ray.

The table never grows beyond the window, and lines become rarer the longer a grid runs and the more runs it has: a
thousand trainings overnight are a few hundred lines of a log file. Notebooks get lines.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.dag import RunState

LINE_EVERY_S = 15.0
LINE_AT_MOST_EVERY_S = 300.0
MANY = 40
"""With more runs than this to do, their starts and ends are told together."""
FAILURES_TOLD = 20
"""So many failures get a line each at once; all of them are told, by reason, at the end."""
_NAMED = 8
_WIDE = 110


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """A grid as a whole."""

    share_done: float
    """Of this invocation's work, in [0, 1]."""
    left_s: float | None
    """Seconds left at the rate so far; None until there is one."""


_COUNTED = (RunState.PRUNED, RunState.FAILED, RunState.BLOCKED, RunState.HELD)


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
    images_per_s: float | None = None
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
        quiet: tell of failures only.
    """

    def __init__(
        self,
        title: str,
        labels: Mapping[str, str],
        states: Mapping[str, RunState],
        cost: Mapping[str, float],
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        *,
        quiet: bool = False,
    ) -> None:
        self._title, self._console, self._clock, self._quiet = title, console, clock, quiet
        self._lines = {
            run_id: _Line(label=label, cost=cost[run_id], state=states[run_id]) for run_id, label in labels.items()
        }
        self.expect(cost)
        self._many = sum(not line.state.is_finished() for line in self._lines.values()) > MANY
        self._untold: list[str] = []
        self._failures = 0
        self._began = clock()
        self._spoke = clock()
        self._live: Live | None = None
        self._message = ""

    def __enter__(self) -> Board:
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        elif self._untold:
            self._heartbeat()

    def expect(self, cost: Mapping[str, float]) -> None:
        """Takes a better relative cost of every run, by run id, for the overall share; time left counts from here."""
        self._expected = self._clock()
        for run_id, line in self._lines.items():
            line.cost = cost[run_id]
        self._ahead = sum(line.cost for line in self._lines.values() if not line.state.is_finished()) or 1.0

    def say(self, message: str) -> None:
        """Shows what is going on beyond the runs, such as the start of the cluster."""
        self._message = message
        if self._live is None and message and not self._quiet:
            self._speak(message)
        self.refresh()

    def add(self, run_id: str, label: str, cost: float, state: RunState, reason: str | None = None) -> None:
        """A further run of a sweep joins."""
        self._lines[run_id] = _Line(label=label, cost=cost, state=state, reason=reason)
        self._ahead += 0.0 if state.is_finished() else cost
        if not self._many:
            self._event(f"{label}: proposed" if not state.is_finished() else f"{label}: {state.value} already")

    def started(self, run_id: str) -> None:
        """A run's process is being started."""
        line = self._lines[run_id]
        line.state, line.started, line.changed = RunState.RUNNING, self._clock(), self._clock()
        if not self._many:
            self._event(f"{line.label}: started")

    def reported(
        self, run_id: str, progress: float, rows: Sequence[Mapping[str, Any]], images_per_s: float | None = None
    ) -> None:
        """A run says how far it is and how fast, with the rows of an evaluation if it made one. Top-1 is that of the
        hold-out where there is one: who chooses by looking at it shall not choose on the test set."""
        line = self._lines[run_id]
        line.progress, line.images_per_s = progress, images_per_s
        by_split = {row["split"]: row for row in rows}
        if by_split:
            line.epoch = by_split["test"]["epoch"]
            if "train" in by_split:  # a run that only evaluates has no loss of training
                line.loss = by_split["train"]["loss_nats"]
            line.top1 = by_split.get("val", by_split["test"])["top1"]
        self.refresh()

    def ended(self, run_id: str, state: RunState, reason: str | None = None) -> None:
        """A run is done, failed, or blocked by another's failure. To be told of an end twice is fine."""
        line = self._lines[run_id]
        if line.state is state:
            return
        took = f" in {duration(self._clock() - line.started)}" if line.started is not None else ""
        line.state, line.reason, line.changed = state, reason, self._clock()
        if state is RunState.DONE:
            line.progress = 1.0
            if self._many:
                self._untold.append(line.label)
            else:
                top1 = f", top-1 {_percent(line.top1)} %" if line.top1 is not None else ""  # another process has it
                self._event(f"{line.label}: done{took}{top1} ({self._summary()})")
        elif state is RunState.PRUNED:
            line.cost, self._ahead = line.cost * line.progress, self._ahead - line.cost * (1 - line.progress)
            line.progress = 1.0
            if self._many:
                self._untold.append(f"{line.label} (pruned)")
            else:
                self._event(f"{line.label}: pruned{took}: {reason} ({self._summary()})")
        elif state is RunState.HELD:
            self._event(f"{line.label}: held: {reason}")
        else:
            self._failures += 1
            if self._failures <= FAILURES_TOLD:
                self._event(f"{line.label}: {state.value.upper()}{took}: {reason} ({self._summary()})", failure=True)
            if self._failures == FAILURES_TOLD:
                self._event("more failures are told at the end", failure=True)
        self.refresh()

    def refresh(self) -> None:
        """Redraws the table, or speaks a line when the last is long ago."""
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            return
        elapsed = self._clock() - self._began
        if self._clock() - self._spoke >= min(LINE_AT_MOST_EVERY_S, max(LINE_EVERY_S, elapsed / 40)):
            self._heartbeat()

    def totals(self) -> Totals:
        """How much of the work is done, and how long the rest will take."""
        todo = [line for line in self._lines.values() if line.started is not None]
        share = min(1.0, sum(line.cost * line.progress for line in todo) / self._ahead)
        elapsed = self._clock() - self._expected
        return Totals(share_done=share, left_s=elapsed * (1 - share) / share if share > 0.02 else None)

    def _heartbeat(self) -> None:
        running = [line for line in self._lines.values() if line.state is RunState.RUNNING]
        shown = _some(f"{line.label} {100 * line.progress:.0f} %" for line in running) or "nothing running"
        since = f"; done since: {_some(self._untold)}" if self._untold else ""
        self._untold = []
        self._event(f"{self._summary()}; {shown}{since}")

    def _event(self, text: str, *, failure: bool = False) -> None:
        self._spoke = self._clock()
        if self._live is None and (failure or not self._quiet):
            self._speak(f"[{duration(self._clock() - self._began):>7}] {text}")

    def _speak(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _counts(self) -> dict[RunState, int]:
        return {state: sum(line.state is state for line in self._lines.values()) for state in RunState}

    def _summary(self) -> str:
        counts = self._counts()
        parts = [f"{counts[RunState.DONE]} of {len(self._lines)} done"]
        parts += [f"{counts[state]} {state.value}" for state in _COUNTED if counts[state]]
        totals = self.totals()
        parts.append(f"{100 * totals.share_done:.0f} % of the work")
        return ", ".join([*parts, f"about {duration(totals.left_s)} left"] if totals.left_s else parts)

    def _table(self) -> Group:
        wide = self._console.width >= _WIDE
        lines = self._shown()
        name_width = min(40 if wide else 24, max((cell_len(line.label) for line in lines), default=3))
        numbers = {"epoch": 6, "loss": 7, "top-1 %": 7, **({"images/s": 9} if wide else {})}
        bar_width, gap = (24, 2) if wide else (10, 1)
        used = name_width + bar_width + sum(numbers.values()) + gap * (2 + len(numbers))
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
        table.add_column("run", no_wrap=True, overflow="ellipsis", width=name_width)
        table.add_column("", width=bar_width)
        for name, width in numbers.items():
            table.add_column(name, justify="right", no_wrap=True, width=width)
        table.add_column("", no_wrap=True, overflow="ellipsis", width=max(1, self._console.width - used))
        for line in lines:
            starting = "starting" if line.progress == 0 else ""
            note = {RunState.RUNNING: starting, RunState.FAILED: f"FAILED {line.reason}"}
            speed = "" if line.images_per_s is None else f"{line.images_per_s:,.0f}"
            table.add_row(
                _shortened(line.label, name_width),
                ProgressBar(total=1.0, completed=line.progress, width=bar_width),
                "" if line.epoch is None else f"{line.epoch:g}",
                "" if line.loss is None else f"{line.loss:.3f}",
                _percent(line.top1),
                *((speed,) if wide else ()),
                Text(note.get(line.state, line.state.value)),
            )
        return Group(
            self._row(f"{self._title}  {duration(self._clock() - self._began)}", "bold"),
            self._row(self._summary(), "bold"),
            table,
            self._row(self._rest(lines), "dim"),
            self._row(self._message, "dim"),
        )

    def _row(self, text: str, style: str) -> Text:
        """One line of the window, whatever its width."""
        return Text(text, style=style, no_wrap=True, overflow="ellipsis")

    def _rest(self, shown: Sequence[_Line]) -> str:
        """What the window has no room for, and what has not begun."""
        counts = self._counts()
        for line in shown:
            counts[line.state] -= 1
        to_come = counts[RunState.WAITING] + counts[RunState.READY]
        parts = [
            f"{counts[state]} {state.value}"
            for state in (RunState.RUNNING, RunState.FAILED, RunState.BLOCKED, RunState.HELD, RunState.DONE)
            if counts[state]
        ]
        parts += [f"{to_come} to come"] if to_come else []
        return f"and {', '.join(parts)}" if parts else ""

    def _shown(self) -> list[_Line]:
        """Running runs, then failed ones, then the latest that are done, as far as the window allows."""
        room = max(1, self._console.size.height - 7)  # title, summary, head, rest, two lines of message, the cursor
        lines = self._lines.values()
        running = [line for line in lines if line.state is RunState.RUNNING][:room]
        finished = [line for line in lines if line.state is RunState.DONE and line.started is not None]
        left = room - len(running)
        spared = min(len(finished), left // 3)  # hundreds of failures do not hide what is done
        failed = _latest([line for line in lines if line.state is RunState.FAILED], left - spared)
        return _latest(finished, left - len(failed)) + failed + running


def _latest(lines: list[_Line], number: int) -> list[_Line]:
    """The `number` of lines that changed last, the newest at the end."""
    return sorted(lines, key=lambda line: line.changed)[len(lines) - number if number < len(lines) else 0 :]


def _shortened(label: str, width: int) -> Text:
    """A label as long as its column, cut in the middle: rows of one grid often differ at the end alone."""
    if cell_len(label) <= width:
        return Text(label)
    half = (width - 1) // 2
    return Text(f"{set_cell_size(label, width - 1 - half)}…{label[-half:]}")


def _some(names: Iterable[str]) -> str:
    """A few names, and how many more there are."""
    known = list(names)
    rest = len(known) - _NAMED
    return ", ".join(known[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def duration(seconds: float) -> str:
    """1:05, or 4 h 29 min."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d}"
