"""Instants as requests bear them: ISO 8601, and nothing else that could be taken for one."""

import re
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BeforeValidator, Field
from pydantic_core import PydanticCustomError

_BEGINS: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")


def _written(value: Any) -> Any:
    # pydantic takes numbers, and text of digits, for seconds or milliseconds since 1970, whichever seems likelier
    if isinstance(value, str) and _BEGINS.match(value):
        return value
    raise PydanticCustomError("instant", "must be an instant in ISO 8601, as 2026-01-31T12:00:00Z")


#: Of a parameter.
Instant = Annotated[AwareDatetime, BeforeValidator(_written)]
#: Of a job's fields, whose time zone is checked where all requests are.
JobInstant = Annotated[datetime, Field(strict=False), BeforeValidator(_written)]
