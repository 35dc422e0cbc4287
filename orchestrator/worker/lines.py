"""The lines of this host and the runners behind them: starting work, trusting leases, ending what lost its lease."""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from orchestrator.config import Settings
from orchestrator.domain.job import FailureClass, LeaseMode
from orchestrator.domain.lease import ClaimedJob
from orchestrator.errors import MissingSecret
from orchestrator.guardian.messages import RunnerSpec
from orchestrator.job_context import CHECKPOINT, CHECKPOINT_FILE
from orchestrator.observe import logs, traces
from orchestrator.worker import tracing
from orchestrator.worker.checkpoints import CheckpointFile
from orchestrator.worker.frames import Message
from orchestrator.worker.host import Line
from orchestrator.worker.launch import command_runner_spec, is_command
from orchestrator.worker.outcomes import final_classes
from orchestrator.worker.output import OutputCapture
from orchestrator.worker.pool import RunnerPool
from orchestrator.worker.processes import RunnerKey, RunnerProcess
from orchestrator.worker.secret_files import read_secrets
from orchestrator.worker.work import Callbacks, JobWork, Work

logger = logging.getLogger(__name__)

#: Of a delivered request: its arguments come from the claim.
_NOT_SENT: Final = frozenset({"args", "kwargs", "orchestrator"})


