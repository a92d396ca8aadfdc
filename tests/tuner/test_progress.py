"""The live table and the plain lines, with a clock of our own."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from tuner.dag import RunState
from tuner.progress import FAILURES_TOLD, LINE_EVERY_S, Board

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


def test_a_run_that_only_evaluates_has_no_loss() -> None:
    sink, clock = io.StringIO(), Clock()
    with Board("grid", LABELS, STATES, COST, Console(file=sink, width=80), clock) as board:
        board.started("2")
        board.reported("2", 0.0, [row for row in rows(0.25) if row["split"] == "test"])
        board.ended("2", RunState.DONE)
    assert "Exp-1: done in 0:00, top-1 25.00 %" in sink.getvalue()


def test_top1_is_the_hold_outs_where_there_is_one() -> None:
    sink, clock = io.StringIO(), Clock()
    with Board("sweep", LABELS, STATES, COST, Console(file=sink, width=80), clock) as board:
        board.started("2")
        held_out = {"split": "val", "epoch": 2.0, "loss_nats": 1.5, "top1": 0.25}
        board.reported("2", 1.0, [*rows(0.75), held_out])
        board.ended("2", RunState.DONE)
    assert "top-1 25.00 %" in sink.getvalue() and "75.00" not in sink.getvalue()


def test_what_came_before_the_trainings_is_no_measure_of_the_time_left() -> None:
    """A preflight of ten minutes, then half of the work in one: one is left."""
    sink, clock = io.StringIO(), Clock()
    with Board("grid", {"2": "Exp-1"}, {"2": RunState.READY}, {"2": 1.0}, Console(file=sink, width=80), clock) as board:
        clock.now = 600
        board.expect({"2": 30.0})
        board.started("2")
        clock.now = 660
        board.reported("2", 0.5, rows(0.5))
    assert "50 % of the work, about 1:00 left" in sink.getvalue()


def test_on_a_terminal_it_draws_one_table() -> None:
    sink = io.StringIO()
    console = Console(file=sink, width=100, height=20, force_terminal=True, color_system=None)
    clock = Clock()
    with Board("grid paper", LABELS, STATES, COST, console, clock) as board:
        board.started("2")
        clock.now = 30
        board.reported("2", 0.5, rows(0.4242))
        frame = console_text(board, console)
    assert "grid paper  0:30\n1 of 3 done, 38 % of the work, about 0:50 left\n" in frame
    line = next(line for line in frame.splitlines() if line.startswith("Exp-1"))
    assert line.split()[-3:] == ["2", "1.250", "42.42"]
    assert "Control-1" not in frame, "what was done before is counted, not shown"
    assert "and 1 done, 1 to come" in frame


def test_further_runs_and_early_ends_keep_the_share_of_the_work_right() -> None:
    sink = io.StringIO()
    with Board("sweep", {"1": "a"}, {"1": RunState.READY}, {"1": 4.0}, Console(file=sink), Clock()) as board:
        board.started("1")
        board.reported("1", 0.5, [])
        board.ended("1", RunState.PRUNED, "below the cutoff")
        board.add("2", "b", 2.0, RunState.READY)
        board.add("3", "c", 9.0, RunState.DONE)
        board.started("2")
        board.ended("2", RunState.DONE)
    lines = sink.getvalue().splitlines()
    assert lines[1] == "[   0:00] a: pruned in 0:00: below the cutoff (0 of 1 done, 1 pruned, 100 % of the work)"
    assert lines[2:4] == ["[   0:00] b: proposed", "[   0:00] c: done already"]
    assert lines[-1].endswith("(2 of 3 done, 1 pruned, 100 % of the work)")


def console_text(board: Board, console: Console) -> str:
    with console.capture() as captured:
        console.print(board._table())
    return captured.get()


def big(console: Console, number: int, *, quiet: bool = False) -> tuple[Board, Clock]:
    """A board with `number` runs that have not begun."""
    ids = [str(one) for one in range(number)]
    labels = {one: f"tiny-resnet50-cutmix-with-a-long-label-{int(one):03d}" for one in ids}
    clock = Clock()
    board = Board(
        "grid paper",
        labels,
        dict.fromkeys(ids, RunState.READY),
        dict.fromkeys(ids, 1.0),
        console,
        clock,
        quiet=quiet,
    )
    return board, clock


def drive(board: Board, clock: Clock, number: int, *, failing: int = 0, at_once: int = 4, each_s: float = 240) -> None:
    """Runs everything, `at_once` at a time; the first `failing` fail. Reports come every two seconds of the clock."""
    waiting = [str(one) for one in range(number)]
    with board:
        while waiting:
            now, waiting = waiting[:at_once], waiting[at_once:]
            for one in now:
                board.started(one)
            for step in range(int(each_s / 2)):
                clock.now += 2
                for one in now:
                    board.reported(one, step * 2 / each_s, [], 1234.5)
            for one in now:
                failed = int(one) < failing
                board.ended(one, *((RunState.FAILED, "OSError: full") if failed else (RunState.DONE,)))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
@pytest.mark.parametrize("number", [24, 500])
@pytest.mark.parametrize("state", [RunState.RUNNING, RunState.FAILED, RunState.DONE, None])
def test_the_table_never_outgrows_its_window(width: int, height: int, number: int, state: RunState | None) -> None:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    board, clock = big(console, number)
    for one in range(number):
        board.started(str(one))
        clock.now += 1
        board.reported(str(one), 0.5, rows(0.4), 123456.7)
        if state in (RunState.FAILED, RunState.DONE):
            board.ended(str(one), state, "NonFiniteLoss: " + "very long " * 30)
        elif state is None and one % 3:
            board.ended(str(one), RunState.DONE if one % 3 == 1 else RunState.FAILED, "OSError: [bold]")
    board.say(
        "Ray dashboard http://127.0.0.1:8265 (asks for the token in ~/.ray/auth_token)\nmetrics http://127.0.0.1:1"
    )
    lines = console_text(board, console).splitlines()
    assert len(lines) <= height - 1 and max(map(len, lines)) <= width
    shown = sum(line.startswith("tiny-resnet") for line in lines)
    assert shown == min(number, height - 7)
    if shown < number and state is not None:
        assert f"and {number - shown} {state.value}" in lines[-3]
    assert lines[-2].startswith("Ray dashboard") and lines[-1] == "metrics http://127.0.0.1:1"
    assert all(" 1.250 " in line and " 40.00" in line for line in lines if line.startswith("tiny-resnet"))


def test_running_rows_come_first_when_room_is_short() -> None:
    console = Console(file=io.StringIO(), width=80, height=11, force_terminal=True, color_system=None)
    board, clock = big(console, 10)
    for one in range(10):
        board.started(str(one))
        clock.now += 1
    for one in (0, 1, 2):
        board.ended(str(one), RunState.DONE)
    for one in (3, 4, 5, 6):
        board.ended(str(one), RunState.FAILED, "OSError: full")
        clock.now += 1
    shown = [line for line in console_text(board, console).splitlines() if "starting" in line]
    assert len(shown) == 3
    text = console_text(board, console)
    assert "FAILED OSError: full" in text and "and 3 failed, 3 done" in text
    assert "tiny-resnet5…g-label-009" in text, "cut in the middle: rows often differ at the end alone"


def test_a_night_of_five_hundred_runs_is_a_few_hundred_lines() -> None:
    sink = io.StringIO()
    board, clock = big(Console(file=sink, width=160), 500)
    drive(board, clock, 500, failing=100)
    lines = sink.getvalue().splitlines()
    assert clock.now == 30_000 and 50 < len(lines) < 300, len(lines)
    assert sum("FAILED in 4:00: OSError: full" in line for line in lines) == FAILURES_TOLD
    assert sum("more failures are told at the end" in line for line in lines) == 1
    assert "400 of 500 done, 100 failed" in lines[-1]
    told = [line.split("done since: ")[1] for line in lines if "done since: " in line]
    assert told and sum("label-499" in names for names in told) == 1
    assert all(names.count("label") <= 8 for names in told)


def test_twenty_four_runs_are_told_one_by_one() -> None:
    sink = io.StringIO()
    board, clock = big(Console(file=sink, width=160), 24)
    drive(board, clock, 24, failing=2)
    lines = sink.getvalue().splitlines()
    assert [sum(text in line for line in lines) for text in (": started", ": done in", ": FAILED in")] == [24, 22, 2]
    seconds = [int(line[1:8].split(":")[0]) * 60 + int(line[1:8].split(":")[1]) for line in lines]
    gaps = [later - earlier for earlier, later in itertools.pairwise(seconds)]
    assert max(gaps) <= clock.now / 40 + 4


def test_quiet_tells_of_failures_only() -> None:
    sink = io.StringIO()
    board, clock = big(Console(file=sink, width=160), 6, quiet=True)
    board.say("starting Ray")
    drive(board, clock, 6, failing=1)
    (line,) = sink.getvalue().splitlines()
    assert "label-000: FAILED in 4:00: OSError: full" in line


def test_quiet_draws_no_table_on_a_terminal() -> None:
    sink = io.StringIO()
    board, clock = big(Console(file=sink, width=80, height=24, force_terminal=True), 3, quiet=True)
    drive(board, clock, 3)
    assert sink.getvalue() == ""


def test_a_notebook_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[str] = []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: outputs.append(text))
    console = Console(force_jupyter=True, width=100)
    play(console, Clock())
    assert outputs[:2] == ["starting Ray\n", "[   0:00] Exp-1: started\n"] and len(outputs) == 6
    board, clock = big(console, 500)
    drive(board, clock, 500, each_s=20)
    assert len(outputs) < 200 and "500 of 500 done" in outputs[-1]


def test_a_notebook_without_ipython_is_no_error() -> None:
    play(Console(force_jupyter=True, width=100), Clock())


def test_an_end_told_twice_is_one_line() -> None:
    sink = io.StringIO()
    board, _ = big(Console(file=sink, width=160), 2)
    for _ in range(2):
        board.ended("0", RunState.BLOCKED, "a run that it starts from failed")
    assert sink.getvalue().count("BLOCKED: a run that it starts from failed") == 1


def test_a_run_that_another_process_trains_is_held_and_then_done() -> None:
    sink = io.StringIO()
    board, _ = big(Console(file=sink, width=160), 2)
    board.ended("0", RunState.HELD, "trained by attempt 7")
    board.ended("0", RunState.DONE)
    held, done = sink.getvalue().splitlines()
    assert held.endswith("held: trained by attempt 7")
    assert ": done (1 of 2 done" in done and "top-1" not in done, "what it reached is not known here"
    assert board.totals().share_done == 0.0, "none of it was this invocation's work"
