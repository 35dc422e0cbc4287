"""Who may ask: whoever has the token; without one, programs and pages of this host alone."""

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fastapi import Request

from orchestrator.errors import Forbidden, Unauthenticated


def guard(token: str | None) -> Callable[[Request], Awaitable[None]]:
    """Return the check that every endpoint but the health checks begins with."""

    async def has_token(request: Request) -> None:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        expected = (token or "").encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), expected):
            raise Unauthenticated("a valid bearer token is needed: Authorization: Bearer …")

    return is_of_this_host if token is None else has_token


async def is_of_this_host(request: Request) -> None:
    """Refuse what a page of another site makes the browser of somebody on this host send.

    The address alone keeps nobody out: any page may post to 127.0.0.1, and by a name that it owns and lets point there
    it may read the answer too. A request for another name, or from a page of another origin, is therefore refused.

    Raises:
        Forbidden: If it is one of these.
    """
    host = request.headers.get("Host", "")
    if not is_loopback(_name(f"//{host}")):
        raise Forbidden(f"without a token only loopback names are served, not {host!r}; set ORCHESTRATOR_API_TOKEN")
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Forbidden(f"without a token pages of other sites are not served, such as {origin!r}")


def is_loopback(host: str) -> bool:
    """Only this host reaches this address or name."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that hold no address
        return ""
