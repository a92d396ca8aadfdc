"""SIGTERM ends a command as Ctrl-C does."""

from __future__ import annotations

import os
import signal

import pytest

from tuner.signals import interrupt_on_sigterm, sigterm_as_interrupt


def test_sigterm_raises_an_interrupt_within_the_block_and_former_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # somebody else, as Ray does
        interrupt_on_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
