"""Followers of the history and of jobs: one reader of the database a process, however many they are.

The reader asks for what is new, some times a second while anybody follows, and hands it to followers' buffers. A buffer
is bounded: whoever reads more slowly than things happen is sent away, and comes back with where it had got to.

Events are numbered when they are written and seen when they are committed, so a number can turn up after larger ones.
The reader looks for such gaps again for a while, and the place that followers are given to come back to lies before the
first of them: after a break an event may come twice, and none is left out.
"""

import asyncio
import contextlib
import json
import logging
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Final, TypeVar

from starlette.concurrency import run_in_threadpool

from orchestrator.domain.job import TERMINAL_STATES, TRANSITIONS, Document, JobEvent, JobState
from orchestrator.errors import RateLimited, Unavailable
from orchestrator.event_ports import Chunk, Cursor, EventStore, FeedEvent

Result = TypeVar("Result")
logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.25
#: While the database does not answer.
RETRY_SECONDS: Final = 2.0
#: Seconds after which one who was sent away may try again.
RETRY_AFTER: Final = 5
#: Events and chunks that one look takes in; more comes with the next.
BATCH: Final = 1000
#: How long a number that was left out is looked for: longer than a transaction takes.
GAP_TICKS: Final = 40
#: Looks without a follower, for who comes back at once.
MOST_IDLE: Final = 8
MOST_GAPS: Final = 1000
#: Items that wait for one follower.
MOST_BUFFERED: Final = 512
MOST_FOLLOWERS: Final = 5000
#: Followers that read for themselves at once, as they begin or end.
MOST_CATCHING_UP: Final = 2

#: Events after which a job prints nothing until it is claimed again.
ENDS_RUN: Final = frozenset(event.value for state, event in TRANSITIONS if state is JobState.RUNNING)

Item = FeedEvent | Chunk | Document


class Follower:
    """One who follows, and what waits for it."""

    def __init__(self, job_seq: int | None, tenant: str | None, cursor: Cursor | None) -> None:
        self.job_seq, self.tenant, self.cursor = job_seq, tenant, cursor
        self.items: deque[Item] = deque()
        self.lagged = self.closed = False
        self.runs = True  # the job may print
        self.claims = 0
        self.progress: Document | None = None
        self._woken = asyncio.Event()

    def push(self, item: Item) -> None:
        """Have an item wait; one too many, and the follower is to begin again."""
        if len(self.items) >= MOST_BUFFERED:
            self.items.clear()
            self.lagged = True
        if not self.lagged:
            self.items.append(item)
        self._woken.set()

    def close(self) -> None:
        """Nothing follows."""
        self.closed = True
        self._woken.set()

    async def wait(self, seconds: float) -> None:
        """Return when there is something, or the time has passed."""
        if not (self.items or self.closed or self.lagged):
            self._woken.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), seconds)


class Positions:
    """Which events were seen: all up to ``settled``, and of those behind it all but the gaps."""

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self._gaps: dict[int, int] = {}  # number -> looks that are left

    @property
    def settled(self) -> int:
        """Return the place to come back to."""
        return min(self._gaps, default=self.newest + 1) - 1

    @property
    def gaps(self) -> Sequence[int]:
        """Return numbers that may still turn up."""
        return sorted(self._gaps)

    def saw(self, seqs: Sequence[int]) -> None:
        """Take in one look."""
        came = set(seqs)
        self._gaps = {seq: left - 1 for seq, left in self._gaps.items() if left > 1 and seq not in came}
        for seq in seqs:
            if seq > self.newest:
                new = range(max(self.newest + 1, seq - MOST_GAPS), seq)
                self._gaps |= dict.fromkeys(new, GAP_TICKS)
                self.newest = seq
        for seq in sorted(self._gaps)[:-MOST_GAPS]:
            del self._gaps[seq]


