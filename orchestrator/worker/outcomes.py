"""How an attempt that ended is written down: pure functions from what was seen to a finish."""

from datetime import UTC, datetime
from typing import Any, Final

from orchestrator.domain.job import FailureClass, JobEvent
from orchestrator.domain.lease import ClaimedJob, Finish
from orchestrator.domain.retry import BASE_DELAY, LONGEST_DELAY, class_of_exception, may_retry, retry_delay
from orchestrator.worker.frames import Message
from orchestrator.worker.work import Ended, Work

#: Exit codes that shells and `timeout` use.
TIMED_OUT: Final = 124
BY_SIGNAL: Final = 128
#: A shell found the command not executable, or not at all: it would be no different the next time.
MISTAKES: Final = frozenset({126, 127})
#: Why a job that was running is lost, by the cause of its runner's end.
_GIVEN_UP: Final = {"deadline": "its lease could not be renewed in time", "stuck": "its runner cannot be ended: "}
#: Most text of an error that is kept; tracebacks of deep recursions are long.
LONGEST_ERROR: Final = 16_000


def finish_of_report(work: Work, report: Message, *, now: datetime, draw: float) -> Finish:
    """Return how a task that its runner reported on ended.

    Args:
        work: The job's work; ``work.job`` is set.
        report: The runner's ``done`` message.
        now: Wall time.
        draw: Random fraction in [0, 1) for the retry delay.
    """
    state = report.get("state")
    common = _common(work, report)
    resubmission = report.get("resubmission")
    if work.cancelled:
        return _finish(work, JobEvent.CANCEL, error="cancelled while it ran", exit_code=1, **common)
    if resubmission is not None:
        delay = _delay_until(resubmission.get("eta"), now)
        error = report.get("error")
        return _finish(
            work, JobEvent.RETRY, error=error, delay_seconds=delay, payload=resubmission["payload"], **common
        )
    if state in ("SUCCESS", "IGNORED"):
        return _finish(work, JobEvent.SUCCEED, result=report.get("value"), exit_code=0, **common)
    if work.stopped:
        return _requeued(work, **common)
    name = str(report.get("error_type"))
    failure = class_of_exception(name)
    error = f"{name}: {report.get('error')}\n{report.get('traceback', '')}"[:LONGEST_ERROR]
    if state == "REJECTED" and report.get("requeue"):
        return _finish(work, JobEvent.RETRY, error=error, **common)
    return _failed(work, failure, draw=draw, error=error, exit_code=1, **common)


def finish_of_end(work: Work, ended: Ended, *, began_at: datetime | None, now: datetime, draw: float) -> Finish:
    """Return how a job ended whose process is gone: every command's end, and a task's runner lost under it."""
    assert work.job is not None
    claimed = work.job.claimed
    common: dict[str, Any] = {"started_at": began_at, "ended_at": now, "peak_memory_mib": ended.peak_rss_mib}
    code = ended.exit_code if ended.exit_code is not None else BY_SIGNAL + (ended.signal or 0)
    if work.cancelled:
        return _finish(work, JobEvent.CANCEL, error="cancelled while it ran", exit_code=code, **common)
    if work.timed_out:
        error = f"time limit of {work.time_limit:g} s exceeded"
        return _failed(work, FailureClass.TIMEOUT, draw=draw, error=error, exit_code=TIMED_OUT, **common)
    condemned = work.condemned or _out_of_memory(work, ended, code)
    if condemned is not None:
        failure, error = condemned
        if failure is FailureClass.LOST:
            return _lost(work, claimed, error=error, exit_code=code, **common)
        return _failed(work, failure, draw=draw, error=error, exit_code=code, **common)
    if work.stopped and ended.cause != "exit":
        return _requeued(work, exit_code=code, **common)
    if ended.unclean:
        return give_back(work)  # it never started, and other GPUs will do
    if ended.cause == "start":
        error = f"it could not be started: {ended.reason}"
        if ended.reason.startswith("device"):
            return _lost(work, claimed, error=error, **common)
        return _failed(work, FailureClass.EXIT, draw=draw, error=error, exit_code=127, **common)
    if ended.cause in _GIVEN_UP:
        return _lost(work, claimed, error=_GIVEN_UP[ended.cause] + ended.reason, **common)
    if ended.cause != "exit" or work.message is not None:
        error = f"its runner was lost: exit code {ended.exit_code}, signal {ended.signal} ({ended.cause})"
        return _lost(work, claimed, error=error, **common)
    if code == 0:
        return _finish(work, JobEvent.SUCCEED, result={"exit_code": 0}, exit_code=0, **common)
    error = f"exit code {code}" + (f" (signal {ended.signal})" if ended.signal else "")
    if code in MISTAKES:
        return _finish(work, JobEvent.FAIL, failure_class=FailureClass.EXIT, error=error, exit_code=code, **common)
    return _failed(work, FailureClass.EXIT, draw=draw, error=error, exit_code=code, **common)


