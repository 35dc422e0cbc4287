"""The Celery pool in which each job has a process of its own GPUs: ``-P orchestrator.worker.pool:RunnerPool``.

Plain Celery tasks run here too, in runners that see no GPU, as many at once as ``--concurrency`` says. Jobs come with a
claim: the lease step has put it into ``granted`` before Celery's request asks the pool to run.
"""

import base64
import gc
import logging
import math
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery.concurrency.base import BasePool
from celery.worker import state as worker_state
from kombu.asynchronous import get_event_loop

from orchestrator.clock import SystemClock
from orchestrator.config import Settings
from orchestrator.guardian.client import Guardian, GuardianSettings
from orchestrator.guardian.messages import GpuNews, GpuReport
from orchestrator.worker import task_log
from orchestrator.worker.confinement import confine
from orchestrator.worker.frames import Message
from orchestrator.worker.host import Host
from orchestrator.worker.launch import find_app_path, task_runner_spec
from orchestrator.worker.processes import RunnerKey, RunnerProcess
from orchestrator.worker.remote_error import remote_error
from orchestrator.worker.run_times import RunTimes
from orchestrator.worker.runners import RunnerBounds, Runners, WorkListener, callbacks_from
from orchestrator.worker.work import Callbacks, Ended, Work, about

logger = logging.getLogger(__name__)

PLAIN: Final = RunnerKey(gpus=(), tenant="", exclusive=True)
START_DEADLINE: Final = 30.0
GC_THRESHOLD: Final = 20_000


class WorkHandle:
    """What Celery's request keeps of applied work."""

    def __init__(self, pool: "RunnerPool", work: Work) -> None:
        self._pool, self._work = pool, work

    def terminate(self, signum: int) -> None:
        """End the work; the request has already told the pool by process id when it runs."""
        self._pool.terminate_unstarted(self._work)


