"""The live table and the plain lines, with a clock of our own."""

from __future__ import annotations

import io

from rich.console import Console

from tuner.dag import RunState
from tuner.progress import LINE_EVERY_S, Board

LABELS = {"1": "Control-1", "2": "Exp-1", "3": "Exp-2"}
STATES = {"1": RunState.DONE, "2": RunState.READY, "3": RunState.WAITING}
COST = {"1": 5.0, "2": 3.0, "3": 1.0}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def rows(top1: float) -> list[dict[str, object]]:
    train = {"split": "train", "epoch": 2.0, "loss_nats": 1.25, "top1": None}
    return [train, {"split": "test", "epoch": 2.0, "loss_nats": 1.5, "top1": top1}]


def play(console: Console, clock: Clock) -> None:
    with Board("grid paper", LABELS, STATES, COST, console, clock) as board:
        board.say("starting Ray")
        board.started("2")
        clock.now = 60
        board.reported("2", 0.5, rows(0.4242))
        clock.now = 60 + LINE_EVERY_S - 1
        board.refresh()
        clock.now = 74
        board.reported("2", 1.0, rows(0.5))
        board.ended("2", RunState.DONE)
        board.started("3")
        board.ended("3", RunState.FAILED, "NonFiniteLoss: at step 7 [bold]")


def test_without_a_terminal_it_speaks_lines_of_any_length() -> None:
    sink = io.StringIO()
    play(Console(file=sink, width=40), Clock())
    assert sink.getvalue().splitlines() == [
        "starting Ray",
        "[   0:00] Exp-1: started",
        "[   1:00] 1 of 3 done, 38 % of the work, about 1:40 left; Exp-1 50 %",
        "[   1:14] Exp-1: done in 1:14, top-1 50.00 % (2 of 3 done, 75 % of the work, about 0:24 left)",
        "[   1:14] Exp-2: started",
        "[   1:14] Exp-2: FAILED in 0:00: NonFiniteLoss: at step 7 [bold] (2 of 3 done, 1 failed, 75 % of the work, "
        "about 0:24 left)",
    ]


def test_on_a_terminal_it_draws_one_table() -> None:
    sink = io.StringIO()
    console = Console(file=sink, width=100, height=20, force_terminal=True, color_system=None)
    clock = Clock()
    with Board("grid paper", LABELS, STATES, COST, console, clock) as board:
        board.started("2")
        clock.now = 30
        board.reported("2", 0.5, rows(0.4242))
        frame = console_text(board, console)
    assert "grid paper  1 of 3 done, 38 % of the work, about 0:50 left  0:30" in frame
    line = next(line for line in frame.splitlines() if line.startswith("Exp-1"))
    assert line.split()[-3:] == ["2", "1.250", "42.42"]
    assert "Control-1" not in frame, "what was done before is counted, not shown"


def console_text(board: Board, console: Console) -> str:
    with console.capture() as captured:
        console.print(board._table())
    return captured.get()
