"""What an entry may look like, and what is said about one that may not."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.entry import JobEntry
from orchestrator.errors import InvalidEntry
from orchestrator.streams.entries import checked_message, decode_fields, decode_job, decode_message, encode_job

names = st.text(min_size=1, max_size=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
entries = st.builds(
    JobEntry, names, st.integers(min_value=1), names, names, st.none() | names, st.dictionaries(st.text(), json_values)
)


@given(entries)
def test_a_job_entry_survives_its_encoding(entry: JobEntry) -> None:
    fields = {name.encode(): value.encode("utf-8", "surrogatepass") for name, value in encode_job(entry).items()}
    assert decode_fields(fields) == entry


@given(st.binary(max_size=60))
def test_bytes_that_are_no_entry_are_refused_and_nothing_else_is_raised(value: bytes) -> None:
    for decode in (decode_job, decode_message):
        with suppress(InvalidEntry):
            decode(value)


@given(json_values)
def test_json_of_any_shape_is_a_message_or_refused(value: Any) -> None:
    try:
        message = checked_message(value)
    except InvalidEntry:
        return
    assert isinstance(message["headers"], dict)
    assert isinstance(message["properties"]["delivery_info"], dict)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"id": None}, "'id'"),
        ({"id": ""}, "'id'"),
        ({"task": 5}, "'task'"),
        ({"queue": []}, "'queue'"),
        ({"seq": 0}, "'seq'"),
        ({"seq": True}, "'seq'"),
        ({"seq": 1.5}, "'seq'"),
        ({"headers": []}, "'headers'"),
        ({"node": 7}, "'node'"),
    ],
)
def test_a_refused_job_entry_says_what_is_wrong(change: dict[str, Any], named: str) -> None:
    document = {"id": "1", "task": "t", "seq": 1, "queue": "gpu", "headers": {}} | change
    with pytest.raises(InvalidEntry, match=named):
        decode_job(json.dumps(document))


@pytest.mark.parametrize("fields", [{}, {b"x": b"1"}, {b"m": b"{}", b"j": b"{}"}, {b"J": b"{}"}])
def test_an_entry_has_exactly_one_known_field(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(InvalidEntry, match="one field"):
        decode_fields(fields)


def test_a_missing_headers_object_is_an_empty_one() -> None:
    """kombu's own messages always have one; others' may not."""
    assert decode_message('{"properties": {}, "headers": null}')["headers"] == {}
