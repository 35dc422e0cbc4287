"""One runner in the guardian's care: how far it has come, and how it is being ended."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from orchestrator.guardian.channel import Document
from orchestrator.guardian.locks import DeviceLocks
from orchestrator.guardian.messages import Cause, RunnerSpec
from orchestrator.guardian.tree import Tree

KILL_LOOK_SECONDS: Final = 0.01  # the first look after a KILL; the pause doubles


class Stage(Enum):
    """How far a runner has come."""

    LOCKING = auto()  # waits for its GPUs' locks
    CLEANING = auto()  # has them, and waits until nothing of earlier runners is left on its GPUs
    FORKING = auto()  # waits for the fork server
    STARTING = auto()  # forked, not yet begun
    RUNNING = auto()
    ENDED = auto()  # the leader is gone, something that it started may not be


@dataclass(slots=True)
class Ending:
    """A tree is being ended: TERM until ``kill_at``, KILL from then on."""

    cause: Cause
    kill_at: float
    look_at: float
    pause: float = KILL_LOOK_SECONDS
    killed_at: float | None = None  # the first KILL
    asked: set[tuple[int, int]] = field(default_factory=set)  # who got TERM


@dataclass(slots=True)
class Ward:
    """One runner."""

    spec: RunnerSpec
    tree: Tree
    descriptors: list[int]  # control socket and output, until the fork server has them
    locks: DeviceLocks
    lock_deadline: float
    deadline: float | None
    look_at: float = 0.0
    stage: Stage = Stage.LOCKING
    pid: int | None = None
    start_ticks: int = 0
    status: int | None = None  # read end of the pipe on which a failed start is told
    failure: str | None = None
    clean_deadline: float = 0.0
    unclean: tuple[str, ...] = ()
    exit_status: int | None = None
    peak_rss_mib: int = 0
    ending: Ending | None = None
    is_abandoned: bool = False  # its fork server died
    is_stuck: bool = False  # it outlives KILL, and its worker was told


def dues(ward: Ward) -> Iterable[float]:
    """Yield when the ward is to be looked at."""
    if ward.deadline is not None:
        yield ward.deadline
    if ward.stage in (Stage.LOCKING, Stage.CLEANING):
        yield ward.look_at
    if ward.ending is not None:
        yield ward.ending.look_at


def describe(ward: Ward) -> Document:
    """Return what the journal says of a runner."""
    spec = ward.spec
    described: Document = {"runner": spec.runner_id, "mark": ward.tree.mark, "token": spec.token}
    described |= {"gpus": list(spec.gpus), "exclusive": spec.exclusive}
    if ward.pid is not None:
        described |= {"pid": ward.pid, "pgid": ward.pid, "start_ticks": ward.start_ticks}
    return described
