"""Names and URLs of the streams."""

import pytest
from kombu.utils.url import parse_url

from orchestrator.streams import client, keys


def test_queues_have_the_streams_that_the_design_names() -> None:
    assert keys.stream_of("gpu") == "stream:orchestrator:inference_jobs"
    assert keys.stream_of("preloads") == "stream:orchestrator:preloads"
    assert keys.stream_of("celery") == "stream:orchestrator:celery"
    assert keys.node_stream("s", "host-1") == "s@host-1"
    assert keys.dead_letter_stream("s") == "s:dlq"


def test_the_streams_of_one_queue_differ() -> None:
    base = keys.stream_of("q")
    shared = [keys.priority_stream(base, step) for step in (0, 3, 6, 9)]
    family = [*shared, keys.node_stream(base, "n"), keys.dead_letter_stream(base)]
    family += [keys.front_stream(stream) for stream in (*shared, keys.node_stream(base, "n"))]
    assert len(set(family)) == len(family) == 11


def test_what_is_handed_back_twice_stays_in_its_front_stream() -> None:
    front = keys.front_stream("s")
    assert keys.front_stream(front) == front


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://127.0.0.1:6379/0", "redis-streams://127.0.0.1:6379/0"),
        ("redis://:secret@host/3", "redis-streams://:secret@host/3"),
        ("rediss://user:secret@host:6380/1", "rediss-streams://user:secret@host:6380/1"),
        ("unix:///run/redis.sock", "redis-streams://localhost/run/redis.sock/0"),
        ("unix:///run/redis.sock?db=2", "redis-streams://localhost/run/redis.sock/2"),
        ("unix://:secret@/run/Redis.sock?db=2", "redis-streams://:secret@localhost/run/Redis.sock/2"),
    ],
)
def test_one_setting_names_the_server_for_clients_and_for_celery(url: str, broker: str) -> None:
    assert client.broker_url(url) == broker
    assert parse_url(broker)["transport"] in ("redis-streams", "rediss-streams")
    assert client.broker_url(client.redis_url(broker)) == broker
    assert client.redis_url(url) == url


@pytest.mark.parametrize("url", ["redis-cluster://h/0", "amqp://h", "http://h", "h:6379", ""])
def test_other_servers_are_refused_with_what_would_do(url: str) -> None:
    for translate in (client.broker_url, client.redis_url):
        with pytest.raises(ValueError, match=r"redis|Cluster"):
            translate(url)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("run/redis.sock/2", ("run/redis.sock", 2)),
        ("run/redis.sock", ("run/redis.sock", 0)),
        ("0", ("", 0)),
        ("", ("", 0)),
    ],
)
def test_a_sockets_path_ends_with_the_database(path: str, expected: tuple[str, int]) -> None:
    assert client.split_socket_path(path) == expected


class FakeServer:
    """Answers what ``probe`` asks."""

    def __init__(self, version: str, mode: str = "standalone", xackdel: bool = False) -> None:
        self.version, self.mode, self.xackdel = version, mode, xackdel

    def info(self, section: str) -> dict[str, str]:
        assert section == "server"
        return {"redis_version": self.version, "redis_mode": self.mode}

    def execute_command(self, *command: str) -> list[str]:
        assert command == ("COMMAND", "INFO", "XACKDEL")
        return ["xackdel"] if self.xackdel else []


@pytest.mark.parametrize(
    ("version", "xackdel", "used"),
    [("6.2.0", True, False), ("8.2.2", True, False), ("8.2.3", True, True), ("9.0.0", False, False)],
)
def test_xackdel_is_used_only_where_it_is_known_to_be_safe(version: str, xackdel: bool, used: bool) -> None:
    assert client.probe(FakeServer(version, xackdel=xackdel)).ack_and_delete is used


@pytest.mark.parametrize(
    ("version", "mode", "said"), [("6.0.16", "standalone", "too old"), ("7.2.0", "cluster", "Cluster")]
)
def test_a_server_that_cannot_carry_streams_is_refused(version: str, mode: str, said: str) -> None:
    from orchestrator.errors import StreamUnavailable

    with pytest.raises(StreamUnavailable, match=said):
        client.probe(FakeServer(version, mode))
