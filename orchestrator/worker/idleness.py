"""Leases whose GPUs do nothing: their jobs are warned, and ended if the operator wants that.

A GPU on which a job has no process does nothing for it, whatever its neighbours do there. Of one on which it has a
process, or may have, sampled utilization is all that is known; without that it counts as busy: a guess ends no job.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.domain.cluster import GpuSample
from orchestrator.domain.gpu_memory import Verdict
from orchestrator.domain.job import FailureClass
from orchestrator.worker.busy import BusyMeter
from orchestrator.worker.runners import Runners
from orchestrator.worker.work import Work, about

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class IdlePolicy:
    """After how many seconds without work of its GPUs a job is warned, and ended; 0 for never."""

    warn_seconds: float
    end_seconds: float
    idle_percent: int = 0  # a GPU that is utilized no more than this does no work
    grace_seconds: float = 0.0  # of every job from its start on, to load what it needs


@dataclass(frozen=True, slots=True)
class Holder:
    """A running job and its GPUs."""

    key: str
    gpus: tuple[str, ...]
    begun_at: float  # monotonic
    runner: str = ""  # whose processes are its own
    is_loading: bool = False  # it says that it is getting ready, and its GPUs need not work


class IdleWatch:
    """Remembers when each job's GPUs were last seen at work."""

    def __init__(self, policy: IdlePolicy) -> None:
        self._policy = policy
        self._busy_at: dict[str, float] = {}
        self._told: dict[str, set[Verdict]] = {}

    def look(
        self, now: float, holders: Iterable[Holder], readings: Mapping[str, GpuSample]
    ) -> list[tuple[str, Verdict, float]]:
        """Take in one reading; return who is to hear what now, and for how many seconds it has been idle.

        Each verdict is told once; work of any of a job's GPUs starts the count anew.

        Args:
            now: Monotonic instant of the reading, in seconds.
            holders: The jobs that run.
            readings: Of the host's GPUs, by uuid; one that is not read counts as busy.
        """
        current = {holder.key: holder for holder in holders}
        for key in self._busy_at.keys() - current.keys():
            del self._busy_at[key], self._told[key]
        found = []
        for key, holder in current.items():
            if key not in self._busy_at:
                self._busy_at[key], self._told[key] = holder.begun_at + self._policy.grace_seconds, set()
            if holder.is_loading or any(self._works(readings.get(uuid), holder) for uuid in holder.gpus):
                self._busy_at[key], self._told[key] = max(now, self._busy_at[key]), set()
            idle = max(0.0, now - self._busy_at[key])
            due = [verdict for verdict in self._due(idle) if verdict not in self._told[key]]
            self._told[key].update(due)
            found += [(key, verdict, idle) for verdict in due]
        return found

    def _works(self, reading: GpuSample | None, holder: Holder) -> bool:
        if reading is None:
            return True
        if reading.tells_processes and not any(one.runner in (None, holder.runner) for one in reading.processes):
            return False  # one that belongs to no runner may be its own, started through a daemon
        percent = reading.utilization_percent
        return percent is None or percent > self._policy.idle_percent

    def _due(self, idle: float) -> Iterator[Verdict]:
        if self._policy.warn_seconds and idle >= self._policy.warn_seconds:
            yield Verdict.WARN
        if self._policy.end_seconds and idle >= self._policy.end_seconds:
            yield Verdict.END


class IdleKeeper:
    """Tells the jobs of one worker what its watch finds, in their own output, and ends those that are to end.

    It also counts how busy their GPUs are.
    """

    def __init__(self, policy: IdlePolicy) -> None:
        self._policy, self._watch, self._meter = policy, IdleWatch(policy), BusyMeter()

    def look(self, now: float, runners: Runners | None, samples: Sequence[GpuSample]) -> list[Work]:
        """Take in one reading; return the jobs whose output has grown.

        Args:
            now: Monotonic instant of the reading, in seconds.
            runners: Those of this worker.
            samples: Of every GPU of this host.
        """
        if runners is None:
            return []
        running = {
            runner.front.id: (runner, runner.front)
            for runner in runners
            if runner.front is not None and runner.front.begun_at is not None and runner.front.job is not None
        }
        holders = [
            Holder(key, work.job.line.grant.gpus, work.begun_at, runner.id, work.loading)
            for key, (runner, work) in running.items()
            if work.job is not None and work.begun_at is not None and work.job.line.grant.gpus
        ]
        self._meter.note(now, (work for _runner, work in running.values()), samples)
        told = []
        for key, verdict, seconds in self._watch.look(now, holders, {sample.gpu.uuid: sample for sample in samples}):
            runner, work = running[key]
            words = f"its GPUs have done nothing for {seconds:.0f} s"
            logger.warning("job %s: %s", key, words, extra=about(work))
            if verdict is Verdict.END:
                work.condemned = (FailureClass.IDLE, words)
                runners.end(runner)
            if work.job is not None:
                work.job.output.feed(self._notice(words, verdict).encode())
                told.append(work)
        return told

    def _notice(self, words: str, verdict: Verdict) -> str:
        if verdict is Verdict.END:
            return f"\norchestrator: {words}; the job is ended\n"
        left = f"; it is ended after {self._policy.end_seconds:.0f} s" if self._policy.end_seconds else ""
        return f"\norchestrator: {words}{left}\n"
