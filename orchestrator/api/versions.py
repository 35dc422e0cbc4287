"""Versions of what is answered, as entity tags (RFC 9110): a caller that has it already is not sent it again."""

import hashlib
import json
import re
from typing import Any, Final

from starlette.responses import JSONResponse, Response

from orchestrator.errors import InvalidRequest

#: How a route that answers through ``versioned`` is described.
NOT_MODIFIED: Final[dict[int | str, dict[str, Any]]] = {304: {"description": "As the caller's If-None-Match has it."}}


def versioned(document: Any, if_none_match: str | None) -> Response:
    """Return a document with its tag, or 304 without it if the caller names that tag."""
    tag = tag_of(document)
    if if_none_match is not None and tag in (each.strip() for each in if_none_match.split(",")):
        return Response(status_code=304, headers={"ETag": tag})
    return JSONResponse(document, headers={"ETag": tag})


def tag_of(document: Any) -> str:
    """Return the tag of a document; weak, as it says nothing of how the document is written."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return f'W/"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'


def version_of(if_match: str | None) -> int | None:
    """Return the version that an If-Match names; None: any will do.

    Raises:
        InvalidRequest: If it is no version.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    found = re.fullmatch(r'\s*"(\d{1,9})"\s*', if_match)
    if found is None:
        raise InvalidRequest('If-Match names one version, as its ETag: "3"')
    return int(found[1])
