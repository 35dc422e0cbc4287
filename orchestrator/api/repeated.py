"""Parameters of a query that are given more than once."""

from collections import Counter
from collections.abc import Iterator
from typing import get_args, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError


async def refuse_repeated(request: Request) -> None:
    """Refuse a request with a parameter that is given twice: what looks at it on its way may read the other value.

    Raises:
        RequestValidationError: Naming each, but for those that are lists.
    """
    counts = Counter(name for name, _ in request.query_params.multi_items())
    repeated = {name for name, count in counts.items() if count > 1}
    if repeated:
        repeated -= set(_lists(request.scope.get("route")))
    if repeated:
        raise RequestValidationError(
            [{"type": "repeated", "loc": ("query", name), "msg": "given more than once"} for name in sorted(repeated)]
        )


def _lists(route: object) -> Iterator[str]:
    for field in getattr(getattr(route, "dependant", None), "query_params", ()):
        annotation = field.field_info.annotation
        if list in {get_origin(one) for one in (annotation, *get_args(annotation))}:
            yield field.alias
