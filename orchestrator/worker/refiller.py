"""A thread that asks for more jobs for this host while the ledger commits what the host has done."""

import logging
import threading
from collections.abc import Callable
from typing import Final

from orchestrator.errors import StoreUnavailable

logger = logging.getLogger(__name__)

#: Pause after the database did not answer, in seconds.
PAUSE: Final = 1.0


class Refiller(threading.Thread):
    """Admits waiting jobs for this host, on a connection of its own; one asking at a time, the latest wish counts."""

    def __init__(self, refill: Callable[[int], int]) -> None:
        """Make it.

        Args:
            refill: Admits up to so many waiting jobs and publishes their entries; returns how many.
        """
        super().__init__(name="refiller", daemon=True)
        self._refill = refill
        self._changed = threading.Condition()
        self._wanted = 0
        self._stopping = False

    def ask(self, limit: int) -> None:
        """Have up to ``limit`` more jobs admitted for this host."""
        with self._changed:
            self._wanted = limit
            self._changed.notify()

    def stop(self) -> None:
        """End after what is in hand."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def run(self) -> None:
        """Refill until stopped."""
        while True:
            with self._changed:
                while not self._wanted and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                wanted, self._wanted = self._wanted, 0
            try:
                self._refill(wanted)
            except StoreUnavailable as error:
                logger.info("no more jobs can be asked for, the database does not answer: %s", error)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, PAUSE)
