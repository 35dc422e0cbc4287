"""What the dispatcher does with Celery's requests: read their job header, and tell them how it went."""

import logging
import signal
from collections.abc import Iterable, Mapping
from typing import Any

from celery.worker import state as worker_state

from orchestrator.domain.job import JobEvent, JobKind, Resources
from orchestrator.domain.lease import Finish, Refusal
from orchestrator.domain.wants import wants_from
from orchestrator.errors import InvalidEntry, StreamUnavailable
from orchestrator.observe.logs import about
from orchestrator.stream_ports import StreamPublisher
from orchestrator.worker.frames import Message
from orchestrator.worker.host import Shape, WaitingJob
from orchestrator.worker.remote_error import remote_error
from orchestrator.worker.work import Work

logger = logging.getLogger(__name__)

#: Header under which the transport hands over what a job's entry says.
HEADER = "orchestrator"


def waiting_job(request: Any, arrival: int) -> WaitingJob:
    """Return the job that a delivered request stands for.

    Raises:
        InvalidEntry: If the message carries no job, or a malformed one.
    """
    header = request.request_dict.get(HEADER)
    if not isinstance(header, dict):
        raise InvalidEntry(
            f"task {request.name} needs a lease, but the message names no job: submit it with .delay(), .apply_async() "
            "or send_task() of an app that orchestrator.worker.install() set up"
        )
    try:
        mib = header.get("gpu_memory_mib")
        resources = Resources(int(header["gpus"]), None if mib is None else int(mib), wants_from(header.get("wants")))
        shape = Shape(
            resources, str(header["tenant"]), JobKind(header["kind"]), str(request.type), int(header["priority"])
        )
        token = header.get("token")
        return WaitingJob(int(header["seq"]), request.id, shape, arrival, None if token is None else int(token))
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidEntry(f"malformed job header of {request.id}: {error!r}") from error


def by_resources(jobs: Iterable[WaitingJob]) -> Mapping[Resources, list[WaitingJob]]:
    """Group jobs by what they ask for, which is what a claim repeats; those of one pool's runner may differ."""
    groups: dict[Resources, list[WaitingJob]] = {}
    for job in jobs:
        groups.setdefault(job.shape.resources, []).append(job)
    return groups


def bury(request: Any, reason: str, publisher: StreamPublisher) -> None:
    """Put a malformed entry into its dead-letter stream, and acknowledge it once it is there."""
    try:
        publisher.dead_letter(request.delivery_info.get("routing_key") or "", request.id, reason)
    except StreamUnavailable as error:
        words = "entry %s stays unacknowledged, the dead-letter stream does not take it: %s"
        logger.error(words, request.id, error, extra=about(job_id=request.id))
        return
    drop(request)


def drop(request: Any) -> None:
    """Acknowledge a delivery that came to nothing."""
    worker_state.task_ready(request)
    request.acknowledge()


def drop_second(request: Any) -> None:
    """Acknowledge another delivery of a job that is held here already."""
    words = "job %s was delivered twice; the second entry is dropped"
    logger.info(words, request.id, extra=about(job_id=request.id))
    drop(request)


def drop_unseated(request: Any, token: int | None) -> None:
    """Acknowledge a job that its submit granted to a lease which has ended: with it, the database gave the job back."""
    words = "job %s was granted to lease %s, which has ended"
    logger.info(words, request.id, token, extra=about(job_id=request.id, token=token))
    drop(request)


def refuse(request: Any, refusal: Refusal) -> None:
    """Acknowledge a delivery whose claim the database refused."""
    if refusal is Refusal.CANCELLED:
        tell_cancelled(request)
        return
    logger.info("job %s is not run here: %s", request.id, refusal.value, extra=about(job_id=request.id))
    drop(request)


def tell_cancelled(request: Any) -> None:
    """Announce a cancelled job as Celery announces a revoked task."""
    if not request._already_revoked:
        request._announce_revoked("terminated", True, signal.SIGTERM, False)


def tell_finish(request: Any, work: Work, finish: Finish, report: Message) -> None:
    """Tell a request how its attempt ended, after the database said so; this acknowledges the entry."""
    if work.trace is not None:
        work.trace.end(finish)
    seconds = report.get("runtime", 0.0)
    match finish.event:
        case JobEvent.SUCCEED:
            request.on_success((0, report.get("repr", "None"), seconds))
        case JobEvent.CANCEL:
            tell_cancelled(request)
        case JobEvent.GIVE_BACK | JobEvent.REQUEUE:
            drop(request)
        case JobEvent.RETRY | JobEvent.LOSE:
            again = {"state": "RETRY", "error": finish.error or "", "traceback": report.get("traceback", "")}
            request.on_success((1, remote_error(again), seconds))
        case _:
            failure = {"state": "FAILURE", "error": finish.error or "", "error_type": "JobFailed"}
            request.on_success((1, remote_error(failure | report), seconds))
