"""Callers who stay, with a stream or a request that waits: their tokens are looked at again while they do.

One look at the database for all of them, however many there are: a token that is revoked or expires ends what its
holder has open about as soon as it ends its further requests.
"""

import asyncio
import contextlib
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from starlette.concurrency import run_in_threadpool

from orchestrator.domain.access import Principal
from orchestrator.errors import Unauthenticated, Unavailable
from orchestrator.services.tokens import TokenService

logger = logging.getLogger(__name__)

#: With the look itself, and what a waiting request sleeps, still about what a token is trusted without a look.
LOOK_SECONDS: Final = 1.5


class Stay:
    """One caller who stays, until it leaves or its token ends."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        self._on_end = on_end
        self.ended = False

    def end(self) -> None:
        """Its token is good for nothing any more."""
        self.ended = True
        self._on_end()

    def check(self) -> None:
        """Raise ``Unauthenticated`` if its token has ended."""
        if self.ended:
            raise Unauthenticated("this token was revoked, or has expired")


class Stays:
    """Everybody who stays, by token; all of it runs in the event loop, but for the looking."""

    def __init__(self, tokens: TokenService, stopping: threading.Event) -> None:
        self._tokens, self._stopping = tokens, stopping
        self._by_token: defaultdict[str, set[Stay]] = defaultdict(set)
        self._looker: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def of(self, caller: Principal, on_end: Callable[[], None] = lambda: None) -> Iterator[Stay]:
        """Give what says whether the caller may stay. The installation's own token lasts as long as the process.

        Args:
            caller: Who stays.
            on_end: Called, in the event loop, when its token has ended.
        """
        stay = Stay(on_end)
        if caller.token_id is None:
            yield stay
            return
        group = self._by_token[caller.token_id]
        group.add(stay)
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._look_while_anybody_stays(), name="stays")
            self._looker.add_done_callback(self._end_all_after_a_defect)
        try:
            yield stay
        finally:
            group.discard(stay)
            if not group and self._by_token.get(caller.token_id) is group:
                del self._by_token[caller.token_id]

    async def _look_while_anybody_stays(self) -> None:
        while not self._stopping.is_set():
            await asyncio.sleep(LOOK_SECONDS)
            if not (ids := list(self._by_token)):
                return  # as after a request that had its answer at once: most have
            try:
                ended = await run_in_threadpool(self._tokens.ended, ids)
            except Unavailable as error:
                # Nothing new is told or granted without the database, and no token is revoked.
                logger.info("who stays is looked at again when the database answers: %s", error)
                continue
            for id in ended:
                self._end(id)

    def _end_all_after_a_defect(self, looker: "asyncio.Task[None]") -> None:
        """Let nobody stay without being looked at."""
        if not looker.cancelled() and (error := looker.exception()) is not None:
            logger.error("tokens of open streams could not be looked at, so these are ended", exc_info=error)
            for id in list(self._by_token):
                self._end(id)

    def _end(self, id: str) -> None:
        for stay in list(self._by_token.get(id, ())):
            stay.end()
