"""Which GPUs may be leased: one state machine per GPU, fed with readings, strikes and an operator's orders.

    healthy ──unsure reading──> suspect ──good readings for a while──> healthy
    any ──strike, or the driver asks for a reset──> quarantined ──after a pause, clean, its self-test passed──> healthy
    any ──fallen off the bus──> lost ──told of again──> suspect

A GPU that runs slower than it could, or corrects many memory errors, is leased with a warning; an error that it could
not correct makes it suspect. Neither ends a job.

A strike is evidence against the card: a critical XID, memory that does not come back, runners that start on the other
GPUs and not on this one, a self-test that it fails. After three of them in a day only a person lets it back in, whose
word needs no test. One bad GPU says nothing of its neighbours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Final

from orchestrator.domain.cluster import GpuHealth, GpuOrder, GpuSample, GpuStanding

#: XIDs after which a card is not to be trusted, and what runs on it is lost; the others are mostly the job's own doing.
#: Source: NVIDIA, "XID Errors", column "GPU hardware error or reset required".
CRITICAL_XIDS: Final = frozenset({46, 48, 61, 62, 63, 64, 74, 79, 92, 94, 95, 109, 119, 120, 140, 143})


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """How long doubts last; durations are in seconds."""

    recover_seconds: float = 30.0  # of good readings, from suspect to healthy
    quarantine_seconds: float = 60.0  # the first; each further strike doubles it
    most_strikes: int = 3
    forget_seconds: float = 86_400.0  # strikes are forgotten after so long without another
    clean_memory_mib: int = 512  # what an unused GPU may have in use
    slow_seconds: float = 10.0  # slowed down so long is worth a warning, until ``recover_seconds`` without
    most_corrected: int = 1000  # memory errors a day that are worth none
    self_test: bool = True  # a quarantine does not end by itself without one


class _Trial(Enum):
    """How far a self-test has come that is to end a quarantine."""

    DUE = auto()
    ASKED = auto()
    PASSED = auto()


@dataclass(slots=True)
class _Wear:
    """What a GPU is warned of."""

    slowed_by: tuple[str, ...] = ()
    slow_since: float = 0.0
    slow_at: float | None = None  # the latest reading that said so
    corrected: int | None = None  # memory errors when their count began
    counted_since: float = 0.0


@dataclass(slots=True)
class _State:
    standing: GpuStanding
    sample: GpuSample | None = None
    good_since: float | None = None
    until: float = 0.0  # earliest end of a quarantine
    struck_at: float = 0.0
    xids_seen: int = 0
    trial: _Trial | None = None
    has_fatal_error: bool = False  # the latest strike was a critical XID
    uncorrected: int | None = None  # memory errors in the latest reading that told them
    wear: _Wear = field(default_factory=_Wear)
    order: GpuOrder = field(default_factory=GpuOrder)


class HealthKeeper:
    """Judges the GPUs of one host; instants are monotonic, in seconds."""

    def __init__(self, policy: HealthPolicy) -> None:
        self._policy = policy
        self._states: dict[str, _State] = {}

    def recall(self, standings: Mapping[str, GpuStanding], now: float) -> None:
        """Go on where an earlier worker of this host left off."""
        for uuid, standing in standings.items():
            state = self._states.setdefault(uuid, _State(standing))
            reason = standing.reason and standing.reason.removesuffix(_TESTED)
            state.standing = replace(standing, reason=reason)
            state.struck_at, state.order = now, standing.order
            if standing.health is GpuHealth.QUARANTINED:
                state.until = now + self._pause(standing.strikes)

    def judge(self, samples: Iterable[GpuSample], leased: frozenset[str], now: float) -> tuple[GpuSample, ...]:
        """Return the readings with the health that the GPUs have by their history; those that are gone as lost.

        Args:
            samples: Of every GPU that the driver tells of.
            leased: GPUs that jobs hold: what they have in use says nothing.
            now: Instant of the readings.
        """
        found = {sample.gpu.uuid: sample for sample in samples}
        for uuid, sample in found.items():
            state = self._states.setdefault(uuid, _State(GpuStanding(), xids_seen=sample.xid_count))
            state.sample = sample
            self._take_in(state, sample, uuid in leased, now)
        for uuid, state in self._states.items():
            if uuid not in found and state.sample is not None:
                self._set(state, GpuHealth.LOST, "its driver does not tell of it any more", now)
        return tuple(
            replace(state.sample, health=state.standing.health)
            for state in self._states.values()
            if state.sample is not None
        )

    def strike(self, uuid: str, reason: str, now: float) -> None:
        """Hold something against a GPU: it is quarantined."""
        state = self._states.get(uuid)
        if state is None:
            return
        if now - state.struck_at > self._policy.forget_seconds:
            state.standing = replace(state.standing, strikes=0)
        state.standing = replace(state.standing, strikes=state.standing.strikes + 1)
        state.struck_at, state.until = now, now + self._pause(state.standing.strikes)
        state.has_fatal_error, state.trial = False, None
        self._set(state, GpuHealth.QUARANTINED, reason, now)

    def take_tests(self) -> tuple[str, ...]:
        """Return the GPUs that are to be tested now; each is told once, and ``on_tested`` says what came of it."""
        due = [uuid for uuid, state in self._states.items() if state.trial is _Trial.DUE]
        for uuid in due:
            self._states[uuid].trial = _Trial.ASKED
        return tuple(due)

    def on_tested(self, uuid: str, failure: str | None, now: float) -> None:
        """A self-test has ended, well if there is no failure; one that is not waited for any more says nothing."""
        state = self._states.get(uuid)
        if state is None or state.trial is not _Trial.ASKED:
            return
        if failure is None:
            state.trial = _Trial.PASSED
        else:
            self.strike(uuid, f"it failed its self-test: {failure}", now)

    def obey(self, orders: Mapping[str, GpuOrder], now: float) -> None:
        """Follow what an operator wants of GPUs."""
        for uuid, order in orders.items():
            state = self._states.get(uuid)
            if state is None or order == state.order:
                continue
            released = order.releases > state.order.releases
            if order.resets > state.order.resets:
                state.standing, released = replace(state.standing, strikes=0), True
            state.order = order
            if order.held:
                self._set(state, GpuHealth.QUARANTINED, "an operator quarantined it", now)
            elif released and state.standing.health is not GpuHealth.LOST:
                state.until, state.good_since = 0.0, None
                self._set(state, GpuHealth.SUSPECT, "an operator released it", now)
                state.good_since = now - self._policy.recover_seconds  # the next good reading suffices

    def failed(self) -> dict[str, str]:
        """Return the GPUs on which nothing can go on, and why: fallen off the bus, or after a critical XID."""
        return {
            uuid: state.standing.reason or "it is lost"
            for uuid, state in self._states.items()
            if state.standing.health is GpuHealth.LOST
            or (state.standing.health is GpuHealth.QUARANTINED and state.has_fatal_error)
        }

    def standings(self) -> dict[str, GpuStanding]:
        """Return what is to be remembered of each GPU."""
        return {uuid: state.standing for uuid, state in self._states.items()}

    def _take_in(self, state: _State, sample: GpuSample, leased: bool, now: float) -> None:
        new_xids, state.xids_seen = sample.xid_count - state.xids_seen, sample.xid_count
        if new_xids > 0 and sample.xid in CRITICAL_XIDS:
            self.strike(sample.gpu.uuid, f"XID {sample.xid}", now)
            state.has_fatal_error = True
            return
        state.standing = replace(state.standing, warning=self._warning(state.wear, sample, now))
        known, state.uncorrected = state.uncorrected, sample.ecc_uncorrected
        fresh = (sample.ecc_uncorrected or 0) - known if known is not None else 0
        if fresh > 0 and sample.health is GpuHealth.HEALTHY:
            state.good_since = None
            if state.standing.health is GpuHealth.HEALTHY:
                self._set(state, GpuHealth.SUSPECT, f"{fresh} memory errors that it could not correct", now)
            return
        if sample.health is not GpuHealth.HEALTHY:
            state.good_since = None
            if sample.health is GpuHealth.SUSPECT and state.standing.health is GpuHealth.QUARANTINED:
                return
            self._set(state, sample.health, _DRIVER_SAYS[sample.health], now)
            return
        match state.standing.health:
            case GpuHealth.LOST:
                state.good_since = now
                self._set(state, GpuHealth.SUSPECT, "it is told of again", now)
            case GpuHealth.SUSPECT:
                state.good_since = now if state.good_since is None else state.good_since
                if now - state.good_since >= self._policy.recover_seconds:
                    self._set(state, GpuHealth.HEALTHY, None, now)
            case GpuHealth.QUARANTINED if not state.order.held and now >= state.until:
                spent = state.standing.strikes >= self._policy.most_strikes
                if not spent and not leased and sample.used_mib <= self._policy.clean_memory_mib:
                    self._readmit(state, now)

    def _readmit(self, state: _State, now: float) -> None:
        """Let a GPU back in whose quarantine is over, if it passes a self-test."""
        if state.trial is _Trial.PASSED or not self._policy.self_test:
            self._set(state, GpuHealth.HEALTHY, None, now)
        elif state.trial is None:
            state.trial = _Trial.DUE
            state.standing = replace(state.standing, reason=f"{state.standing.reason or 'it was quarantined'}{_TESTED}")

    def _warning(self, wear: _Wear, sample: GpuSample, now: float) -> str | None:
        """Return what is amiss with a GPU that may be leased all the same."""
        policy = self._policy
        if wear.slow_at is not None and now - wear.slow_at >= policy.recover_seconds:
            wear.slow_at = None
        if sample.slowed_by:
            if wear.slow_at is None or sample.slowed_by != wear.slowed_by:
                wear.slow_since, wear.slowed_by = now, sample.slowed_by
            wear.slow_at = now
        count = sample.ecc_corrected
        if count is not None and (
            wear.corrected is None or count < wear.corrected or now - wear.counted_since >= policy.forget_seconds
        ):
            wear.corrected, wear.counted_since = count, now
        told = []
        if wear.slow_at is not None and wear.slow_at - wear.slow_since >= policy.slow_seconds:
            told.append(f"slowed down by {' and '.join(wear.slowed_by)}")
        if count is not None and wear.corrected is not None and count - wear.corrected > policy.most_corrected:
            told.append(f"corrected more than {policy.most_corrected} memory errors within a day")
        return "; ".join(told) or None

    def _set(self, state: _State, health: GpuHealth, reason: str | None, now: float) -> None:
        if state.standing.health is not health or (reason is not None and health is GpuHealth.QUARANTINED):
            state.standing = replace(state.standing, health=health, reason=reason)
        if health is not GpuHealth.SUSPECT:
            state.good_since = None
        if health is not GpuHealth.QUARANTINED or reason is not None:
            state.trial = None  # of another quarantine, or of none

    def _pause(self, strikes: int) -> float:
        return float(self._policy.quarantine_seconds * 2 ** max(0, min(strikes, 10) - 1))


#: Ends the reason of a quarantine while the GPU is being tested.
_TESTED: Final = "; it is being tested"
_DRIVER_SAYS: Final = {
    GpuHealth.SUSPECT: "its driver answers with errors, or not at all",
    GpuHealth.QUARANTINED: "its driver asks for a reset or a replacement",
    GpuHealth.LOST: "it has fallen off the bus",
}
