"""What a worker and its guardian tell each other; every message is a JSON object."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, TypeAlias

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuProcess, GpuSample
from orchestrator.domain.gpu_memory import NO_FOREIGN_USE
from orchestrator.gpus.self_test import Verdict

Document: TypeAlias = dict[str, Any]
Cause: TypeAlias = Literal["exit", "killed", "deadline", "worker_lost"]

#: The variable that marks every process of a runner; the only one that the guardian adds to the environment given.
RUNNER_ID: Final = "ORCHESTRATOR_RUNNER_ID"


_RUNNER_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class RunnerSpec:
    """A runner to start: a program (``argv``) or a function of a forked Python (``entry``), never both.

    ``environment`` is all that the runner gets, but for ``ORCHESTRATOR_RUNNER_ID``, which the guardian sets.
    ``rlimits`` are named as in ``resource`` without the prefix, in lower case (``core``, ``nofile``), and bind hard.
    ``nice`` is added to the guardian's own niceness. ``deadline`` is a CLOCK_BOOTTIME instant; None until
    ``set_deadlines`` names one.
    """

    runner_id: str
    argv: tuple[str, ...] | None
    entry: str | None  # "module:function", called with the spec as a mapping and the control socket
    environment: Mapping[str, str]
    cwd: str
    gpus: tuple[str, ...]
    exclusive: bool
    token: int
    nice: int | None
    rlimits: Mapping[str, int]
    deadline: float | None = None
    memory_mib: int = 0  # of the host's memory, where control groups can hold it to that; 0: no limit
    cgroups: tuple[str, ...] = ()  # directories of the groups that it joins; the guardian's to say
    umask: int | None = None
    no_new_privileges: bool = False  # no program that it starts gets more rights than it has

    def __post_init__(self) -> None:
        if (self.argv is None) == (self.entry is None) or self.argv == ():
            raise ValueError("a runner has an argv or an entry")
        if not _RUNNER_ID.fullmatch(self.runner_id):
            raise ValueError(f"{self.runner_id!r} cannot name a runner")

    def to_document(self) -> Document:
        """Return the spec as JSON can carry it."""
        names = (field.name for field in fields(self))
        return {name: getattr(self, name) for name in names} | {
            "environment": dict(self.environment),
            "rlimits": dict(self.rlimits),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "RunnerSpec":
        """Read what ``to_document`` wrote."""
        argv = document["argv"]
        lists = {name: tuple(document[name]) for name in ("gpus", "cgroups")}
        return cls(**{**document, **lists, "argv": None if argv is None else tuple(argv)})


@dataclass(frozen=True, slots=True)
class Spawned:
    """The runner's program, or its entry, has begun; environment, limits and GPUs are in force."""

    runner_id: str
    pid: int
    start_ticks: int  # with the pid, the identity of the process on this boot
    isolation: str = "process"  # what stands around it


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The runner never began, and nothing of it is left."""

    runner_id: str
    reason: str
    unclean: tuple[str, ...] = ()  # the GPUs that did not come clean in time, if it failed for that


@dataclass(frozen=True, slots=True)
class Exited:
    """The runner and every process that it started are gone, and its GPUs' locks are released."""

    runner_id: str
    exit_code: int | None
    signal: int | None  # both None when nobody could reap it
    cause: Cause
    peak_rss_mib: int
    memory_kills: int = 0  # of its processes that the kernel ended, because they used more memory than they may


@dataclass(frozen=True, slots=True)
class Cleared:
    """Nothing is left on the GPUs that were to be cleared for a lease, or ``refusal`` says what is."""

    lease_id: int
    refusal: str | None = None
    unclean: tuple[str, ...] = ()  # the GPUs that did not come clean in time, if it is refused for that


@dataclass(frozen=True, slots=True)
class Stuck:
    """Processes of a runner outlive KILL, or at last do not; it may be one of an earlier guardian.

    Its GPUs' locks are held until they are gone. Nothing more is told of the runner itself.
    """

    runner_id: str
    gpus: tuple[str, ...]
    pids: tuple[int, ...]
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class GpuReport:
    """Every GPU of the host; sent when something that decides placement changed, and every few seconds."""

    samples: tuple[GpuSample, ...]


@dataclass(frozen=True, slots=True)
class GpuFault:
    """The GPUs cannot be read; no earlier report stands any longer."""

    reason: str


@dataclass(frozen=True, slots=True)
class GpuTested:
    """A self-test of a GPU has ended."""

    gpu: str
    verdict: Verdict
    reason: str  # if it is not that all is well


#: What is told of GPUs, and not of a runner.
GpuNews: TypeAlias = GpuReport | GpuFault | GpuTested | Cleared | Stuck
GuardianEvent: TypeAlias = Spawned | SpawnFailed | Exited | GpuNews

_EVENTS: Final[dict[str, type[Spawned | SpawnFailed | Exited | Cleared | Stuck | GpuFault | GpuTested]]] = {
    "spawned": Spawned,
    "spawn_failed": SpawnFailed,
    "exited": Exited,
    "cleared": Cleared,
    "stuck": Stuck,
    "gpu_fault": GpuFault,
    "gpu_tested": GpuTested,
}
_NAMES: Final = {kind: name for name, kind in _EVENTS.items()}


def event_to_document(event: GuardianEvent) -> Document:
    """Return the event as JSON can carry it; ``op`` names its type."""
    if isinstance(event, GpuReport):
        return {"op": "gpu_report", "samples": [asdict(sample) for sample in event.samples]}
    return {"op": _NAMES[type(event)], **asdict(event)}


def event_from_document(document: Mapping[str, Any]) -> GuardianEvent:
    """Read what ``event_to_document`` wrote."""
    arguments = {name: value for name, value in document.items() if name != "op"}
    if document["op"] == "gpu_report":
        return GpuReport(tuple(sample_from_document(sample) for sample in arguments["samples"]))
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()}
    if document["op"] == "gpu_tested":
        arguments["verdict"] = Verdict(arguments["verdict"])
    return _EVENTS[document["op"]](**arguments)


def sample_from_document(document: Mapping[str, Any]) -> GpuSample:
    """Read a sample that ``dataclasses.asdict`` wrote."""
    return GpuSample(
        **{
            **document,
            "gpu": Gpu(**{**document["gpu"], "links": tuple(document["gpu"]["links"])}),
            "health": GpuHealth(document["health"]),
            "processes": tuple(GpuProcess(**process) for process in document["processes"]),
            "slowed_by": tuple(document["slowed_by"]),
            "foreign": NO_FOREIGN_USE,  # its host judges that
        }
    )