class Feed:
    """The reader and its followers; all of it runs in the event loop, but for the reading."""

    def __init__(self, store: EventStore, stopping: threading.Event) -> None:
        self._store, self._stopping = store, stopping
        self._all: set[Follower] = set()
        self._of_job: defaultdict[int, set[Follower]] = defaultdict(set)
        self._positions: Positions | None = None
        self._reader: asyncio.Task[None] | None = None
        self._beginning: asyncio.Lock | None = None
        self._catching_up: asyncio.Semaphore | None = None
        self._texts: dict[int, str] = {}
        self.reads = 0  # looks at the database

    @property
    def followers(self) -> int:
        """How many follow."""
        return len(self._all) + sum(len(followers) for followers in self._of_job.values())

    @property
    def settled(self) -> int:
        """The place to come back to."""
        return self._positions.settled if self._positions else 0

    async def read(self, look: Callable[[], Result]) -> Result:
        """Read what one follower alone needs; few do so at once, that they leave threads and connections to others."""
        if self._catching_up is None:
            self._catching_up = asyncio.Semaphore(MOST_CATCHING_UP)
        async with self._catching_up:
            return await run_in_threadpool(look)

    def text_of(self, event: FeedEvent, document: Callable[[FeedEvent], Document]) -> str:
        """Return an event as JSON, written once for all followers."""
        text = self._texts.get(event.seq)
        if text is None:
            text = self._texts[event.seq] = json.dumps(document(event), separators=(",", ":"))
            if len(self._texts) > BATCH:
                del self._texts[next(iter(self._texts))]
        return text

    def refuse_if_full(self) -> None:
        """Raise ``RateLimited`` if too many follow already."""
        if self.followers >= MOST_FOLLOWERS:
            raise RateLimited(RETRY_AFTER)

    @contextlib.asynccontextmanager
    async def following(
        self, *, job_seq: int | None = None, tenant: str | None = None, cursor: Cursor | None = None
    ) -> AsyncIterator[tuple[Follower, int]]:
        """Give a follower, and the number of the last event that it will not be handed.

        Args:
            job_seq: Of one job alone.
            tenant: Of one tenant's jobs alone.
            cursor: With a job: where its output was read to; None: without output.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        follower = Follower(job_seq, tenant, cursor)
        newest = await self._begin()
        group = self._all if job_seq is None else self._of_job[job_seq]
        group.add(follower)
        try:
            yield follower, newest
        finally:
            group.discard(follower)
            if job_seq is not None and not group:
                self._of_job.pop(job_seq, None)

    async def _begin(self) -> int:
        """Have the reader run; return how far it is."""
        if self._beginning is None:
            self._beginning = asyncio.Lock()
        async with self._beginning:
            if self._reader is None or self._reader.done():
                self._positions = Positions(await run_in_threadpool(self._store.newest))
                self._reader = asyncio.create_task(self._read_while_followed(), name="feed")
        assert self._positions is not None
        return self._positions.newest

    async def _read_while_followed(self) -> None:
        idle = 0
        try:
            while idle < MOST_IDLE and not self._stopping.is_set():
                try:
                    more = await self._look()
                    pause = 0.0 if more else TICK_SECONDS
                except Unavailable as error:
                    logger.warning("followers wait for the database: %s", error)
                    pause = RETRY_SECONDS
                await asyncio.sleep(pause)
                idle = 0 if self.followers else idle + 1
        finally:
            for follower in self._everybody():
                follower.close()

    async def _look(self) -> bool:
        """Hand out what is new; return whether more is there."""
        assert self._positions is not None
        self.reads += 1
        positions = self._positions
        found = await run_in_threadpool(self._store.after, positions.newest, missing=positions.gaps, limit=BATCH)
        # Output before events: a job's end is written after all that it printed, and told after it.
        printed = await self._read_output()
        positions.saw([event.seq for event in found])
        for event in found:
            self._hand_out(event)
        return len(found) >= BATCH or printed >= BATCH

    async def _read_output(self) -> int:
        watched = {
            seq: min(cursors)
            for seq, followers in list(self._of_job.items())
            if (cursors := [one.cursor for one in followers if one.cursor is not None and one.runs])
        }
        if not watched:
            return 0
        chunks = await run_in_threadpool(self._store.output, watched, limit=BATCH)
        told = await run_in_threadpool(self._store.progress, sorted(watched))
        for chunk in chunks:
            for follower in self._of_job.get(chunk.job_seq, ()):
                if follower.cursor is not None and chunk.cursor > follower.cursor:
                    follower.cursor = chunk.cursor
                    follower.push(chunk)
        for seq, progress in told.items():
            for follower in self._of_job.get(seq, ()):
                if progress is not None and follower.cursor is not None and progress != follower.progress:
                    follower.progress = progress
                    follower.push(progress)
        return len(chunks)

    def _hand_out(self, event: FeedEvent) -> None:
        for follower in self._of_job.get(event.job_seq or 0, ()):
            follower.runs = event.kind == JobEvent.CLAIM.value or (follower.runs and event.kind not in ENDS_RUN)
            follower.claims += event.kind == JobEvent.CLAIM.value
            follower.push(event)
        for follower in self._all:
            if follower.tenant is None or follower.tenant == event.tenant:
                follower.push(event)

    def _everybody(self) -> Iterator[Follower]:
        yield from list(self._all)
        for followers in list(self._of_job.values()):
            yield from list(followers)


def ends(state: JobState | None) -> bool:
    """A job in this state prints nothing more."""
    return state in TERMINAL_STATES
