"""What a request says about its host and its GPUs beyond their number, checked and turned into ``Wants``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from orchestrator.domain.request_checks import Checks
from orchestrator.domain.size import parse_mebibytes
from orchestrator.domain.wants import LONGEST_WANTS, Alternative, Wants, wants_text
from orchestrator.errors import InvalidRequest

MOST_GPUS: Final = 1024
MOST_MEMORY_MIB: Final = 16 << 20
MOST_CPUS: Final = 65_536
MOST_ALTERNATIVES: Final = 8
_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_MIG_PROFILE: Final = re.compile(r"\d+(c\.\d+)?g\.\d+gb(\+[a-z0-9.]+)?", re.IGNORECASE)
_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")


class AsksForGpus(Protocol):
    """What a request and each of its alternatives say of GPUs."""

    @property
    def gpus(self) -> int | None: ...
    @property
    def gpu_memory_mib(self) -> int | None: ...
    @property
    def gpu_type(self) -> str | None: ...
    @property
    def min_memory_mib(self) -> int | None: ...
    @property
    def mig(self) -> str | None: ...


class AsksForHost(AsksForGpus, Protocol):
    """What a request says of its host."""

    @property
    def constraints(self) -> Mapping[str, str]: ...
    @property
    def cpus(self) -> int | None: ...
    @property
    def memory_mib(self) -> int | None: ...
    @property
    def alternatives(self) -> "tuple[AlternativeRequest, ...]": ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AlternativeRequest:
    """Other GPUs that would do."""

    gpus: int | None = None
    gpu_memory_mib: int | None = None
    gpu_type: str | None = None
    min_memory_mib: int | None = None
    mig: str | None = None


def alternative(document: Mapping[str, Any]) -> AlternativeRequest:
    """Return an alternative as people write it: sizes as ``40GiB`` or MiB.

    Raises:
        InvalidRequest: If it says something else, or a size is none.
    """
    sizes = {"gpu_memory": "gpu_memory_mib", "min_memory": "min_memory_mib"}
    unknown = sorted(document.keys() - {"gpus", "gpu_type", "mig", *sizes})
    if unknown:
        raise InvalidRequest(f"alternatives: {unknown[0]!r} is none of gpus, gpu_memory, gpu_type, min_memory, mig")
    given: dict[str, Any] = {
        sizes.get(name, name): parse_mebibytes(value) if name in sizes else value for name, value in document.items()
    }
    return AlternativeRequest(**given)


def check_wants(checks: Checks, request: AsksForHost) -> None:
    """Find every fault of what a request says about GPUs and its host."""
    faults = len(checks.faults)
    _check_gpus(checks, request, "")
    _check_labels(checks, request.constraints)
    checks.optional_whole("cpus", request.cpus, 0, MOST_CPUS)
    checks.optional_whole("memory_mib", request.memory_mib, 1, MOST_MEMORY_MIB)
    if len(request.alternatives) > MOST_ALTERNATIVES:
        checks.add("alternatives", f"must be at most {MOST_ALTERNATIVES}")
    for place, other in enumerate(request.alternatives):
        _check_gpus(checks, other, f"alternatives[{place}].")
        if not gpus_of(other):
            checks.add(f"alternatives[{place}].gpus", "must ask for a GPU")
    if request.alternatives and not gpus_of(request):
        checks.add("alternatives", "are other GPUs for a job that asks for GPUs")
    if len(checks.faults) == faults and len(wants_text(wants_of(request)) or "") > LONGEST_WANTS:
        checks.add("constraints", "conditions and alternatives are too long together")


def wants_of(request: AsksForHost) -> Wants | None:
    """Return the conditions of a request that was checked; None for none."""
    wants = Wants(
        models=_models(request),
        min_memory_mib=request.min_memory_mib,
        mig_profile=None if request.mig is None else request.mig.lower(),
        labels=tuple(sorted(request.constraints.items())),
        cpus=request.cpus or 0,
        host_memory_mib=request.memory_mib or 0,
        alternatives=tuple(_alternative(other) for other in request.alternatives),
    )
    return None if wants == Wants() else wants


def gpus_of(request: AsksForGpus) -> int:
    """Return how many GPUs are asked for: one when only its kind is said."""
    if request.gpus is not None:
        return request.gpus
    said = (request.gpu_memory_mib, request.gpu_type, request.min_memory_mib, request.mig)
    return 0 if all(value is None for value in said) else 1


def _check_gpus(checks: Checks, request: AsksForGpus, where: str) -> None:
    checks.optional_whole(f"{where}gpus", request.gpus, 0, MOST_GPUS)
    checks.optional_whole(f"{where}gpu_memory_mib", request.gpu_memory_mib, 1, MOST_MEMORY_MIB)
    checks.optional_whole(f"{where}min_memory_mib", request.min_memory_mib, 1, MOST_MEMORY_MIB)
    if request.gpu_memory_mib is not None and request.gpus not in (None, 1):
        checks.add(f"{where}gpu_memory_mib", "asks for a share of one GPU; it cannot be given with gpus other than 1")
    if request.gpu_memory_mib is not None and request.mig is not None:
        checks.add(f"{where}mig", "is an instance of its own; it cannot be given with a share of a GPU")
    kind = checks.optional_text(f"{where}gpu_type", request.gpu_type, longest=256)
    if kind is not None and not all(_MODEL.fullmatch(part.strip()) for part in kind.split("|")):
        checks.add(f"{where}gpu_type", "must be models as H100, or several as H100|A100")
    mig = checks.optional_text(f"{where}mig", request.mig, longest=32)
    if mig is not None and not _MIG_PROFILE.fullmatch(mig):
        checks.add(f"{where}mig", "must be a MIG profile, as 1g.10gb")
    for name in ("gpu_type", "min_memory_mib", "mig"):
        if request.gpus == 0 and getattr(request, name) is not None:
            checks.add(f"{where}{name}", "says something of GPUs, but gpus is 0")


def _check_labels(checks: Checks, labels: object) -> None:
    if not isinstance(labels, Mapping):
        checks.add("constraints", "must be an object of label names and values")
        return
    for name, value in labels.items():
        if not (isinstance(name, str) and _LABEL.fullmatch(name)):
            checks.add("constraints", f"{name!r} is not a label: letters, digits and . _ / - only")
        elif not (isinstance(value, str) and _LABEL.fullmatch(value)):
            checks.add("constraints", f"{name}: the value may contain letters, digits and . _ / - only")


def _models(request: AsksForGpus) -> tuple[str, ...]:
    return () if request.gpu_type is None else tuple(part.strip() for part in request.gpu_type.split("|"))


def _alternative(other: AlternativeRequest) -> Alternative:
    return Alternative(
        gpus=gpus_of(other),
        gpu_memory_mib=other.gpu_memory_mib,
        models=_models(other),
        min_memory_mib=other.min_memory_mib,
        mig_profile=None if other.mig is None else other.mig.lower(),
    )
