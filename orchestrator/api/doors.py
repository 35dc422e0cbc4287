"""What each endpoint asks of its callers, found by a request's path alone.

Requests are routed when their bodies are there. Who may not ask is refused before: nobody reads what it sends.
``guard.authorise`` decides about every request all the same; a path that is not found here loses nothing but that.
"""

import re
from collections import defaultdict
from collections.abc import Sequence

from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, compile_path
from starlette.types import Scope

from orchestrator.api.guard import OPEN_PATHS, Requires, needed
from orchestrator.domain.access import Principal


class Doors:
    """The endpoints of an app, by method, in the order in which they are tried."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._doors: defaultdict[str, list[tuple[re.Pattern[str], RouteContext, Requires]]] = defaultdict(list)
        for context in iter_route_contexts(routes):
            route, path = context.original_route, context.path
            if not isinstance(route, APIRoute) or path is None or path in OPEN_PATHS:
                continue
            pattern, _format, _convertors = compile_path(path)
            for method in route.methods or ():
                self._doors[method].append((pattern, context, needed(route, method)))

    def refuse_unread(self, scope: Scope, caller: Principal) -> None:
        """Refuse a caller whose role is too low for what it asks; the audit is told what that was.

        Raises:
            Forbidden: If it is.
        """
        for pattern, context, asked in self._doors.get(scope["method"], ()):
            if pattern.match(scope["path"]):
                scope["route"] = context
                asked.check(caller)
                return
