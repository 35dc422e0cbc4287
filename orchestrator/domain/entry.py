"""What a stream carries of a job: enough to route, show and claim it, never its arguments."""

from dataclasses import dataclass

from orchestrator.domain.job import Document


@dataclass(frozen=True, slots=True)
class JobEntry:
    """One delivery of one job."""

    job_id: str
    seq: int
    task: str
    queue: str
    node: str | None  # placed on this host: the entry goes to the host's own stream
    headers: Document