def _out_of_memory(work: Work, ended: Ended, code: int) -> tuple[FailureClass, str] | None:
    """Return that the kernel ended a job for want of memory; a command that ends well after that has ended well."""
    assert work.job is not None
    if not ended.memory_kills or (code == 0 and work.message is None):
        return None
    wants = work.job.claimed.resources.wants
    asked = f"the {wants.host_memory_mib} MiB that it asked for" if wants is not None else "there is for it"
    return FailureClass.OOM, f"it used more of the host's memory than {asked}: the kernel ended it (exit code {code})"


def give_back(work: Work) -> Finish:
    """Return the finish of a job that was claimed ahead and not started."""
    return _finish(work, JobEvent.CANCEL if work.cancelled else JobEvent.GIVE_BACK)


def abandoned(work: Work) -> Finish:
    """Return the finish of a job whose worker ends at once; whether somebody asked to cancel it, the store knows."""
    return _finish(work, JobEvent.GIVE_BACK) if work.begun_at is None else _requeued(work)


def _requeued(work: Work, **fields: Any) -> Finish:
    return _finish(work, JobEvent.REQUEUE, error="its worker stopped before it had ended", **fields)


def final_classes(claimed: ClaimedJob) -> tuple[FailureClass, ...]:
    """Return the classes of failures after which no further attempt would follow this one."""
    return tuple(failure for failure in FailureClass if not _may_retry(claimed, failure))


def _may_retry(claimed: ClaimedJob, failure: FailureClass) -> bool:
    failed = claimed.attempt - claimed.lost_count - claimed.forgiven
    return may_retry(failure, failed=failed, max_attempts=claimed.max_attempts, retry_on=claimed.retry_on)


def _failed(work: Work, failure: FailureClass, *, draw: float, **fields: Any) -> Finish:
    assert work.job is not None
    claimed = work.job.claimed
    if _may_retry(claimed, failure):
        delay = retry_delay(claimed.attempt - claimed.forgiven, base=BASE_DELAY, ceiling=LONGEST_DELAY, draw=draw)
        return _finish(work, JobEvent.RETRY, failure_class=failure, delay_seconds=delay.total_seconds(), **fields)
    return _finish(work, JobEvent.FAIL, failure_class=failure, **fields)


def _lost(work: Work, claimed: ClaimedJob, **fields: Any) -> Finish:
    last = claimed.lost_count + 1 >= claimed.max_lost
    return _finish(work, JobEvent.BURY if last else JobEvent.LOSE, failure_class=FailureClass.LOST, **fields)


def _common(work: Work, report: Message) -> dict[str, Any]:
    return {
        "started_at": datetime.fromtimestamp(report["started_at"], UTC),
        "ended_at": datetime.fromtimestamp(report["ended_at"], UTC),
        "peak_memory_mib": report.get("rss_mib"),
    }


def _delay_until(eta: str | None, now: datetime) -> float:
    return max(0.0, (datetime.fromisoformat(eta) - now).total_seconds()) if eta else 0.0


def _finish(work: Work, event: JobEvent, **fields: Any) -> Finish:
    assert work.job is not None
    started, ended = fields.get("started_at"), fields.get("ended_at")
    seconds = (ended - started).total_seconds() if started and ended else 0.0
    return Finish(
        job_seq=work.job.claimed.seq,
        attempt=work.job.claimed.attempt,
        lease_id=work.job.lease_id,
        event=event,
        gpu_seconds=max(0.0, seconds) * len(work.job.line.grant.gpus),
        gpu_busy_seconds=work.busy_seconds,
        peak_gpu_memory_mib=work.peak_gpu_mib,
        pid=work.pid,
        isolation=work.isolation,
        **fields,
    )
