"""How a runner is started: its environment, its program and its limits."""

import sys
from collections.abc import Mapping
from typing import Final

from orchestrator.domain.job import JobKind
from orchestrator.domain.lease import ClaimedJob
from orchestrator.guardian.messages import RunnerSpec
from orchestrator.job_context import ATTEMPT, FENCING_TOKEN, JOB_ID
from orchestrator.model_cache import GPU_MEMORY_MIB
from orchestrator.worker.confinement import Confinement
from orchestrator.worker.processes import RunnerKey
from orchestrator.worker.runner import APP, HOSTNAME
from orchestrator.worker.secret_files import without_secrets

#: What a command inherits of the worker's environment; secrets of the worker stay out.
INHERITED: Final = (
    "PATH", "HOME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "TZ", "USER", "LOGNAME", "SHELL", "TMPDIR",
    "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
)  # fmt: skip


def task_runner_spec(
    runner_id: str,
    key: RunnerKey,
    *,
    token: int,
    app: str,
    hostname: str,
    inherited: Mapping[str, str],
    confinement: Confinement,
) -> RunnerSpec:
    """Describe a runner for Celery tasks: the operator's own app, with the worker's environment."""
    environment = (
        without_secrets(inherited) | _gpu_environment(key) | {APP: app, HOSTNAME: hostname, FENCING_TOKEN: str(token)}
    )
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return RunnerSpec(
        runner_id=runner_id,
        argv=None,
        entry="orchestrator.worker.runner:main",
        environment=environment,
        cwd="/",
        gpus=key.gpus,
        exclusive=key.exclusive,
        token=token,
        nice=confinement.nice,
        rlimits=confinement.rlimits,
        memory_mib=key.host_memory_mib,
        umask=confinement.umask,
        no_new_privileges=confinement.no_new_privileges,
    )


def command_runner_spec(
    runner_id: str,
    claimed: ClaimedJob,
    key: RunnerKey,
    *,
    token: int,
    inherited: Mapping[str, str],
    confinement: Confinement,
    secrets: Mapping[str, str] | None = None,
) -> RunnerSpec:
    """Describe a command job's process: its own environment, and secrets, over the few inherited variables."""
    payload = claimed.payload
    environment = {name: inherited[name] for name in INHERITED if name in inherited}
    environment |= {"PYTHONUNBUFFERED": "1"}
    environment |= {str(name): str(value) for name, value in (payload.get("env") or {}).items()}
    environment |= secrets or {}
    environment |= _gpu_environment(key)
    environment |= {JOB_ID: claimed.id, ATTEMPT: str(claimed.attempt), FENCING_TOKEN: str(token)}
    return RunnerSpec(
        runner_id=runner_id,
        argv=tuple(payload["argv"]),
        entry=None,
        environment=environment,
        cwd=payload.get("cwd") or "/",
        gpus=key.gpus,
        exclusive=key.exclusive,
        token=token,
        nice=confinement.nice,
        rlimits=confinement.rlimits,
        memory_mib=key.host_memory_mib,
        umask=confinement.umask,
        no_new_privileges=confinement.no_new_privileges,
    )


def is_command(claimed: ClaimedJob) -> bool:
    """The job is an argv of its own rather than a Celery task."""
    return claimed.kind is JobKind.COMMAND


def find_app_path(app: object, modules: Mapping[str, object]) -> str:
    """Return ``module:attribute`` under which another process can import the app.

    Raises:
        LookupError: If no imported module holds it.
    """
    main = str(getattr(app, "main", None))
    # Celery's own modules hold it too once it is the default app, but only in this process.
    others = {name for name in modules if name.partition(".")[0] != "celery"}
    names: list[str] = [name for name in (main, f"{main}.app", f"{main}.celery") if name in others]
    for name in [*names, *sorted(others - set(names))]:
        for attribute, value in list(getattr(modules.get(name), "__dict__", {}).items()):
            if value is app:
                return f"{_importable(name)}:{attribute}"
    raise LookupError("the Celery app is not an attribute of any imported module, so runners cannot import it")


def _importable(name: str) -> str:
    if name != "__main__":
        return name
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else name


def _gpu_environment(key: RunnerKey) -> dict[str, str]:
    gpus = ",".join(key.gpus)
    memory = {} if key.gpu_memory_mib is None else {GPU_MEMORY_MIB: str(key.gpu_memory_mib)}
    return {"CUDA_VISIBLE_DEVICES": gpus, "NVIDIA_VISIBLE_DEVICES": gpus or "void"} | memory
