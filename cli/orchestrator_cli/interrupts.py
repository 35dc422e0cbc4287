"""Ctrl-C while a request is on its way whose answer must not be missed."""

import signal
from types import FrameType, TracebackType
from typing import Any


class HeldInterrupt:
    """Holds back the first Ctrl-C until the block has ended; the second one is heeded at once.

    Without it a job could be stored and its id be lost with the answer: it would run, and nobody would cancel it.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: Any = None

    def __enter__(self) -> "HeldInterrupt":
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, _type: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, _signum: int, _frame: FrameType | None) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
