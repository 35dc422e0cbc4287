"""How an attempt that ended is written down."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.domain.job import FailureClass, JobEvent, JobKind, LeaseMode, Resources
from orchestrator.domain.lease import ClaimedJob, LeaseGrant
from orchestrator.worker.host import Line, Shape
from orchestrator.worker.outcomes import abandoned, final_classes, finish_of_end, finish_of_report, give_back
from orchestrator.worker.output import OutputCapture
from orchestrator.worker.work import Callbacks, Ended, JobWork, Work

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def make_work(kind: JobKind = JobKind.TASK, *, attempt: int = 1, max_attempts: int = 1, lost_count: int = 0) -> Work:
    resources = Resources(2)
    claimed = ClaimedJob(
        seq=9, id="job-9", name="n", task="t", kind=kind, queue="gpu", tenant="a", attempt=attempt, payload={},
        resources=resources, digest="d", time_limit_seconds=60, soft_time_limit_seconds=None, grace_seconds=10,
        max_attempts=max_attempts, lost_count=lost_count, max_lost=3,
    )  # fmt: skip
    line = Line(1, LeaseGrant(("GPU-0", "GPU-1"), LeaseMode.EXCLUSIVE, None), Shape(resources, "a", kind, "t", 5))
    message = {"op": "run"} if kind is JobKind.TASK else None
    job = JobWork(line, claimed, 77, OutputCapture(head_bytes=1, tail_bytes=1))
    return Work("job-9", "t", message, Callbacks(None, None, None, None), 60, None, job)


def report(state: str, **fields: Any) -> dict[str, Any]:
    return {"state": state, "started_at": NOW.timestamp(), "ended_at": NOW.timestamp() + 5, "runtime": 5.0} | fields


def test_a_success_carries_its_value_and_its_gpu_seconds() -> None:
    finish = finish_of_report(make_work(), report("SUCCESS", value=42, repr="42"), now=NOW, draw=0.5)

    assert (finish.event, finish.result, finish.exit_code) == (JobEvent.SUCCEED, 42, 0)
    assert finish.gpu_seconds == pytest.approx(10.0)
    assert (finish.job_seq, finish.attempt, finish.lease_id) == (9, 1, 77)


@pytest.mark.parametrize(
    ("error_type", "failure"),
    [
        ("ValueError", FailureClass.EXCEPTION),
        ("OutOfMemoryError", FailureClass.OOM),
        ("SoftTimeLimitExceeded", FailureClass.TIMEOUT),
    ],
)
def test_an_exception_is_classified(error_type: str, failure: FailureClass) -> None:
    finish = finish_of_report(make_work(), report("FAILURE", error_type=error_type, error="x"), now=NOW, draw=0.5)

    assert (finish.event, finish.failure_class) == (JobEvent.FAIL, failure)


def test_a_failure_with_attempts_left_is_retried_after_a_drawn_delay() -> None:
    work = make_work(attempt=2, max_attempts=3)
    finish = finish_of_report(work, report("FAILURE", error_type="E", error="x"), now=NOW, draw=0.5)

    assert finish.event is JobEvent.RETRY
    assert finish.delay_seconds == pytest.approx(0.5 * 4)


def test_only_failures_that_were_named_are_tried_again() -> None:
    """As often as the class says; what is not named ends the job at once, and a lost attempt is no failure."""
    work = make_work(attempt=2, max_attempts=3, lost_count=1)
    assert work.job is not None
    work.job.claimed = replace(work.job.claimed, retry_on={FailureClass.OOM: 1, FailureClass.IDLE: 2})
    oom, other = (report("FAILURE", error_type=name, error="x") for name in ("OutOfMemoryError", "KeyError"))

    assert finish_of_report(work, oom, now=NOW, draw=0.5).event is JobEvent.RETRY
    assert finish_of_report(work, other, now=NOW, draw=0.5).event is JobEvent.FAIL
    assert FailureClass.OOM not in final_classes(work.job.claimed)
    assert FailureClass.EXCEPTION in final_classes(work.job.claimed)
    work.condemned = (FailureClass.IDLE, "its GPUs did nothing")
    ended = finish_of_end(work, Ended(None, 15, "killed"), began_at=NOW, now=NOW, draw=0.5)
    assert (ended.event, ended.failure_class) == (JobEvent.RETRY, FailureClass.IDLE)
    work.job.claimed = replace(work.job.claimed, attempt=3)
    assert finish_of_report(work, oom, now=NOW, draw=0.5).event is JobEvent.FAIL


def test_lost_attempts_do_not_use_up_the_attempts() -> None:
    work = make_work(attempt=3, max_attempts=2, lost_count=2)
    finish = finish_of_report(work, report("FAILURE", error_type="E", error="x"), now=NOW, draw=0.0)

    assert finish.event is JobEvent.RETRY


def test_celerys_retry_keeps_its_eta_and_its_arguments() -> None:
    resubmission = {"payload": {"args": [1]}, "eta": "2026-11-23T12:00:30+00:00"}
    finish = finish_of_report(make_work(), report("RETRY", error="again", resubmission=resubmission), now=NOW, draw=0.5)

    assert (finish.event, finish.delay_seconds, finish.payload) == (JobEvent.RETRY, 30.0, {"args": [1]})


@pytest.mark.parametrize("code", [126, 127])
def test_a_command_that_a_shell_cannot_run_is_not_tried_again(code: int) -> None:
    work = make_work(JobKind.COMMAND, max_attempts=5)
    finish = finish_of_end(work, Ended(code, None, "exit"), began_at=NOW, now=NOW, draw=0.5)

    assert (finish.event, finish.exit_code, finish.failure_class) == (JobEvent.FAIL, code, FailureClass.EXIT)


def test_a_command_that_could_not_be_started_is_tried_again() -> None:
    work = make_work(JobKind.COMMAND, max_attempts=5)
    finish = finish_of_end(work, Ended(None, None, "start", "no such program"), began_at=NOW, now=NOW, draw=0.5)

    assert (finish.event, finish.exit_code) == (JobEvent.RETRY, 127)


@pytest.mark.parametrize(
    ("ended", "event", "code", "failure"),
    [
        (Ended(0, None, "exit"), JobEvent.SUCCEED, 0, None),
        (Ended(3, None, "exit"), JobEvent.FAIL, 3, FailureClass.EXIT),
        (Ended(None, 11, "exit"), JobEvent.FAIL, 139, FailureClass.EXIT),
        (Ended(None, None, "start", "no such program"), JobEvent.FAIL, 127, FailureClass.EXIT),
        (Ended(None, None, "start", "device locked by pid 1"), JobEvent.LOSE, None, FailureClass.LOST),
        (Ended(None, None, "start", "4000 MiB in use", unclean=("GPU-a",)), JobEvent.GIVE_BACK, None, None),
        (Ended(None, 9, "deadline"), JobEvent.LOSE, None, FailureClass.LOST),
    ],
)
def test_a_commands_end_is_classified(
    ended: Ended, event: JobEvent, code: int | None, failure: FailureClass | None
) -> None:
    finish = finish_of_end(make_work(JobKind.COMMAND), ended, began_at=NOW, now=NOW, draw=0.5)

    assert (finish.event, finish.exit_code, finish.failure_class) == (event, code, failure)


def test_a_task_whose_runner_died_is_lost_and_at_the_last_a_dead_letter() -> None:
    died = Ended(None, 9, "exit")
    first = finish_of_end(make_work(), died, began_at=NOW, now=NOW, draw=0.5)
    last = finish_of_end(make_work(lost_count=2, attempt=3), died, began_at=NOW, now=NOW, draw=0.5)

    assert (first.event, last.event) == (JobEvent.LOSE, JobEvent.BURY)


def test_the_time_limit_is_told_from_a_cancel() -> None:
    killed = Ended(None, 9, "killed")
    late, cancelled = make_work(JobKind.COMMAND), make_work(JobKind.COMMAND)
    late.timed_out = cancelled.cancelled = True

    assert finish_of_end(late, killed, began_at=NOW, now=NOW, draw=0.5).failure_class is FailureClass.TIMEOUT
    assert finish_of_end(cancelled, killed, began_at=NOW, now=NOW, draw=0.5).event is JobEvent.CANCEL


def test_a_job_claimed_ahead_is_given_back_without_an_attempt() -> None:
    assert give_back(make_work()).event is JobEvent.GIVE_BACK


def test_a_job_whose_worker_stopped_runs_again_without_an_attempt_used() -> None:
    """Unless it ended by itself before the signal came, or had been cancelled."""
    terminated = Ended(None, 15, "killed")
    command, task, ended, cancelled = (make_work(JobKind.COMMAND), make_work(), make_work(JobKind.COMMAND), make_work())
    command.stopped = task.stopped = ended.stopped = cancelled.stopped = cancelled.cancelled = True

    def finish(work: Work, how: Ended) -> JobEvent:
        return finish_of_end(work, how, began_at=NOW, now=NOW, draw=0.5).event

    assert finish(command, terminated) is finish(task, terminated) is JobEvent.REQUEUE
    assert finish(ended, Ended(0, None, "exit")) is JobEvent.SUCCEED
    assert finish(cancelled, terminated) is JobEvent.CANCEL
    failed = finish_of_report(task, report("FAILURE", error_type="SystemExit", error="143"), now=NOW, draw=0.5)
    succeeded = finish_of_report(task, report("SUCCESS", value=1, repr="1"), now=NOW, draw=0.5)
    assert (failed.event, failed.failure_class) == (JobEvent.REQUEUE, None)
    assert succeeded.event is JobEvent.SUCCEED


def test_a_worker_that_ends_at_once_tells_what_had_begun_from_what_had_not() -> None:
    begun, waiting = make_work(), make_work()
    begun.begun_at = 1.0

    assert (abandoned(begun).event, abandoned(waiting).event) == (JobEvent.REQUEUE, JobEvent.GIVE_BACK)


def test_requeued_attempts_leave_all_others_to_the_job() -> None:
    """Two of three attempts did not count, so a failure is its first."""
    work = make_work(attempt=3, max_attempts=2, lost_count=1)
    assert work.job is not None
    work.job.claimed = replace(work.job.claimed, forgiven=1)

    assert finish_of_end(work, Ended(1, None, "exit"), began_at=NOW, now=NOW, draw=0.5).event is JobEvent.LOSE
    failed = finish_of_report(work, report("FAILURE", error_type="E", error="x"), now=NOW, draw=0.5)
    assert failed.event is JobEvent.RETRY


def test_what_the_kernel_ended_for_want_of_memory_is_told_from_any_other_kill() -> None:
    """A command that ends well although a child of it was ended has ended well; a task has lost its runner by it."""
    killed = Ended(None, 9, "exit", memory_kills=1)
    for kind in JobKind:
        finish = finish_of_end(make_work(kind), killed, began_at=NOW, now=NOW, draw=0.5)
        assert (finish.event, finish.failure_class) == (JobEvent.FAIL, FailureClass.OOM)
        assert "more of the host's memory than there is for it" in (finish.error or "")
    other = finish_of_end(make_work(JobKind.COMMAND), replace(killed, memory_kills=0), began_at=NOW, now=NOW, draw=0.5)
    assert other.failure_class is FailureClass.EXIT
    well = finish_of_end(
        make_work(JobKind.COMMAND), Ended(0, None, "exit", memory_kills=1), began_at=NOW, now=NOW, draw=0.5
    )
    assert well.event is JobEvent.SUCCEED


@pytest.mark.parametrize("kind", list(JobKind))
def test_a_job_whose_runner_cannot_be_ended_is_lost_or_what_was_asked_for(kind: JobKind) -> None:
    """Never succeeded, whatever its first process ended with."""
    stuck = Ended(None, 9, "stuck", "KILL does not end pid 7")

    lost = finish_of_end(make_work(kind), stuck, began_at=NOW, now=NOW, draw=0.5)
    assert (lost.event, lost.failure_class) == (JobEvent.LOSE, FailureClass.LOST)
    assert lost.error == "its runner cannot be ended: KILL does not end pid 7"
    cancelled = make_work(kind)
    cancelled.cancelled = True
    assert finish_of_end(cancelled, stuck, began_at=NOW, now=NOW, draw=0.5).event is JobEvent.CANCEL
    late = make_work(kind)
    late.timed_out = True
    assert finish_of_end(late, stuck, began_at=NOW, now=NOW, draw=0.5).failure_class is FailureClass.TIMEOUT
