"""The GPUs of this worker's host: what may be leased, what runs on one that failed, and what runs on one that idles."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.domain.cluster import Gpu, GpuHealth, GpuOrder, GpuSample, GpuStanding
from orchestrator.domain.gpu_memory import (
    NO_FOREIGN_USE,
    ForeignUse,
    ForeignWatch,
    GpuUser,
    MemoryPolicy,
    Shown,
)
from orchestrator.domain.job import FailureClass
from orchestrator.domain.lease import JobNote
from orchestrator.gpus.health import HealthKeeper, HealthPolicy
from orchestrator.gpus.self_test import Verdict
from orchestrator.gpus.starts import StartWatch
from orchestrator.guardian.messages import Cleared, GpuFault, GpuNews, GpuReport, GpuTested, Stuck
from orchestrator.worker.idleness import IdleKeeper, IdlePolicy
from orchestrator.worker.lending import Lending
from orchestrator.worker.memory_guard import MemoryGuard
from orchestrator.worker.pool import RunnerPool
from orchestrator.worker.work import Work

logger = logging.getLogger(__name__)

_NOTICE: Final = "\norchestrator: {reason}; the job is ended and runs again elsewhere\n"


class GpuCare:
    """Judges readings, and ends what runs on a GPU that has failed."""

    def __init__(self, pool: RunnerPool, settings: Settings, clock: Clock) -> None:
        self._pool, self._clock = pool, clock
        self.lending = Lending()
        self._idle = IdleKeeper(
            IdlePolicy(
                settings.idle_gpu_warn, settings.idle_gpu_end, settings.idle_gpu_percent, settings.idle_gpu_grace
            )
        )
        self._guard = MemoryGuard(MemoryPolicy(settings.gpu_share_tolerance_mib))
        self._health = HealthKeeper(
            HealthPolicy(
                recover_seconds=settings.gpu_recover,
                quarantine_seconds=settings.gpu_quarantine,
                clean_memory_mib=settings.gpu_clean_memory_mib,
                self_test=settings.gpu_self_test > 0,
            )
        )
        self._starts = StartWatch()
        self._readings: Sequence[GpuSample] = ()  # as the driver gave them
        self.samples: Sequence[GpuSample] = ()  # with the health that this host gives them
        self._told: dict[str, Gpu] | None = None  # the GPUs that the host was registered with, as they were then
        self._is_read = False  # a reading was made, or has failed
        self._foreigners, self._foreign = ForeignWatch(settings.gpu_clean_memory_mib), dict[str, ForeignUse]()
        self._orders: Mapping[str, GpuOrder] = {}
        self._users: dict[str, str] = {}  # by GPU: who used it last
        self._stuck: dict[str, tuple[tuple[str, ...], str]] = {}  # by runner: where processes outlive KILL, in words
        self._struck: set[tuple[str, str]] = set()  # runners that were held against a GPU
        self.on_change: Callable[[], None]  # set by the lease step: tells the database what may be granted
        self.note: Callable[[JobNote], None]  # set by the lease step: writes into a job's history

    def recall(self, standings: Mapping[str, GpuStanding]) -> None:
        """Go on where an earlier worker of this host left off."""
        self._health.recall(standings, self._clock.monotonic())

    def standings(self) -> Mapping[str, GpuStanding]:
        """Return what is to be remembered."""
        return self._health.standings()

    def take_news(self) -> bool:
        """Tell whether the host was not registered with these GPUs, or not as they are; the first time it never was."""
        if not self._is_read:  # an earlier worker's leftovers are told of before the first reading
            return False
        found = {sample.gpu.uuid: sample.gpu for sample in self.samples}
        if self._told is not None and found.items() <= self._told.items():
            return False
        self._told = (self._told or {}) | found
        return True

    def on_news(self, news: GpuNews) -> list[Work]:
        """Take in what the guardian tells of GPUs; return the jobs whose output has grown."""
        self._is_read = self._is_read or isinstance(news, GpuReport | GpuFault)
        match news:
            case GpuReport():
                return self._on_report(news)
            case GpuFault():
                logger.error("the GPUs cannot be read, none is granted: %s", news.reason)
                self.samples = ()
                self._pool.host.update_gpus(())
            case GpuTested():
                self._on_tested(news)
            case Cleared():
                self.on_unclean(news.unclean, news.refusal or "")
                self.note_user(self.lending.on_cleared(news), f"lease {news.lease_id}")
            case Stuck(is_over=True):
                self._stuck.pop(news.runner_id, None)
                self._judge()
            case Stuck():
                self._stuck[news.runner_id] = (news.gpus, self._say_stuck(news))
                self._judge()
        return []

    def _on_report(self, report: GpuReport) -> list[Work]:
        self._readings = report.samples
        self._foreign = self._foreigners.look({sample.gpu.uuid: self._shown(sample) for sample in report.samples})
        self._judge()
        told = self._end_failed()
        now, runners = self._clock.monotonic(), self._pool.runners
        told += self._guard.look(now, runners, self.samples, self.note)
        return told + self._idle.look(now, runners, self.samples)

    def obey(self, orders: Mapping[str, GpuOrder]) -> None:
        """Follow what operators want."""
        self._orders = orders
        self._pool.host.set_lent(orders)
        if self._pool.runners is not None:
            self.lending.heed(orders, self._pool.runners)
        self._health.obey(orders, self._clock.monotonic())
        self._judge()

    def note_user(self, gpus: Sequence[str], user: str) -> None:
        """Remember who uses these GPUs from now on, to name him if they do not come clean."""
        self._users.update(dict.fromkeys(gpus, user))

    def on_unclean(self, gpus: Sequence[str], reason: str) -> None:
        """These GPUs did not come clean for their next user: held against a card unless somebody is seen to use it."""
        for uuid in gpus:
            if self._foreign.get(uuid, NO_FOREIGN_USE).clean:
                user = self._users.get(uuid)
                told = reason if user is None else f"last used by {user}: {reason}"
                self._health.strike(uuid, told, self._clock.monotonic())
        if gpus:
            self._judge()

    def on_start_tried(self, gpus: Sequence[str], *, started: bool) -> None:
        """A runner of tasks has started on these GPUs, or died before it took any work."""
        for uuid, reason in self._starts.note(gpus, started=started).items():
            self._health.strike(uuid, reason, self._clock.monotonic())
            self._judge()

    def _on_tested(self, told: GpuTested) -> None:
        if told.verdict is Verdict.UNTESTED:
            logger.warning("GPU %s was not tested, its readings alone decide: %s", told.gpu, told.reason)
        failure = told.reason if told.verdict is Verdict.FAILED else None
        self._health.on_tested(told.gpu, failure, self._clock.monotonic())
        self._judge()

    def _judge(self) -> None:
        if not self._readings and not self.samples:
            return
        before = {sample.gpu.uuid: sample for sample in self.samples}
        readings = self._accuse_stuck()
        judged = self._health.judge(readings, self._leased(), self._clock.monotonic())
        self.samples = tuple(
            replace(sample, foreign=self._foreign.get(sample.gpu.uuid, NO_FOREIGN_USE)) for sample in judged
        )
        self._pool.host.update_gpus(self.samples)
        if self._pool.runners is not None:
            for uuid in self._health.take_tests():
                self._pool.runners.guardian.self_test(uuid)
        changed = [
            (before[sample.gpu.uuid], sample)
            for sample in self.samples
            if sample.gpu.uuid in before and _standing(before[sample.gpu.uuid]) != _standing(sample)
        ]
        for was, now in changed:
            self._log_change(was, now)
        if changed:
            self.on_change()  # a claim that rests on what the database does not know yet would be refused

    def _accuse_stuck(self) -> Sequence[GpuSample]:
        """Hold processes that outlive KILL against their GPUs; while they live no reading of these is a good one."""
        known, stuck = self._health.standings(), set[str]()
        for runner_id, (gpus, reason) in self._stuck.items():
            stuck.update(gpus)
            for uuid in gpus:
                is_out = uuid not in known or known[uuid].health is GpuHealth.QUARANTINED  # by an earlier worker, too
                if not is_out and (runner_id, uuid) not in self._struck:
                    self._struck.add((runner_id, uuid))
                    self._health.strike(uuid, reason, self._clock.monotonic())
        unsure = {sample.gpu.uuid for sample in self._readings if sample.health is GpuHealth.HEALTHY} & stuck
        return [
            replace(sample, health=GpuHealth.SUSPECT) if sample.gpu.uuid in unsure else sample
            for sample in self._readings
        ]

    def _say_stuck(self, stuck: Stuck) -> str:
        runner = next((one for one in self._pool.runners or () if one.id == stuck.runner_id), None)
        work = None if runner is None else runner.front
        whose = "" if work is None or work.job is None else f" of job {work.id}"
        return f"KILL does not end {', '.join(f'pid {pid}' for pid in stuck.pids)}{whose}"

    def _log_change(self, was: GpuSample, now: GpuSample) -> None:
        uuid = now.gpu.uuid
        if was.health is not now.health:
            reason = self._health.standings()[uuid].reason
            logger.warning("GPU %s is %s%s", uuid, now.health.value, f": {reason}" if reason else "")
        if was.foreign.clean and not now.foreign.clean:
            logger.warning("GPU %s is used without a lease: %s", uuid, "; ".join(now.foreign.by))
        elif now.foreign.clean and not was.foreign.clean:
            logger.info("GPU %s is not used without a lease any more", uuid)

    def _shown(self, sample: GpuSample) -> Shown:
        uuid = sample.gpu.uuid
        order = self._orders.get(uuid)
        lent = 0 if order is None else sample.gpu.memory_mib if order.lent else order.lent_mib
        users = tuple(GpuUser(one.pid, one.used_mib, one.user, one.runner) for one in sample.processes)
        runs = any(uuid in runner.key.gpus for runner in self._pool.runners or ())
        return Shown(sample.used_mib, users, runs or lent > 0 or uuid in self._leased(), lent)

    def _leased(self) -> frozenset[str]:
        return frozenset(uuid for line in self._pool.host.lines.values() for uuid in line.grant.gpus)

    def _end_failed(self) -> list[Work]:
        """End the runners on GPUs that failed under them; their jobs are lost, and run again elsewhere."""
        failed = self._health.failed()
        runners = self._pool.runners
        told: list[Work] = []
        if not failed or runners is None:
            return told
        for runner in list(runners):
            reasons = [f"GPU {uuid} failed: {failed[uuid]}" for uuid in runner.key.gpus if uuid in failed]
            if not reasons or runner.ending:
                continue
            for work in runner.line:
                if work.job is not None:
                    work.condemned = (FailureClass.LOST, reasons[0])
                    work.job.output.feed(_NOTICE.format(reason=reasons[0]).encode())
                    told.append(work)
            runners.end(runner, grace_seconds=0)
        return told


def _standing(sample: GpuSample) -> tuple[GpuHealth, int, bool]:
    """What decides who may be granted the GPU."""
    return sample.health, sample.foreign.used_mib, sample.foreign.clean
