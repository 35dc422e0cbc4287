"""Messages between worker and runner."""

import socket
from collections.abc import Iterator

import pytest

from orchestrator.worker import frames


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    far.setblocking(False)
    yield near, far
    near.close()
    far.close()


@pytest.mark.parametrize("size", [0, 1000, frames.INLINE_LIMIT, 3_000_000])
def test_a_message_arrives_whole_whatever_its_size(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    near, far = pair
    assert frames.send(near, {"text": "ü" * size})
    assert frames.receive(far) == {"text": "ü" * size}


def test_a_full_socket_takes_nothing_of_a_message(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    sent = 0
    while frames.send(near, {"number": sent, "padding": "x" * 1000}):
        sent += 1
    for number in range(sent):
        received = frames.receive(far)
        assert received is not None
        assert received["number"] == number
    with pytest.raises(BlockingIOError):
        frames.receive(far)


def test_what_the_sender_takes_back_the_receiver_never_sees(pair: tuple[socket.socket, socket.socket]) -> None:
    """The worker holds the runner's end too; a packet is read by exactly one of them."""
    near, far = pair
    for number in range(3):
        frames.send(near, {"number": number})
    started = frames.receive(far)
    taken_back = [frames.receive(far.dup()), frames.receive(far.dup())]

    assert started == {"number": 0}
    assert taken_back == [{"number": 1}, {"number": 2}]


def test_the_end_of_the_other_side_is_seen(pair: tuple[socket.socket, socket.socket]) -> None:
    near, far = pair
    near.close()
    assert frames.receive(far) is None


def test_reading_an_empty_blocking_socket_does_not_wait_unless_told_to() -> None:
    """The runner's end is a blocking socket; the worker reads it too, and must never wait there."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far, pytest.raises(BlockingIOError):
        frames.receive(far)
