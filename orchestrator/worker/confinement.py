"""What the operator holds every runner of a worker to, beside its GPUs and its memory."""

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from orchestrator.config import Settings
from orchestrator.errors import InvalidSettings

#: What holds for every job, unless the settings say otherwise.
RLIMITS: Final = {"core": 0}


@dataclass(frozen=True, slots=True)
class Confinement:
    """The same for commands and tasks; None leaves a thing as it is for the worker."""

    nice: int | None  # added to the worker's own
    rlimits: Mapping[str, int]  # of each process, by name as in ``resource``
    umask: int | None
    no_new_privileges: bool


def confine(settings: Settings) -> Confinement:
    """Return what the settings say.

    Raises:
        InvalidSettings: If a limit is above what this process may set; else each job would fail for it.
    """
    hard = {name: _hard_limit(name) for name in settings.runner_rlimits}
    above = [
        f"runner_rlimits.{name}: {value} is above the {hard[name]} that this worker may set"
        for name, value in sorted(settings.runner_rlimits.items())
        if os.geteuid() != 0 and hard[name] != resource.RLIM_INFINITY and value > hard[name]
    ]
    if above:
        raise InvalidSettings(above)
    return Confinement(
        nice=settings.runner_nice,
        rlimits=RLIMITS | settings.runner_rlimits,
        umask=None if settings.runner_umask is None else int(settings.runner_umask, 8),
        no_new_privileges=settings.runner_no_new_privileges,
    )


def _hard_limit(name: str) -> int:
    return resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))[1]
