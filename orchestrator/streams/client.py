"""Connections to Redis: URLs, the server's abilities, and redis's errors as ours.

The settings name one URL, ``redis://``, ``rediss://`` or ``unix://``; ``broker_url`` spells it for Celery. The broker's
schemes are ``redis-streams``, ``rediss-streams`` and ``sentinel-streams``, because kombu cuts off what stands before a
``+`` and refuses unknown query parameters; a unix socket is therefore a path, with the database as its last part:
``redis-streams://localhost/run/redis.sock/0``. (Without ``localhost`` it works as well, but kombu warns each time.)
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from orchestrator.errors import StreamUnavailable

#: Oldest server that has XAUTOCLAIM.
OLDEST: Final = (6, 2, 0)
#: XACKDEL came with 8.2.0; before 8.2.3 it could be made to overwrite the stack (CVE-2025-62507).
SAFE_XACKDEL: Final = (8, 2, 3)

_BROKER_SCHEMES: Final = {"redis": "redis-streams", "rediss": "rediss-streams"}
_CLIENT_SCHEMES: Final = {scheme: name for name, scheme in _BROKER_SCHEMES.items()}


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one server can do."""

    version: tuple[int, ...]
    ack_and_delete: bool  # XACKDEL


def broker_url(url: str) -> str:
    """Return the Celery broker URL for a ``redis://``, ``rediss://`` or ``unix://`` URL.

    Raises:
        ValueError: If the scheme is another one; a Redis Cluster in particular is refused.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix":
        database = parse_qs(parts.query).get("db", ["0"])[0]
        return f"redis-streams://{_credentials(parts.netloc)}localhost{parts.path}/{int(database)}"
    return f"{_scheme(parts.scheme, _BROKER_SCHEMES)}://{url.partition('://')[2]}"


def redis_url(url: str) -> str:
    """Return the ``redis://``, ``rediss://`` or ``unix://`` URL for one of those or for a broker URL of this product.

    Raises:
        ValueError: If the scheme is another one.
    """
    parts = urlsplit(url)
    if parts.scheme in _BROKER_SCHEMES or parts.scheme == "unix":
        return url
    name = _scheme(parts.scheme, _CLIENT_SCHEMES)
    path, database = split_socket_path(parts.path.lstrip("/"))
    if parts.hostname in (None, "localhost") and path:
        return f"unix://{_credentials(parts.netloc)}/{path}?db={database}"
    return f"{name}://{url.partition('://')[2]}"


def split_socket_path(path: str) -> tuple[str, int]:
    """Split ``run/redis.sock/2`` into the socket's path and the database; the path is empty for a bare database."""
    head, _, tail = path.rpartition("/")
    if tail.isdigit():
        return head, int(tail)
    return path, 0


def connect(url: str, *, timeout: float = 5.0, **options: Any) -> "redis.Redis":
    """Return a client; it connects when it is first used.

    Args:
        url: Any URL that ``redis_url`` accepts.
        timeout: Seconds before a silent server is given up, for connecting and for each reply.
        options: Passed to redis.
    """
    options = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "health_check_interval": 25,
        "retry": Retry(NoBackoff(), 1),  # once: for a pooled connection that a restarted server has forgotten
    } | options
    url = redis_url(url)
    if url.startswith("unix://"):
        options.pop("socket_connect_timeout")
    return redis.Redis.from_url(url, **options)


def client_of(pool: Any) -> "redis.Redis":
    """Return a client on a connection pool that somebody else made; its keys are taken as they are."""
    options: dict[str, Any] = {"connection_pool": pool}
    provider = pool.connection_kwargs.get("credential_provider")
    if provider is not None:
        options["credential_provider"] = provider
    return redis.Redis(**options)


@contextmanager
def translated() -> Iterator[None]:
    """Raise ``StreamUnavailable`` for whatever redis raises."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise StreamUnavailable(f"Redis: {error}") from error


def probe(client: Any) -> Capabilities:
    """Ask the server what it can do.

    Raises:
        StreamUnavailable: If the server cannot carry streams: too old, or a Redis Cluster.
    """
    info = client.info("server")
    if info.get("redis_mode") == "cluster":
        raise StreamUnavailable(
            "this is a Redis Cluster: one read over several streams needs a server that holds all of them; "
            "use a single server, or Sentinel"
        )
    numbers = re.findall(r"\d+", str(info.get("redis_version", "")))[:3]
    version = tuple(int(number) for number in numbers)
    if version < OLDEST:
        raise StreamUnavailable(f"Redis {info.get('redis_version')} is too old: 6.2 or later is needed")
    return Capabilities(version, _has_safe_xackdel(client, version))


def _has_safe_xackdel(client: Any, version: tuple[int, ...]) -> bool:
    if version < SAFE_XACKDEL:
        return False
    try:
        return bool(client.execute_command("COMMAND", "INFO", "XACKDEL"))
    except ResponseError:  # refused to this user
        return False


def _credentials(netloc: str) -> str:
    return f"{netloc.rpartition('@')[0]}@" if "@" in netloc else ""


def _scheme(scheme: str, known: dict[str, str]) -> str:
    if scheme in known:
        return known[scheme]
    if "cluster" in scheme:
        raise ValueError("a Redis Cluster cannot carry the streams; use a single server, or Sentinel")
    names = ", ".join(f"{name}://" for name in (*known, "unix"))
    raise ValueError(f"unknown URL scheme {scheme!r}; use one of {names}")
