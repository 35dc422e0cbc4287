"""Ctrl-C while an answer is on its way."""

import os
import signal

import pytest

from orchestrator_cli.interrupts import HeldInterrupt


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_is_held_until_the_block_has_ended() -> None:
    with HeldInterrupt() as interrupt:
        press()
        assert interrupt.came
    with pytest.raises(KeyboardInterrupt):
        press()


def test_the_second_is_heeded_at_once() -> None:
    with HeldInterrupt():
        press()
        with pytest.raises(KeyboardInterrupt):
            press()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_none_is_none() -> None:
    with HeldInterrupt() as interrupt:
        pass
    assert not interrupt.came
