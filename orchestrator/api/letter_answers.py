"""What the API answers about dead letters; as ``answers`` of everything else."""

from pydantic import AwareDatetime, BaseModel

from orchestrator.domain.job import FailureClass


class DeadLetter(BaseModel):
    id: str
    queue: str
    failure_class: FailureClass
    reason: str
    at: AwareDatetime


class DeadLetters(BaseModel):
    dead_letters: list[DeadLetter]
    next: int | None


class Retried(BaseModel):
    id: str
    retried: bool


class PurgedMany(BaseModel):
    purged: list[str]
    more: bool


class RetriedMany(BaseModel):
    retried: list[str]
    more: bool


class Purged(BaseModel):
    id: str
    purged: bool
