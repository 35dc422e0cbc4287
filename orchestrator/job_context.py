"""What a running job may know and say of itself: ``orchestrator.current()``."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

#: A runner's environment names the job's lease here, so that user code can fence its own writes.
JOB_ID: Final = "ORCHESTRATOR_JOB_ID"
ATTEMPT: Final = "ORCHESTRATOR_ATTEMPT"
FENCING_TOKEN: Final = "ORCHESTRATOR_FENCING_TOKEN"  # noqa: S105 - a variable's name


@dataclass(frozen=True, slots=True)
class JobContext:
    """The attempt that runs in this process."""

    job_id: str
    attempt: int
    fencing_token: int
    gpus: tuple[str, ...]  # uuids
    send: Callable[[Mapping[str, Any]], None]

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Report how far the job has come; the worker stores the latest report about once a second."""
        self.send({"op": "progress", "id": self.job_id, "progress": {"done": done, "total": total, "message": message}})


_current: JobContext | None = None


def enter(context: JobContext | None) -> None:
    """Make ``context`` the current one; the runner calls it, user code does not."""
    global _current  # noqa: PLW0603 - one attempt at a time runs in a process
    _current = context


def current() -> JobContext:
    """Return the running attempt.

    Raises:
        LookupError: If this process does not run a job.
    """
    if _current is not None:
        return _current
    try:
        return _from_environment(os.environ)
    except KeyError as error:
        raise LookupError("this process does not run a job") from error


def visible_gpus(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the GPUs that the environment shows to CUDA."""
    return tuple(uuid for uuid in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid)


def _from_environment(environment: Mapping[str, str]) -> JobContext:
    return JobContext(
        job_id=environment[JOB_ID],
        attempt=int(environment[ATTEMPT]),
        fencing_token=int(environment[FENCING_TOKEN]),
        gpus=visible_gpus(environment),
        send=lambda report: None,  # a command has no socket to its worker: what it prints is its progress
    )
