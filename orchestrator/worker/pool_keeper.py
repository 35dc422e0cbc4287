"""The runners of worker pools on this host: from the load of a model to the day on which they are to leave."""

import logging
from collections.abc import Iterable, Sequence

from orchestrator.domain.job import JobEvent
from orchestrator.domain.lease import Finish, PoolJoin, PoolMember, PoolUse
from orchestrator.domain.pool import Leave
from orchestrator.domain.run_times import expected_seconds
from orchestrator.worker.host import Host, Line
from orchestrator.worker.ledger import Ledger
from orchestrator.worker.lines import Lines
from orchestrator.worker.work import Work

logger = logging.getLogger(__name__)


class PoolKeeper:
    """Keeps the lines of pools; runs in the worker's event loop."""

    def __init__(self, host: Host, lines: Lines) -> None:
        self._host, self._lines = host, lines
        self._told: dict[int, PoolUse] = {}  # what was last written down, by lease

    def note_finish(self, work: Work, finish: Finish, ledger: Ledger) -> None:
        """A job of some line has ended, and is out of it: a runner that has loaded its model is to join its pool."""
        assert work.job is not None
        line, claimed = work.job.line, work.job.claimed
        if line.pool is None:
            return
        seconds = None
        if finish.started_at is not None and finish.ended_at is not None:
            seconds = (finish.ended_at - finish.started_at).total_seconds()
        wants = claimed.resources.wants
        if line.pool.member is not None:
            self._note_run(line, None if finish.event is JobEvent.GIVE_BACK else seconds)
        elif finish.event is JobEvent.SUCCEED and wants is not None and wants.pool is not None:
            line.pool.joining = True
            join = PoolJoin(finish.lease_id, wants.pool, wants.generation, claimed.id, seconds or 0.0)
            ledger.add(joins=[join])

    def on_joined(self, joins: Sequence[PoolJoin], members: Iterable[PoolMember]) -> None:
        """The database has said which leases are pools' now; the others end."""
        by_lease = {member.lease_id: member for member in members}
        for line in self._host.lines.values():
            if line.pool is None or line.lease_id is None:
                continue
            for join in joins:
                if join.lease_id == line.lease_id:
                    line.pool.joining, line.pool.member = False, by_lease.get(line.lease_id)
                    what = "is ready" if line.pool.member is not None else "is not wanted any more"
                    logger.info("a runner of pool %s %s, under lease %d", join.pool, what, line.lease_id)

    def on_leaving(self, leaving: Iterable[tuple[int, Leave]]) -> None:
        """Have runners take no further job; those that are to leave now give back what they have."""
        told = dict(leaving)
        for line in self._host.lines.values():
            leave = told.get(line.lease_id) if line.lease_id is not None else None
            if line.pool is None or leave is None or line.pool.leave is leave:
                continue
            line.pool.leave = leave
            logger.info("the runner under lease %s leaves its pool: %s", line.lease_id, leave.value)
            if leave is Leave.NOW:
                self._lines.stop(line)

    def news(self, lines: Iterable[Line]) -> list[PoolUse]:
        """Return what the runners of those lines have done that are pools', where that was not written down yet."""
        news = []
        for line in lines:
            if line.pool is None or line.pool.member is None or line.lease_id is None:
                continue
            use = PoolUse(line.lease_id, line.pool.jobs_done, line.pool.run_seconds)
            if use != self._told.get(line.lease_id, PoolUse(line.lease_id, 0, None)):
                self._told[line.lease_id] = use
                news.append(use)
        return news

    def _note_run(self, line: Line, seconds: float | None) -> None:
        place = line.pool
        if place is None or seconds is None:
            return
        place.jobs_done += 1
        place.run_seconds = expected_seconds(place.run_seconds, seconds)
