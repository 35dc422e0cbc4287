"""Stand for leadership, and run the sweeps while leading.

The row in the database is the authority. A leader trusts itself only until a margin before its row can expire, counted
on its own clock from before it asked; any doubt ends the term, and the next campaign finds out. A lock that ends with
the leader's session lets a standby take over without waiting for the row to expire.
"""

import logging
import os
import secrets
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from orchestrator.domain.sweep import SweepTally
from orchestrator.errors import NotLeading, Unavailable
from orchestrator.leader_ports import Term
from orchestrator.runtime import Runtime
from orchestrator.services.sweeps import Sweep, Sweeps

logger = logging.getLogger(__name__)

#: A standby looks so often whether the row has expired, and a leader that could not ask tries again so soon.
STANDBY_SECONDS: Final = 0.5
#: Wake-ups start a pass at most so often.
WAKE_SECONDS: Final = 0.05
#: What the sweeps did is written down so often.
TELL_SECONDS: Final = 5.0
#: Part of the TTL by which a leader stops before another may start.
MARGIN: Final = 0.2


def holder_name() -> str:
    """Return a name for this process that no earlier or other process has."""
    return f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"


def host_and_pid(holder: str) -> tuple[str, int | None]:
    """Return the host and the process id that a holder's name tells of; a name of another make is all host."""
    host, *rest = holder.rsplit(":", 2)
    return (host, int(rest[0])) if len(rest) == 2 and rest[0].isdecimal() else (holder, None)


class Tenure:
    """How long a leader may trust itself; instants are monotonic seconds."""

    def __init__(self, *, ttl_seconds: float) -> None:
        self._ttl = ttl_seconds
        self._trusted_until = float("-inf")
        self._campaign_at = float("-inf")
        self.epoch: int | None = None

    def holds(self, now: float) -> bool:
        """The term can be relied on."""
        return self.epoch is not None and now < self._trusted_until

    def campaign_due(self, now: float) -> bool:
        """It is time to ask again."""
        return now >= self._campaign_at

    def seconds_to_campaign(self, now: float) -> float:
        """Return how long the next campaign can wait."""
        return max(0.0, self._campaign_at - now)

    def answered(self, term: Term | None, *, asked_at: float, now: float) -> bool:
        """Take in the answer to a campaign, None when there was none; return whether a new term begins."""
        if term is None or not term.mine:
            self.end(now)
            return False
        begins = self.epoch != term.epoch
        self.epoch = term.epoch
        self._trusted_until = asked_at + self._ttl * (1 - MARGIN)
        self._campaign_at = asked_at + self._ttl / 3
        return begins

    def end(self, now: float) -> None:
        """Trust the term no longer; stand for another one soon."""
        self.epoch = None
        self._trusted_until = float("-inf")
        self._campaign_at = now + min(STANDBY_SECONDS, self._ttl / 3)


class Timetable:
    """Which sweeps are due; instants are monotonic seconds."""

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        self._sweeps = tuple(sweeps)
        self._due_at = {sweep.name: float("-inf") for sweep in sweeps}

    def due(self, now: float) -> list[Sweep]:
        """Return the sweeps that are due, in the order of the table."""
        return [sweep for sweep in self._sweeps if self._due_at[sweep.name] <= now]

    def ran(self, sweep: Sweep, did: int, *, now: float) -> None:
        """Note a pass; one that used up its bound is due again at once."""
        self._due_at[sweep.name] = now if did >= sweep.batch else now + sweep.every_seconds

    def make_due(self, name: str, *, at: float) -> None:
        """Bring a sweep forward."""
        self._due_at[name] = min(self._due_at[name], at)

    def reset(self) -> None:
        """Make everything due."""
        self._due_at = dict.fromkeys(self._due_at, float("-inf"))

    def seconds_to_next(self, now: float) -> float:
        """Return how long until something is due."""
        return max(0.0, min(self._due_at.values()) - now)


