"""Secrets that jobs refer to by name: files of this host, or variables of the worker; they leave it only as variables
of the job that named them.

``<secrets_dir>/<tenant>/<NAME>`` holds the value; one line feed at its end is not part of it. For jobs of the tenant
``default`` the worker's variable ``JOB_SECRET_<NAME>`` does as well.
"""

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from orchestrator.domain.access import DEFAULT_TENANT
from orchestrator.errors import MissingSecret

VARIABLE: Final = "JOB_SECRET_"
LARGEST_BYTES: Final = 64 << 10  # the kernel takes 128 KiB as one variable


def read_secrets(
    directory: Path, tenant: str, names: Sequence[str], *, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the values by name.

    Raises:
        MissingSecret: Naming the first that is not there or cannot be used; no value is told.
    """
    return {name: _read(directory, tenant, name, environment) for name in names}


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment that may be given to jobs of any tenant."""
    return {name: value for name, value in environment.items() if not name.startswith(VARIABLE)}


def _read(directory: Path, tenant: str, name: str, environment: Mapping[str, str]) -> str:
    if tenant == DEFAULT_TENANT and VARIABLE + name in environment:
        return environment[VARIABLE + name]
    if tenant in (".", "..") or "/" in tenant + name:  # such a tenant's name would be a path to another one's
        raise MissingSecret(f"secret {name}: tenant {tenant!r} cannot have secrets")
    try:
        # Not blocking: what is put there may be a pipe, and the worker waits for nobody.
        descriptor = os.open(directory / tenant / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise MissingSecret(f"secret {name} of tenant {tenant} is not on this host ({error.strerror})") from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BYTES:
            raise MissingSecret(f"secret {name} of tenant {tenant} is not a file of at most {LARGEST_BYTES} bytes")
        if status.st_mode & 0o007:
            raise MissingSecret(f"secret {name} of tenant {tenant} may be read by everybody on this host; chmod o= it")
        content = file.read(LARGEST_BYTES + 1).removesuffix(b"\n")
    if not content or b"\0" in content:
        raise MissingSecret(f"secret {name} of tenant {tenant} is empty or holds a NUL byte")
    return os.fsdecode(content)