class Lines:
    """Which runner serves which line, and until when its lease is trusted."""

    def __init__(self, pool: RunnerPool, settings: Settings) -> None:
        self._pool, self._settings = pool, settings
        self._runner_of: dict[int, RunnerProcess] = {}

    def make_work(self, line: Line, claimed: ClaimedJob, request: dict[str, Any], callbacks: Callbacks) -> Work:
        """Build the work of a claimed job; its arguments come from the claim, not from the delivered message."""
        assert line.lease_id is not None
        output = OutputCapture(head_bytes=self._settings.log_head_bytes, tail_bytes=self._settings.log_tail_bytes)
        trace = tracing.begin(claimed, line, self._settings.node)
        context = None if trace is None else trace.traceparent
        return Work(
            id=claimed.id,
            task=claimed.task,
            message=None if is_command(claimed) else _task_message(claimed, line, request, context),
            callbacks=callbacks,
            time_limit=claimed.time_limit_seconds,
            soft_time_limit=claimed.soft_time_limit_seconds,
            job=JobWork(line, claimed, line.lease_id, output),
            trace=trace,
        )

    def give(self, line: Line, work: Work) -> None:
        """Give work to the line's runner, starting one if there is none."""
        assert work.job is not None
        assert self._pool.runners is not None
        runner = self._runner_of.get(line.key)
        if runner is None or runner.ending:
            runner = self._runner_for(line, work)
            self._runner_of[line.key] = runner
            self._set_deadline(line)
        self._pool.runners.give(runner, work)

    def begin_lease(self, line: Line, lease_id: int, asked_at: float) -> None:
        """A claim sent at ``asked_at`` (monotonic) came back under this lease; only the line's first began its life.

        A claim under a lease that is held already renews nothing, and so adds nothing to how long it is trusted.
        """
        line.asked_at = asked_at
        if line.lease_id is None:
            self.change_lease(line, lease_id, asked_at)

    def change_lease(self, line: Line, lease_id: int, asked_at: float) -> None:
        """A lease was granted to the line by a request sent at ``asked_at`` (monotonic)."""
        line.lease_id = lease_id
        line.trusted_until = asked_at + self._settings.lease_ttl - self._settings.lease_margin
        self._set_deadline(line)

    def turn(self, line: Line, to: str) -> bool:
        """Have the line's runner put its models to ``sleep``, or ``wake`` them; False if it cannot be told now."""
        runner = self._runner_of.get(line.key)
        return runner is not None and not runner.ending and runner.turn(to)

    def runner_id(self, line: Line) -> str | None:
        """Return the guardian's name for the line's runner."""
        runner = self._runner_of.get(line.key)
        return None if runner is None else runner.id

    def end(self, line: Line) -> None:
        """End the line's runner, which has no work."""
        runner = self._runner_of.get(line.key)
        if runner is not None and self._pool.runners is not None:
            self._pool.runners.end(runner, grace_seconds=1)

    def extend_trust(self, asked_at: float, live: frozenset[int]) -> None:
        """These leases were renewed."""
        deadlines = {}
        for line in self._pool.host.lines.values():
            if line.lease_id in live:
                line.trusted_until = asked_at + self._settings.lease_ttl - self._settings.lease_margin
                runner = self._runner_of.get(line.key)
                if runner is not None:
                    deadlines[runner.id] = line.trusted_until
        if deadlines and self._pool.runners is not None:
            self._pool.runners.guardian.set_deadlines(deadlines)

    def lose(self, lease_id: int) -> None:
        """The lease is not ours any more: end its runner before anything else."""
        for line in list(self._pool.host.lines.values()):
            runner = self._runner_of.get(line.key)
            if line.lease_id == lease_id and not line.closed:
                about = logs.about(token=lease_id)
                logger.error("lease %d is lost; what runs under it is ended", lease_id, extra=about)
                line.closed = True
                if runner is not None and self._pool.runners is not None:
                    self._pool.runners.end(runner, grace_seconds=0)

    def retire(self, runner: RunnerProcess) -> None:
        """Put nothing more behind what runs in this runner."""
        for line in self._pool.host.lines.values():
            if self._runner_of.get(line.key) is runner:
                line.retiring = True

    def close_empty(self, *, keep_pools: bool) -> list[Line]:
        """Close the lines without jobs and return them; their leases are to be released.

        ``keep_pools``: those of worker pools stay, as long as their runners do.
        """
        empty = [line for line in self._pool.host.lines.values() if not line.jobs and not line.claiming]
        empty = [line for line in empty if not (keep_pools and self._is_kept(line))]
        for line in empty:
            runner = self._runner_of.get(line.key)
            if runner is not None and (runner.command or line.pool is not None) and not runner.gone:
                if not (runner.command or runner.ending) and self._pool.runners is not None:
                    self._pool.runners.end(runner, grace_seconds=1)
                continue  # the device is free only when its process tree is
            self._runner_of.pop(line.key, None)
            self._pool.host.close(line)
            if runner is not None and not runner.ending and self._pool.runners is not None:
                self._pool.runners.guardian.set_deadlines({runner.id: math.inf})
        return [line for line in empty if line.closed]

    def stop(self, line: Line) -> None:
        """End what a line's runner does: the jobs run again elsewhere, without having used an attempt."""
        runner, runners = self._runner_of.get(line.key), self._pool.runners
        if runner is None or runners is None:
            return
        self._stall(runner)
        if runner.front is not None and runner.front.job is not None:
            runner.front.stopped = True
            runners.end(runner, grace_seconds=runner.front.job.claimed.grace_seconds)

    def _is_kept(self, line: Line) -> bool:
        """It is a pool's, or about to be, and its runner lives."""
        runner = self._runner_of.get(line.key)
        lives = runner is not None and not (runner.ending or runner.retiring)
        return lives and line.pool is not None and line.pool.stays

    def stall_slow(self) -> None:
        """Take back what waits behind jobs that run longer than the look-ahead."""
        now = self._pool.clock.monotonic()
        for runner in list(self._pool.runners or ()):
            front = runner.front
            if len(runner.line) < 2 or front is None or front.begun_at is None:
                continue
            if now - front.begun_at > self._settings.look_ahead:
                self._stall(runner)

    def stall_all(self) -> None:
        """Take back everything that has not started."""
        for runner in list(self._pool.runners or ()):
            self._stall(runner)

    def works(self) -> Iterator[Work]:
        """Yield every job that is in a runner's line."""
        for runner in list(self._pool.runners or ()):
            yield from [work for work in runner.line if work.job is not None]

    def lease_ids(self) -> list[int]:
        """Return the leases to renew."""
        return [
            line.lease_id for line in self._pool.host.lines.values() if line.lease_id is not None and not line.closed
        ]

    def _stall(self, runner: RunnerProcess) -> None:
        assert self._pool.runners is not None
        self._pool.runners.stall(runner)

    def _set_deadline(self, line: Line) -> None:
        runner = self._runner_of.get(line.key)
        if runner is not None and self._pool.runners is not None:
            self._pool.runners.guardian.set_deadlines({runner.id: line.trusted_until})

    def _runner_for(self, line: Line, work: Work) -> RunnerProcess:
        runners, job = self._pool.runners, work.job
        assert runners is not None
        assert job is not None
        key = self._key(line, job)
        if is_command(job.claimed):
            runners.evict(key.gpus, keep=None)
            return runners.start(replace(self._command_spec(work, job, key), deadline=line.trusted_until), key)
        if line.pool is not None:  # a fresh one, which has nothing loaded yet
            runners.evict(key.gpus, keep=None)
            runner = self._pool.start_task_runner(key, token=job.lease_id)
            runner.kept = True
            return runner
        runners.evict(key.gpus, keep=key)
        return runners.find_idle(key) or self._pool.start_task_runner(key, token=job.lease_id)

    def _command_spec(self, work: Work, job: JobWork, key: RunnerKey) -> RunnerSpec:
        """Describe a command's process; a secret that is missing condemns it before it begins."""
        runners = self._pool.runners
        assert runners is not None
        secrets: dict[str, str] = {}
        argv = None
        try:
            secrets = read_secrets(
                self._settings.secrets_dir or self._settings.home / "secrets",
                job.claimed.tenant,
                job.claimed.payload.get("secrets") or (),
                environment=os.environ,
            )
        except MissingSecret as error:
            work.condemned = (FailureClass.POISON, str(error))
            argv = ("",)  # which no host can start: the way of a job that fails to start is well trodden
        job.output.hide(secrets.values())
        context = None if work.trace is None else work.trace.traceparent
        work.checkpoints = CheckpointFile(self._settings.home / "checkpoints", f"{work.id}-{job.claimed.attempt}")
        more = secrets | {CHECKPOINT_FILE: str(work.checkpoints.path)}
        more |= {} if context is None else {traces.VARIABLE: context}
        more |= {} if job.claimed.checkpoint is None else {CHECKPOINT: job.claimed.checkpoint}
        spec = command_runner_spec(
            runners.next_id(),
            job.claimed,
            key,
            token=job.lease_id,
            inherited=os.environ,
            confinement=self._pool.confinement,
            secrets=more,
        )
        return spec if argv is None else replace(spec, argv=argv)

    def _key(self, line: Line, job: JobWork) -> RunnerKey:
        grant = line.grant
        memory = grant.memory_mib if grant.memory_mib is not None else self._pool.host.memory_of(grant.gpus)
        exclusive = grant.mode is LeaseMode.EXCLUSIVE
        return RunnerKey(grant.gpus, job.claimed.tenant, exclusive, grant.host_memory_mib, memory)


def _task_message(claimed: ClaimedJob, line: Line, request: dict[str, Any], context: str | None) -> Message:
    member = line.pool.member if line.pool is not None else None
    model = claimed.model if member is None else member.model
    payload = claimed.payload
    headers = payload.get("headers") or {}
    # What is None in a request, Celery's Context in the runner has as None anyway: half of every message.
    slim = {name: value for name, value in request.items() if value is not None and name not in _NOT_SENT}
    return {
        "op": "run",
        "id": claimed.id,
        "task": payload.get("task") or claimed.task,
        "job": {"attempt": claimed.attempt, "token": line.lease_id, "final": list(final_classes(claimed))}
        | ({} if claimed.checkpoint is None else {"checkpoint": claimed.checkpoint})
        | ({} if model is None else {"model": model}),
        "request": slim | headers if context is None else slim | headers | {traces.HEADER: context},
        "args": payload.get("args") or [],
        "kwargs": payload.get("kwargs") or {},
        "embed": payload.get("embed") or {},
    }