class Leader:
    """One process's candidacy. ``start`` runs it in a thread; ``step`` is one round, for tests and other loops."""

    def __init__(self, runtime: Runtime, holder: str | None = None, *, sweeps: Sweeps | None = None) -> None:
        self._runtime = runtime
        self.holder = holder or holder_name()
        self._ttl = timedelta(seconds=runtime.settings.leader_ttl)
        self._sweeps = sweeps or Sweeps(runtime)
        self._timetable = Timetable(self._sweeps.table())
        self._tenure = Tenure(ttl_seconds=runtime.settings.leader_ttl)
        self._woken, self._stopping = threading.Event(), threading.Event()
        self._place = False
        self._passed_at = float("-inf")
        self._thread: threading.Thread | None = None
        self.did: Counter[str] = Counter()  # sweep -> how much it did
        self.failures: Counter[str] = Counter()  # sweep -> passes that failed
        self._tallies: defaultdict[str, SweepTally] = defaultdict(SweepTally)  # not written down yet
        self._told_at = float("-inf")

    @property
    def leading(self) -> bool:
        """This process leads and may rely on it now."""
        return self._tenure.holds(self._runtime.clock.monotonic()) and not self._is_shaken()

    @property
    def epoch(self) -> int | None:
        """The epoch of the current term."""
        return self._tenure.epoch if self.leading else None

    def step(self) -> float:
        """Campaign and sweep as far as either is due; return the seconds until the next thing is."""
        clock = self._runtime.clock
        if self._campaign_if_due() is not None:
            self._bring_placing_forward()
            for sweep in self._timetable.due(clock.monotonic()):
                epoch = self._campaign_if_due()
                if epoch is None:
                    break
                self._run(sweep, epoch)
            self._tell()
        now = clock.monotonic()
        to_campaign = self._tenure.seconds_to_campaign(now)
        return min(to_campaign, self._timetable.seconds_to_next(now)) if self.leading else to_campaign

    def start(self) -> None:
        """Run in a thread of its own until stopped."""
        self._thread = threading.Thread(target=self._run_until_stopped, name="leader", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """End the thread and hand leadership over at once; False when it did not end in time."""
        self._stopping.set()
        self._woken.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def resign(self) -> None:
        """End the term now, so that another process need not wait for its expiry."""
        epoch = self._tenure.epoch
        self._tenure.end(self._runtime.clock.monotonic())
        if epoch is None:
            return
        self._told_at = float("-inf")
        self._tell(epoch)
        try:
            self._runtime.leadership.resign(self.holder, epoch)
        except Unavailable as error:
            logger.info("the term ends by itself: %s", error)

    def on_wake(self, kind: str, data: Mapping[str, object]) -> None:
        """Somebody has something to place."""
        if kind == "place":
            self._place = True
            self._woken.set()

    def _run_until_stopped(self) -> None:
        listener = self._runtime.wake.listen(self.on_wake)
        try:
            while not self._stopping.is_set():
                try:
                    pause = self.step()
                except Exception:
                    logger.exception("a round of the leader failed")
                    self._tenure.end(self._runtime.clock.monotonic())
                    pause = STANDBY_SECONDS
                self._woken.wait(max(pause, WAKE_SECONDS))
                self._woken.clear()
        finally:
            self.resign()
            listener.stop()

    def _bring_placing_forward(self) -> None:
        if self._place:
            self._place = False
            self._timetable.make_due("admit", at=self._passed_at + WAKE_SECONDS)

    def _campaign_if_due(self) -> int | None:
        """Return the epoch of the term that can be relied on now."""
        clock, tenure = self._runtime.clock, self._tenure
        asked_at = clock.monotonic()
        if not tenure.campaign_due(asked_at) and not self._is_shaken():
            return self.epoch
        was_leading = tenure.epoch is not None
        term = self._ask()
        begins = tenure.answered(term, asked_at=asked_at, now=clock.monotonic())
        if begins:
            logger.info("%s leads with epoch %d", self.holder, tenure.epoch)
            self._sweeps.begin_term()
            self._timetable.reset()
        elif was_leading and tenure.epoch is None:
            logger.warning("%s leads no longer: %s", self.holder, f"{term.holder} does" if term else "no answer")
        return self.epoch

    def _tell(self, epoch: int | None = None) -> None:
        """Write down what the sweeps did, now and then; what cannot be written comes with the next time."""
        now = self._runtime.clock.monotonic()
        if not self._tallies or now - self._told_at < TELL_SECONDS:
            return
        self._told_at = now
        try:
            self._runtime.sweep_log.note(self._tallies, epoch=epoch or self._tenure.epoch)
        except Unavailable as error:
            logger.info("what the sweeps did is not written down yet: %s", error)
            return
        self._tallies.clear()

    def _is_shaken(self) -> bool:
        return self._tenure.epoch is not None and self._runtime.leadership.is_shaken(self.holder)

    def _ask(self) -> Term | None:
        """Campaign, or see who leads: a standby that only reads takes no lock."""
        leadership = self._runtime.leadership
        try:
            if self._tenure.epoch is None:
                current = leadership.current()
                if current is not None and current.holder != self.holder:
                    if not current.guarded or not leadership.is_deserted(self.holder):
                        return current
                    logger.info("%s is gone before its term has ended", current.holder)
            return leadership.campaign(self.holder, ttl=self._ttl)
        except Unavailable as error:
            logger.warning("cannot stand for leadership: %s", error)
            return None

    def _run(self, sweep: Sweep, epoch: int) -> None:
        did, failure, began = 0, None, self._runtime.clock.monotonic()
        try:
            did = sweep.run(epoch)
        except NotLeading as error:
            logger.warning("%s leads no longer: %s", self.holder, error)
            self._tenure.end(self._runtime.clock.monotonic())
        except Unavailable as error:
            failure = str(error)
            logger.warning("sweep %s failed: %s", sweep.name, error)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
            logger.exception("sweep %s failed", sweep.name)
        self.did[sweep.name] += did
        if failure is not None:
            self.failures[sweep.name] += 1
        now = self._runtime.clock.monotonic()
        self._tallies[sweep.name].note(did, seconds=now - began, error=failure)
        if sweep.name == "admit":
            self._passed_at = now
        self._timetable.ran(sweep, did, now=now)
