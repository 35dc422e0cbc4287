"""What a request may be: how deep, how large, how slow, how often."""

import asyncio
import json
import time
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.types import Message, Receive

from orchestrator.api.bodies import MOST_NESTED, Gone, nesting, read_body, refuse_ambiguous
from orchestrator.api.rates import BURST_SECONDS, MOST_BUCKETS, Rates
from orchestrator.body_errors import MalformedBody, TooDeep, TooSlow
from orchestrator.errors import PayloadTooLarge, RateLimited
from orchestrator.testing.clock import FakeClock

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='[]{}"\\ aé\n'),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[]{}"\\'), inner, max_size=4),
    max_leaves=60,
)


def depth(document: Any) -> int:
    if isinstance(document, dict):
        return 1 + max(map(depth, document.values()), default=0)
    return 1 + max(map(depth, document), default=0) if isinstance(document, list) else 0


@given(DOCUMENTS, st.booleans())
def test_nesting_is_that_of_the_document(document: Any, readable: bool) -> None:
    """Brackets in strings do not count, however they are escaped; shallow documents may be told as flat."""
    many = [document, [[] for _ in range(MOST_NESTED + 1)]]  # enough brackets for a closer look
    text = json.dumps(many, indent=2 if readable else None).encode()

    assert nesting(text) == depth(many)


def test_what_is_deep_is_found_without_reading_all_of_it() -> None:
    begun = time.process_time()

    assert nesting(b"[" * 1_000_000) > MOST_NESTED
    assert nesting(b'"' + b"\\" * 1_000_000 + b"[" * 40) == 0, "a string that never ends holds no brackets"
    assert nesting(b"[" * 32 + b'"' + b'\\"' * 1_000_000 + b"{") == 32
    assert time.process_time() - begun < 30  # seconds: anything but quadratic


class Sender:
    """Sends a body in these chunks, then nothing more, or is gone."""

    def __init__(self, *chunks: bytes, ends: bool = True, goes: bool = False) -> None:
        self.messages: list[Message] = [
            {"type": "http.request", "body": chunk, "more_body": not ends or number < len(chunks) - 1}
            for number, chunk in enumerate(chunks)
        ]
        if goes:
            self.messages.append({"type": "http.disconnect"})
        self.given = 0

    async def __call__(self) -> Message:
        if self.given == len(self.messages):
            await asyncio.Event().wait()
        self.given += 1
        return self.messages[self.given - 1]


def read(sender: Sender, *, limit_bytes: int = 100, seconds: float = 30, **headers: str) -> Receive:
    given = Headers(
        {name.replace("_", "-"): value for name, value in ({"transfer_encoding": "chunked"} | headers).items()}
    )

    async def within() -> Receive:
        return await read_body(given, sender, limit_bytes=limit_bytes, seconds=seconds)

    return asyncio.run(within())


def test_a_body_is_given_again_whole() -> None:
    async def ask(receive: Receive) -> Message:
        return await receive()

    receive = read(Sender(b'{"a"', b": 1}"))

    assert asyncio.run(ask(receive)) == {"type": "http.request", "body": b'{"a": 1}', "more_body": False}


def test_a_declared_size_is_refused_before_anything_is_read() -> None:
    sender = Sender(b"x")

    with pytest.raises(PayloadTooLarge):
        read(sender, content_length="101")
    with pytest.raises(PayloadTooLarge):
        read(sender, content_length="9" * 5000)
    assert sender.given == 0


def test_reading_ends_where_the_limit_is_passed() -> None:
    sender = Sender(*[b"x" * 60] * 10)

    with pytest.raises(PayloadTooLarge):
        read(sender)
    assert sender.given == 2


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with pytest.raises(TooSlow):
        read(Sender(b"{", ends=False), seconds=0.05)


def test_a_caller_that_goes_away_is_not_answered() -> None:
    with pytest.raises(Gone):
        read(Sender(b"{", ends=False, goes=True))


def test_deep_json_is_refused() -> None:
    with pytest.raises(TooDeep):
        read(Sender(b"[" * (MOST_NESTED + 1)))


def test_a_caller_has_a_burst_and_then_a_rate() -> None:
    clock = FakeClock()
    rates = Rates(clock.monotonic)
    for _ in range(int(BURST_SECONDS * 2)):
        rates.take("a", 120)

    with pytest.raises(RateLimited) as caught:
        rates.take("a", 120)
    rates.take("b", 120)

    assert caught.value.retry_after_seconds == 1
    clock.advance(timedelta(seconds=0.5))
    rates.take("a", 120)


def test_those_who_wait_as_told_are_served() -> None:
    clock = FakeClock()
    rates = Rates(clock.monotonic)
    rates.take("a", 1)

    with pytest.raises(RateLimited) as caught:
        rates.take("a", 1)
    clock.advance(timedelta(seconds=caught.value.retry_after_seconds))
    rates.take("a", 1)


def test_callers_that_are_silent_are_forgotten() -> None:
    clock = FakeClock()
    rates = Rates(clock.monotonic)
    for number in range(MOST_BUCKETS):
        rates.take(f"caller {number}", 600)
    clock.advance(timedelta(seconds=BURST_SECONDS))
    rates.take("one more", 600)

    assert len(rates._buckets) == 1


@given(DOCUMENTS, st.booleans())
def test_what_every_reader_of_json_reads_alike_is_let_through(document: Any, escaped: bool) -> None:
    refuse_ambiguous(json.dumps(document, ensure_ascii=escaped).encode())


@pytest.mark.parametrize(
    "text",
    [b'{"a": 1, "a": 1}', rb'[{"b": {"a": 1, "\u0061": 2}}]', b"[NaN]", b"-Infinity", b'"\xff"', b"[\x001\x00]"],
)
def test_what_readers_of_json_read_in_different_ways_is_refused(text: bytes) -> None:
    with pytest.raises(MalformedBody):
        refuse_ambiguous(text)


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1} {"a": 1}', b"argv=true"])
def test_what_is_no_json_is_left_to_who_reads_it(text: bytes) -> None:
    refuse_ambiguous(text)
