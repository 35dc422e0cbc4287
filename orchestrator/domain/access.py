"""Who may do what: roles, the tokens that carry them, and how a token is written."""

import hashlib
import re
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

#: What every secret begins with, so that scanners for leaked secrets know it.
PREFIX: Final = "orch"
#: Whose jobs those are that name no tenant.
DEFAULT_TENANT: Final = "default"
ANY_PROGRAM: Final = "*"
ID_BYTES: Final = 6
SECRET_BYTES: Final = 32
_SECRET: Final = re.compile(rf"{PREFIX}_([0-9a-f]{{{2 * ID_BYTES}}})_([0-9a-f]{{{2 * SECRET_BYTES}}})_([0-9a-f]{{8}})")


class Role(StrEnum):
    """What a caller may do; each may do what those before it may."""

    VIEWER = "viewer"  # read
    SUBMITTER = "submitter"  # submit jobs and change its tenant's
    OPERATOR = "operator"  # change every tenant's jobs, queues and hosts, and the policy
    ADMIN = "admin"  # tokens, sweeps, the audit

    def covers(self, needed: "Role") -> bool:
        """This role may do what ``needed`` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request."""

    name: str
    role: Role
    tenant: str | None = None  # None: every tenant's jobs
    token_id: str | None = None  # None: the installation's own token
    requests_per_minute: int | None = None

    def sees(self, tenant: str) -> bool:
        """Jobs of this tenant exist for the caller."""
        return self.tenant is None or self.tenant == tenant


@dataclass(frozen=True, slots=True)
class Token:
    """A token as stored; its secret is known to its holder alone."""

    id: str
    name: str
    role: Role
    tenant: str | None
    requests_per_minute: int | None
    created_by: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    hash: str

    def principal(self) -> Principal:
        """Return whom it stands for."""
        return Principal(self.name, self.role, self.tenant, self.id, self.requests_per_minute)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of what people and programs changed."""

    request_id: str
    actor: str
    role: str
    tenant: str | None
    action: str  # such as ``POST /jobs/{job_id}/cancel`` or ``token create``
    target: str
    outcome: str  # begun, then the status that was answered: a line of its own
    seq: int | None = None  # None: not stored yet
    at: datetime | None = None


def token_document(token: Token) -> dict[str, str | int | None]:
    """Return a token as people and programs read it: all of it but the hash."""
    instants = ("created_at", "expires_at", "revoked_at", "last_used_at")
    values = {name: getattr(token, name) for name in ("name", "id", "tenant", "requests_per_minute", "created_by")}
    moments = {name: getattr(token, name) for name in instants}
    return values | {"role": token.role.value} | {k: v.isoformat() if v else None for k, v in moments.items()}


def make_secret(draw: bytes) -> tuple[str, str]:
    """Return (id, secret) of a new token.

    Args:
        draw: ``ID_BYTES + SECRET_BYTES`` random bytes, drawn by the caller.

    Raises:
        ValueError: If there are more or fewer.
    """
    if len(draw) != ID_BYTES + SECRET_BYTES:
        raise ValueError(f"{ID_BYTES + SECRET_BYTES} random bytes are needed, not {len(draw)}")
    id, rest = draw[:ID_BYTES].hex(), draw[ID_BYTES:].hex()
    return id, f"{PREFIX}_{id}_{rest}_{_checksum(id, rest)}"


def id_of(secret: str) -> str | None:
    """Return the id in a secret; None, without asking anybody, for what cannot be one."""
    found = _SECRET.fullmatch(secret)
    return found[1] if found and found[3] == _checksum(found[1], found[2]) else None


def hash_of(secret: str) -> str:
    """Return what is stored of a secret. It has 256 random bits, so a slow hash would add nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


def scope_faults(role: Role, tenant: str | None) -> list[str]:
    """Return what is wrong with a role and a tenant together."""
    if role is Role.SUBMITTER and tenant is None:
        return ["tenant: a submitter's token names its tenant"]
    if role.covers(Role.OPERATOR) and tenant is not None:
        return [f"tenant: a token of an {role} acts on every tenant; leave it out"]
    return []


def refused_command(
    role: Role, argv: Sequence[str], *, environment: Collection[str], allowed: Mapping[Role, Sequence[str]]
) -> str | None:
    """Return why a role may not run a command, None if it may.

    Args:
        role: Of the caller.
        argv: The command.
        environment: Names of the variables that it is to be given.
        allowed: Programs by role, ``*`` for any; empty: nobody is restricted.
    """
    if not allowed:
        return None
    programs = allowed.get(role, ())
    if ANY_PROGRAM in programs:
        return None
    if not argv or argv[0] not in programs:
        return f"role {role} may run {', '.join(programs) or 'no commands'}"
    if environment:
        # PATH, PYTHONPATH, BASH_ENV and their like make another program of one that is allowed.
        return f"role {role} may set no variables for a command; use secrets, or arguments"
    return None


def _checksum(id: str, rest: str) -> str:
    return f"{zlib.crc32(f'{id}_{rest}'.encode()):08x}"
