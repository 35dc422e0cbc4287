"""Which endpoints an app has."""

from collections.abc import Iterable, Iterator
from typing import Any


def routes_of(app: Any) -> Iterator[tuple[str, str]]:
    """Yield (method, path as declared) of every endpoint, those of included routers too."""
    yield from _routes(app.routes)


def _routes(routes: Iterable[Any]) -> Iterator[tuple[str, str]]:
    for route in routes:
        if hasattr(route, "original_router"):
            yield from _routes(route.original_router.routes)
        else:
            yield from ((method, route.path) for method in route.methods)
