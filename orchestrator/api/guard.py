"""Who asks, and whether they may.

A request is identified before its body is read, and authorised before its endpoint runs. Both fail closed: an endpoint
that declares no role is for viewers when it only reads and for operators when it changes something.
"""

import hmac
import ipaddress
from typing import Annotated, Final
from urllib.parse import urlsplit

import anyio
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from starlette.datastructures import Headers

from orchestrator.domain.access import Principal, Role, id_of
from orchestrator.errors import Forbidden, Unauthenticated
from orchestrator.services.tokens import TokenService

#: What anybody may ask: whether the process is well.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz"})
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
#: Secrets that nobody knows cost a query each; so many at a time, that they take no thread from anybody else.
MOST_LOOKUPS: Final = 4

#: Whoever holds the installation's own token.
INSTALLATION: Final = Principal("admin", Role.ADMIN)


class Callers:
    """Finds out who sent a request."""

    def __init__(self, token: str, tokens: TokenService, *, of_home: bool = False) -> None:
        """Make it.

        Args:
            token: The installation's own.
            tokens: The other ones.
            of_home: The installation's own is the home's, for programs and pages of this host.
        """
        self._own, self._of_home = token.encode(), of_home
        self._tokens = tokens
        self._lookups: anyio.CapacityLimiter | None = None

    async def identify(self, headers: Headers) -> Principal:
        """Return whose request has these headers.

        Raises:
            Unauthenticated: If nobody's.
            Forbidden: If it has the home's token, but comes from a page of another site.
            StoreUnavailable: If the database has to be asked and does not answer.
        """
        scheme, _, given = headers.get("Authorization", "").partition(" ")
        bearer = given if scheme.lower() == "bearer" else ""
        if hmac.compare_digest(bearer.encode("latin-1"), self._own):
            if self._of_home:
                refuse_other_sites(headers)
            return INSTALLATION
        if id_of(bearer) is not None:
            found = self._tokens.trusted(bearer) or await self._look_up(bearer)
            if found is not None:
                return found
        raise Unauthenticated("a valid bearer token is needed: Authorization: Bearer …")

    async def _look_up(self, secret: str) -> Principal | None:
        if self._lookups is None:
            self._lookups = anyio.CapacityLimiter(MOST_LOOKUPS)
        return await run_sync(self._tokens.recognise, secret, limiter=self._lookups)


class Requires:
    """A dependency: the caller has this role. Make it with ``requires``."""

    def __init__(self, role: Role, *, every_tenant: bool) -> None:
        self.role, self.every_tenant = role, every_tenant

    async def __call__(self, request: Request) -> Principal:
        """Return the caller."""
        return self.check(await caller_of(request))

    def check(self, caller: Principal) -> Principal:
        """Return the caller.

        Raises:
            Forbidden: If it may not.
        """
        if not caller.role.covers(self.role):
            raise Forbidden(f"this needs the role {self.role}; this token's is {caller.role}")
        if self.every_tenant and caller.tenant is not None:
            raise Forbidden(f"this tells of every tenant; this token is for tenant {caller.tenant}")
        return caller


def requires(role: Role, *, every_tenant: bool = False) -> Requires:
    """Return the dependency that lets callers of this role, or a higher one, pass, and gives the caller.

    Args:
        role: Of a decorator's ``dependencies=[Depends(requires(Role.OPERATOR))]``, or of a parameter
            ``caller: Annotated[Principal, Depends(requires(Role.OPERATOR))]``.
        every_tenant: What is answered cannot be kept to one tenant, so a token of one is refused.
    """
    return Requires(role, every_tenant=every_tenant)


async def caller_of(request: Request) -> Principal:
    """Return who sent the request; it has been identified on its way in."""
    caller: Principal = request.state.caller
    return caller


Caller = Annotated[Principal, Depends(caller_of)]


async def authorise(request: Request) -> None:
    """Refuse a caller whose role is too low for the route; the whole app depends on it.

    Raises:
        Forbidden: If it is.
    """
    if request.scope["path"] not in OPEN_PATHS:
        needed(request.scope.get("route"), request.method).check(await caller_of(request))


def needed(route: object, method: str) -> Requires:
    """Return what a route asks of its callers."""
    calls = [each.call for each in getattr(getattr(route, "dependant", None), "dependencies", ())]
    declared = [call for call in calls if isinstance(call, Requires)]
    if declared:
        return max(declared, key=lambda one: list(Role).index(one.role))
    return requires(Role.VIEWER if method in SAFE_METHODS else Role.OPERATOR)


def refuse_other_sites(headers: Headers) -> None:
    """Refuse what a page of another site makes the browser of somebody on this host send with the home's token.

    The address alone keeps nobody out: any page may post to 127.0.0.1, and by a name that it owns and lets point there
    it may read the answer too. Such a page does not know the token; a browser or an extension that was given it may
    send it on. A request for another name, or from a page of another origin, is therefore refused.

    Raises:
        Forbidden: If it is one of these.
    """
    host = headers.get("Host", "")
    if not is_loopback(_name(f"//{host}")):
        raise Forbidden(
            f"with the home's token only loopback names are served, not {host!r}; set ORCHESTRATOR_API_TOKEN"
        )
    origin = headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Forbidden(f"with the home's token pages of other sites are not served, such as {origin!r}")


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
