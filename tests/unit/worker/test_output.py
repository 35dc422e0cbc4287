"""The bounded copy of an attempt's output."""

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.worker.output import OutputCapture


def test_output_within_the_head_is_kept_whole_and_in_order() -> None:
    capture = OutputCapture(head_bytes=100, tail_bytes=10)
    capture.feed(b"one ")
    first = capture.drain()
    capture.feed(b"two")

    assert first == [(0, "one ")]
    assert capture.drain(ended=True) == [(1, "two")]


def test_of_long_output_head_and_tail_are_kept_and_the_gap_is_named() -> None:
    capture = OutputCapture(head_bytes=4, tail_bytes=6)
    capture.feed(b"head" + b"x" * 100 + b"tail!!")
    chunks = capture.drain(ended=True)

    assert [number for number, _ in chunks] == [0, 1]
    assert chunks[0][1] == "head"
    assert chunks[1][1] == "\n[... 100 bytes of output dropped here ...]\ntail!!"


def test_a_character_cut_in_two_by_a_read_survives() -> None:
    capture = OutputCapture(head_bytes=100, tail_bytes=10)
    data = "é".encode()
    capture.feed(data[:1])
    capture.feed(data[1:])

    assert "".join(text for _, text in capture.drain(ended=True)) == "é"


@given(pieces=st.lists(st.binary(max_size=50), max_size=30), head=st.integers(0, 200), tail=st.integers(1, 200))
def test_nothing_is_lost_while_it_fits(pieces: list[bytes], head: int, tail: int) -> None:
    capture = OutputCapture(head_bytes=head, tail_bytes=tail)
    chunks = []
    for piece in pieces:
        capture.feed(piece)
        chunks += capture.drain()
    chunks += capture.drain(ended=True)
    text = "".join(piece for _, piece in chunks)
    whole = b"".join(pieces)

    assert [number for number, _ in chunks] == list(range(len(chunks)))
    if len(whole) <= head:
        assert text == whole.decode("utf-8", "replace")
    assert ("bytes of output dropped" in text) == (len(whole) > head + tail) or b"bytes of output" in whole
