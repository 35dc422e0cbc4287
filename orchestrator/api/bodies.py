"""Requests' bodies, read within bounds before anything looks at them: size, time, nesting."""

import asyncio
import contextlib
import json
import re
from typing import Final

from starlette.datastructures import Headers
from starlette.types import Message, Receive

from orchestrator.body_errors import MalformedBody, TooDeep, TooSlow
from orchestrator.errors import PayloadTooLarge

#: Arrays and objects within each other; a job's own arguments begin at the third or fourth.
MOST_NESTED: Final = 32
#: Strings, whose brackets mean nothing, and runs of brackets. A string may lack its end: if it had to have one, each
#: quote in a text of escaped quotes would be looked at as a beginning, up to the end of the text.
_PARTS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[{]+|[\]}]+', re.DOTALL)


class Gone(Exception):
    """The caller went away before its body was here."""


def has_body(headers: Headers) -> bool:
    """Tell whether a request has a body."""
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "") not in ("", "0")


async def read_body(headers: Headers, receive: Receive, *, limit_bytes: int, seconds: float) -> Receive:
    """Read a body and return a ``receive`` that gives it again.

    Raises:
        PayloadTooLarge: As soon as it is known to be, declared or come.
        TooSlow: If it did not come in time.
        TooDeep: If it would be JSON nested too deeply.
        MalformedBody: If it is not UTF-8, has a name twice in one object, or NaN or infinite numbers.
        Gone: If nobody waits for an answer any more.
    """
    if not has_body(headers):
        return receive
    length = headers.get("Content-Length", "")
    if length.isdecimal() and int(length[:20]) > limit_bytes:
        raise PayloadTooLarge(int(length[:20]), limit_bytes)
    try:
        async with asyncio.timeout(seconds):
            body = await _gather(receive, limit_bytes)
    except TimeoutError as error:
        raise TooSlow(f"the request's body did not come within {seconds:g} s") from error
    if nesting(body) > MOST_NESTED:
        raise TooDeep(f"arrays and objects may be nested {MOST_NESTED} deep")
    refuse_ambiguous(body)
    return _replay(body, receive)


def nesting(text: bytes) -> int:
    """Return how deep the arrays and objects of a JSON text are nested, at least up to one more than is read."""
    if text.count(b"[") + text.count(b"{") <= MOST_NESTED:
        return 0
    depth = deepest = 0
    for part in _PARTS.finditer(text):
        first = text[part.start()]
        if first in b"[{":
            depth += part.end() - part.start()
            deepest = max(deepest, depth)
            if deepest > MOST_NESTED:
                break
        elif first in b"]}":
            depth -= part.end() - part.start()
    return deepest


def refuse_ambiguous(text: bytes) -> None:
    """Refuse what others than Python read otherwise, or not at all; text that is no JSON is left to who reads it.

    Of a name that is there twice, whoever looks at requests on their way may see the first value, and we the last.

    Raises:
        MalformedBody: If it is not UTF-8, has a name twice in one object, or NaN or infinite numbers.
    """
    if b"\0" in text or not _is_utf8(text):  # JSON in UTF-16 or UTF-32 has NUL bytes, in UTF-8 none
        raise MalformedBody("the body must be JSON in UTF-8")
    with contextlib.suppress(ValueError):
        json.loads(text, object_pairs_hook=_distinct, parse_constant=_refuse_constant)


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _distinct(pairs: list[tuple[str, object]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise MalformedBody(f"{twice[:64]!r} is there twice in one object")


def _refuse_constant(word: str) -> None:
    raise MalformedBody(f"{word} is not JSON")


async def _gather(receive: Receive, limit_bytes: int) -> bytes:
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        more = message.get("more_body", False)
        if size > limit_bytes:
            raise PayloadTooLarge(size, limit_bytes)
    return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