class RunnerPool(BasePool):
    """Runners instead of prefork children; see docs/decisions/0003-own-pool.md."""

    uses_semaphore = False
    task_join_will_block = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.jobs: WorkListener | None = None  # the lease step's dispatcher
        self.granted: dict[str, Callable[[dict[str, Any], Callbacks], Work]] = {}  # by job id: puts it into its line
        self._plain: deque[Work] = deque()
        self._settings: Settings = self.app.orchestrator_settings()
        self.run_times = RunTimes(
            look_ahead_seconds=self._settings.look_ahead, most_ahead=self._settings.max_look_ahead_jobs
        )
        self.host = Host(
            cpu_slots=self.limit or 1,
            run_times=self.run_times,
            cpus=self._settings.cpus,
            memory_mib=self._settings.memory_mib,
            headroom_mib=self._settings.gpu_headroom_mib,
        )
        self.runners: Runners | None = None
        self._ends_at_once = False
        self.clock = SystemClock()
        self.confinement = confine(self._settings)
        self._hostname = (self.options.get("initargs") or (None, ""))[1]

    def on_start(self) -> None:
        """Start the guardian; runners start with their first work."""
        # The imported app is garbage to nobody; scanning it again and again costs a tenth of the worker's time.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 50)
        settings = self._settings
        self._app_path = find_app_path(self.app, sys.modules)
        guardian = Guardian.start(
            GuardianSettings(
                node=settings.node,
                home=settings.home,
                lock_dir=settings.lock_dir or (settings.home / "locks" if settings.simulated_gpus else None),
                simulated_gpus=settings.simulated_gpus,
                preload=(self._app_path.partition(":")[0], "orchestrator.worker.runner"),
                start_deadline_seconds=START_DEADLINE,
                clean_wait_seconds=settings.gpu_clean_wait,
                kill_wait_seconds=settings.kill_wait,
                clean_memory_mib=settings.gpu_clean_memory_mib,
                self_test_seconds=settings.gpu_self_test,
                log_format=settings.log_format,
                isolation=settings.isolation,
            )
        )
        self.runners = Runners(
            guardian,
            self,
            clock=self.clock,
            grace_seconds=settings.default_grace,
            bounds=RunnerBounds(settings.runner_idle, settings.runner_max_jobs, settings.runner_max_memory_mib),
        )

    def register_with_event_loop(self, hub: Any) -> None:
        """Read runners and guardian in this loop; called at every (re)connect."""
        assert self.runners is not None
        self.runners.register(hub)

    def on_apply(self, target: Any, args: Any, kwargs: Any, **options: Any) -> WorkHandle:
        """Take one request's work: claimed jobs go to their line, plain tasks to a CPU runner."""
        task, work_id, request, body, content_type, encoding = args[:6]
        callbacks = callbacks_from(options)
        hard, soft = options.get("timeout"), options.get("soft_timeout")
        grant = self.granted.pop(work_id, None)
        if grant is not None:
            return WorkHandle(self, grant(request, callbacks))
        work = Work(
            work_id, task, _plain_message(task, work_id, request, body, content_type, encoding), callbacks, hard, soft
        )
        self._plain.append(work)
        self.run_plain()
        return WorkHandle(self, work)

    def run_plain(self) -> None:
        """Start plain tasks while CPU slots are free."""
        assert self.runners is not None
        while self._plain and self.host.take_cpu_slot():
            work = self._plain.popleft()
            if work.callbacks.revoked is not None and work.callbacks.revoked():
                self.host.give_back_cpu_slot()  # the request has told everybody that it was revoked, or has expired
                continue
            runner = self.runners.find_idle(PLAIN)
            if runner is None:
                runner = self.start_task_runner(PLAIN, token=0)
            self.runners.give(runner, work)

    def start_task_runner(self, key: RunnerKey, *, token: int) -> RunnerProcess:
        """Start a runner for Celery tasks on the key's GPUs."""
        assert self.runners is not None
        spec = task_runner_spec(
            self.runners.next_id(),
            key,
            token=token,
            app=self._app_path,
            hostname=self._hostname,
            inherited=os.environ,
            confinement=self.confinement,
        )
        return self.runners.start(spec, key)

    def cancel(self, work_id: str) -> bool:
        """End work wherever it is in its life; False when the pool does not have it."""
        assert self.runners is not None
        for work in self._plain:
            if work.id == work_id:
                self._plain.remove(work)
                return True
        runner = self.runners.holding(work_id)
        if runner is None:
            return False
        front = runner.front
        if front is not None and front.id == work_id:
            front.cancelled = True
            self.runners.end(runner)
        else:
            for work in runner.line:
                work.cancelled = work.cancelled or work.id == work_id
            self.runners.stall(runner)
        return True

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End what the process with this id runs; revoke with terminate comes here."""
        assert self.runners is not None
        runner = self.runners.by_pid(pid)
        if runner is None:
            return
        if runner.front is not None:
            runner.front.stopped = self._ends_at_once
            runner.front.cancelled = not self._ends_at_once
        self.runners.end(runner, grace_seconds=0 if signal == 9 else None)

    def terminate_unstarted(self, work: Work) -> None:
        """End work that has not begun; what has is ended by its process id."""
        if work.begun_at is None and not self._ends_at_once:
            self.cancel(work.id)

    def on_begun(self, runner: RunnerProcess, work: Work) -> None:
        if work.job is not None and self.jobs is not None:
            self.jobs.on_begun(runner, work)

    def on_report(self, runner: RunnerProcess, work: Work, report: Message) -> None:
        """Tell the request, or the dispatcher if it is a job, how a task ended."""
        self.run_times.note(work.task, float(report.get("runtime") or 0.0))
        if work.job is not None:
            assert self.jobs is not None
            self.jobs.on_report(runner, work, report)
            return
        self.host.give_back_cpu_slot()
        task_log.log_again(report)
        if work.callbacks.done is not None and not work.timed_out:
            if report["state"] == "SUCCESS":
                work.callbacks.done((0, report["repr"], report["runtime"]))
            else:
                work.callbacks.done((1, remote_error(report), report["runtime"]))

    def on_ended(self, runner: RunnerProcess, work: Work, ended: Ended) -> None:
        """Tell the request, or the dispatcher, that the runner was lost under this work."""
        if work.job is not None:
            assert self.jobs is not None
            self.jobs.on_ended(runner, work, ended)
            return
        self.host.give_back_cpu_slot()
        if work.timed_out or work.callbacks.failed is None:
            return
        work.callbacks.failed(_lost_info(work, ended))

    def on_unstarted(self, runner: RunnerProcess, works: list[Work]) -> None:
        jobs = [work for work in works if work.job is not None]
        plain = [work for work in works if work.job is None]
        for work in reversed(plain):
            self.host.give_back_cpu_slot()
            self._plain.appendleft(work)
        if jobs and self.jobs is not None:
            self.jobs.on_unstarted(runner, jobs)

    def on_retiring(self, runner: RunnerProcess) -> None:
        if self.jobs is not None:
            self.jobs.on_retiring(runner)

    def on_free(self, runner: RunnerProcess) -> None:
        if self.jobs is not None:
            self.jobs.on_free(runner)
        self.run_plain()

    def on_progress(self, work: Work, progress: dict[str, Any]) -> None:
        if work.job is not None and self.jobs is not None:
            self.jobs.on_progress(work, progress)

    def on_output(self, work: Work) -> None:
        if self.jobs is not None:
            self.jobs.on_output(work)

    def on_gpus(self, news: GpuNews) -> None:
        if self.jobs is not None:
            self.jobs.on_gpus(news)
        elif isinstance(news, GpuReport):
            self.host.update_gpus(news.samples)

    def on_turned(self, runner: RunnerProcess, message: Message) -> None:
        if self.jobs is not None:
            self.jobs.on_turned(runner, message)

    def on_unclean(self, gpus: tuple[str, ...], reason: str) -> None:
        if self.jobs is not None:
            self.jobs.on_unclean(gpus, reason)

    def on_start_tried(self, gpus: tuple[str, ...], *, started: bool) -> None:
        if self.jobs is not None:
            self.jobs.on_start_tried(gpus, started=started)

    def on_stop(self) -> None:
        """Warm shutdown: let everything that runs end, with the event loop turning so that leases are renewed."""
        hub = get_event_loop()
        if self.runners is None or hub is None:
            return
        self.runners.register(hub)
        settle = getattr(self.jobs, "begin_warm_shutdown", None)
        if settle is not None:
            settle(hub)
        loop = hub.create_loop()
        bound = self._settings.shutdown_timeout or math.inf
        began = self.clock.monotonic()
        while self.unsettled() and not worker_state.should_terminate:
            if self.clock.monotonic() - began > bound:
                self._stop_jobs()
                if not self._has_unsettled_jobs():
                    break  # plain tasks end as at a cold shutdown
            next(loop)
        self.runners.guardian.close(timeout_seconds=START_DEADLINE)

    def _stop_jobs(self) -> None:
        """The bound has passed: end the jobs that run; they run again elsewhere, without having used an attempt."""
        assert self.runners is not None
        for runner in list(self.runners):
            work = runner.front
            if work is not None and work.job is not None and not work.stopped:
                logger.warning("job %s is ended: the worker stops and waited long enough", work.id, extra=about(work))
                work.stopped = True
                self.runners.end(runner, grace_seconds=work.job.claimed.grace_seconds)

    def end_at_once(self) -> None:
        """Celery is about to cancel what runs, because the worker ends at once: no job is cancelled by that."""
        self._ends_at_once = True

    def on_terminate(self) -> None:
        """Cold shutdown: end every runner now."""
        if self.runners is not None:
            self.runners.guardian.close(timeout_seconds=START_DEADLINE)

    def unsettled(self) -> bool:
        """Something runs, or is on its way to the database."""
        assert self.runners is not None
        return bool(self._plain) or self.runners.busy() or self._has_unsettled_jobs()

    def _has_unsettled_jobs(self) -> bool:
        unsettled = getattr(self.jobs, "unsettled", None)
        return unsettled is not None and bool(unsettled())

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        runners = list(self.runners or ())
        info["processes"] = [runner.pid for runner in runners if runner.pid is not None]
        info["runners"] = [
            {"pid": runner.pid, "gpus": list(runner.key.gpus), "line": len(runner.line)} for runner in runners
        ]
        return info


def _plain_message(
    task: str, work_id: str, request: dict[str, Any], body: Any, content_type: str | None, encoding: str | None
) -> Message:
    slim = {name: value for name, value in request.items() if name not in ("args", "kwargs")}
    message: Message = {"op": "run", "id": work_id, "task": task, "request": slim}
    message |= {"content_type": content_type, "content_encoding": encoding}
    if isinstance(body, (bytes, memoryview)):
        return message | {"body": base64.b64encode(bytes(body)).decode("ascii"), "base64": True}
    return message | {"body": body}


def _lost_info(work: Work, ended: Ended) -> ExceptionInfo:
    error: Exception
    if work.cancelled:
        error = Terminated(ended.signal or 15)
    else:
        error = WorkerLostError(
            f"the runner ended: {ended.reason or ended.cause}, exit code {ended.exit_code}, signal {ended.signal}"
        )
    try:
        raise error
    except (Terminated, WorkerLostError):
        return ExceptionInfo()
