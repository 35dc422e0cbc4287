"""Framing between worker, guardian and fork server, over real socket pairs."""

import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import RunnerLost
from orchestrator.guardian.channel import MAX_FRAME, Channel


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    """Return both ends of a connection."""
    ends = Channel, Channel
    near, far = (make(end) for make, end in zip(ends, socket.socketpair(), strict=True))
    yield near, far
    near.close()
    far.close()


def test_messages_arrive_in_order_with_their_descriptors(pair: tuple[Channel, Channel]) -> None:
    """Each message gets its own descriptors, however many arrive at once; they are not inherited by programs."""
    near, far = pair
    pipes = [os.pipe() for _ in range(3)]
    near.send({"n": 0})
    near.send({"n": 1}, [pipes[0][1], pipes[1][1]])
    near.send({"n": 2})
    near.send({"n": 3}, [pipes[2][1]])

    frames = far.receive()

    assert [(frame.message, len(frame.descriptors)) for frame in frames] == [
        ({"n": 0}, 0),
        ({"n": 1}, 2),
        ({"n": 2}, 0),
        ({"n": 3}, 1),
    ]
    received = [descriptor for frame in frames for descriptor in frame.descriptors]
    for number, ((reader, _sent), descriptor) in enumerate(zip(pipes, received, strict=True)):
        assert not os.get_inheritable(descriptor)
        os.write(descriptor, b"%d" % number)
        os.close(descriptor)
        assert os.read(reader, 10) == b"%d" % number
        assert os.read(reader, 10) == b""  # the sender has closed its copy
        os.close(reader)


def test_a_large_message_is_sent_as_room_appears(pair: tuple[Channel, Channel]) -> None:
    """What does not fit waits, with its descriptors already gone along; nothing blocks and nothing is lost."""
    near, far = pair
    reader, writer = os.pipe()
    near.send({"text": "x" * (6 << 20)}, [writer])
    near.send({"n": 1})
    assert [near.pending] == [True]

    frames = []
    for _ in range(10_000):
        frames += far.receive()
        near.flush()
        if not near.pending and len(frames) == 2:
            break

    assert len(frames[0].message["text"]) == 6 << 20
    assert frames[1].message == {"n": 1}
    os.close(frames[0].descriptors[0])
    os.close(reader)


def test_messages_before_the_end_are_delivered(pair: tuple[Channel, Channel]) -> None:
    """The end of the stream is noticed after what was sent before it, and sending to nobody is no error."""
    near, far = pair
    near.send({"n": 1})
    near.close()

    far.send({"to": "nobody"})
    assert [frame.message for frame in far.receive()] == [{"n": 1}]
    assert (far.closed, far.pending) == (True, False)


def test_nothing_is_no_message(pair: tuple[Channel, Channel]) -> None:
    """Reading never waits."""
    assert pair[0].receive() == []
    assert not pair[0].closed


def test_an_absurd_length_is_refused() -> None:
    """A stream that is not ours is not collected in memory."""
    raw, end = socket.socketpair()
    channel = Channel(end)
    raw.sendall((MAX_FRAME + 1).to_bytes(4, "big"))

    with pytest.raises(RunnerLost, match="is no message"):
        channel.receive()
    raw.close()
    channel.close()


def test_descriptors_that_nobody_took_are_closed() -> None:
    """A frame cut off in the middle does not leak what came with it."""
    raw, end = socket.socketpair()
    channel = Channel(end)
    reader, writer = os.pipe()
    socket.send_fds(raw, [b"\0\0\0\x50{"], [writer])
    os.close(writer)
    assert channel.receive() == []
    channel.close()

    assert os.read(reader, 1) == b""
    os.close(reader)
    raw.close()


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=30), max_size=3), max_size=5),
    st.data(),
)
def test_messages_survive_any_cut(messages: list[dict[str, object]], data: st.DataObject) -> None:
    """However the stream is cut into reads, the same messages come out."""
    source, sink = socket.socketpair()
    raw, end = socket.socketpair()
    sender, receiver = Channel(source), Channel(end)
    wanted = [{key: value for key, value in message.items() if key != "descriptors"} for message in messages]
    for message in wanted:
        sender.send(message)
    sender.close()
    stream = b"".join(iter(lambda: sink.recv(1 << 16), b""))

    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        raw.sendall(stream[:size])
        stream = stream[size:]
        found += [frame.message for frame in receiver.receive()]

    assert found == wanted
    for each in (sink, raw):
        each.close()
    receiver.close()
