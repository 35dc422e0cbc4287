"""What a running job may know and say of itself: ``orchestrator.current()``."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: A runner's environment names the job's lease here, so that user code can fence its own writes.
JOB_ID: Final = "ORCHESTRATOR_JOB_ID"
ATTEMPT: Final = "ORCHESTRATOR_ATTEMPT"
FENCING_TOKEN: Final = "ORCHESTRATOR_FENCING_TOKEN"  # noqa: S105 - a variable's name
#: What an earlier attempt told to go on from; and for commands the file in which to tell it.
CHECKPOINT: Final = "ORCHESTRATOR_CHECKPOINT"
CHECKPOINT_FILE: Final = "ORCHESTRATOR_CHECKPOINT_FILE"
LONGEST_CHECKPOINT: Final = 1024


@dataclass(frozen=True, slots=True)
class JobContext:
    """The attempt that runs in this process."""

    job_id: str
    attempt: int
    fencing_token: int
    gpus: tuple[str, ...]  # uuids
    send: Callable[[Mapping[str, Any]], None]
    last_checkpoint: str | None = None  # what an earlier attempt told to go on from
    model: str | None = None  # that the job wants; of a worker pool, what that has loaded

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Report how far the job has come; the worker stores the latest report about once a second."""
        self.send({"op": "progress", "id": self.job_id, "progress": {"done": done, "total": total, "message": message}})

    def checkpoint(self, where: str) -> None:
        """Tell from where a further attempt can go on: a path or a URL, not the data; call it when that is complete.

        The worker stores the latest one within about a second; should this attempt be lost, ended or fail, the next one
        finds it in ``last_checkpoint`` and in the variable ``ORCHESTRATOR_CHECKPOINT``.

        Raises:
            ValueError: If it is empty, longer than 1024 characters, or of more than one line.
        """
        if not 0 < len(where) <= LONGEST_CHECKPOINT or not where.isprintable():
            raise ValueError(f"a checkpoint is one line of 1 to {LONGEST_CHECKPOINT} characters")
        self.send({"op": "progress", "id": self.job_id, "checkpoint": where})

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Say that the job is getting ready: meanwhile its GPUs may do nothing, and it is not held to be idle.

        Of a task; a command has the time of the setting ``idle_gpu_grace``.
        """
        global _phases  # noqa: PLW0603 - one attempt at a time runs in a process
        _phases += 1
        if _phases == 1:
            self.send({"op": "loading", "id": self.job_id, "on": True})
        try:
            yield
        finally:
            _phases -= 1
            if _phases == 0:
                self.send({"op": "loading", "id": self.job_id, "on": False})


_phases = 0  # that are loading just now, one inside another
_current: JobContext | None = None


def enter(context: JobContext | None) -> None:
    """Make ``context`` the current one; the runner calls it, user code does not."""
    global _current, _phases
    _current, _phases = context, 0


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
        send=lambda report: _write_checkpoint(environment.get(CHECKPOINT_FILE), report.get("checkpoint")),
        last_checkpoint=environment.get(CHECKPOINT),
    )


def _write_checkpoint(file: str | None, where: str | None) -> None:
    """Tell it as a command does, which has no socket to its worker; of progress it has only what it prints."""
    if file and where is not None:
        new = Path(f"{file}.new")
        new.write_text(where)
        new.replace(file)
