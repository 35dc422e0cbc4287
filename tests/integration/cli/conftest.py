"""A real ``orch api`` and the command line as users start it."""

import errno
import json
import os
import pty
import re
import subprocess
import sys
import termios
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.runtime import Runtime
from tests.support.servers import RedisServer, free_port
from tests.support.waiting import wait_for

ROOT = Path(__file__).parents[3]
SOURCES = os.pathsep.join(str(ROOT / name) for name in (".", "cli", "tasks", "beat"))
ORCH = (sys.executable, "-m", "orchestrator_cli")
TOKEN = "s3cret"


def environment(**variables: str) -> dict[str, str]:
    """Return an environment with no setting of ours but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    return kept | {"PYTHONPATH": SOURCES} | variables


@dataclass(frozen=True)
class Answer:
    """What a command printed and ended with."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What it printed as JSON."""
        assert self.code == 0, self
        return json.loads(self.out)


class Orch:
    """The command line with an environment of its own."""

    def __init__(self, **variables: str) -> None:
        self.environment = environment(**variables)

    def __call__(self, *arguments: str, **variables: str) -> Answer:
        done = subprocess.run(
            [*ORCH, *arguments],
            env=self.environment | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Answer(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command."""
        return subprocess.Popen(
            [*ORCH, *arguments], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


def on_a_terminal(orch: Orch, columns: int, *arguments: str) -> list[str]:
    """Return the lines that a command shows on a terminal so wide, without colours."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, columns))
    process = subprocess.Popen(
        [*ORCH, *arguments], env=orch.environment | {"TERM": "xterm"}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := _read(ours):
            shown += chunk
    finally:
        os.close(ours)
        assert process.wait(30) == 0, shown
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in shown.decode().splitlines()]


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError as error:  # nobody has the other end open any more
        if error.errno != errno.EIO:
            raise
        return b""


@dataclass(frozen=True)
class Installation:
    """An api process, the settings it was given, and the profile of its client."""

    url: str
    token_file: Path
    client_home: Path
    settings: Settings


@contextmanager
def serving(home: Path, port: int, **variables: str) -> Iterator["subprocess.Popen[bytes]"]:
    """``orch api`` on a port, from when it answers; ended with TERM, unless the test has ended it."""
    log = home / "api.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*ORCH, "api", "--port", str(port)],
            env=environment(ORCHESTRATOR_HOME=str(home), **variables),
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    try:
        wait_for(answers, within_seconds=30, describe=log.read_text)
        yield process
    finally:
        process.terminate()
        process.wait(15)


@contextmanager
def installed(home: Path, client_home: Path, redis_url: str) -> Iterator[Installation]:
    """``orch api`` on SQLite, with a token, without a worker."""
    token_file = home / "token"
    token_file.write_text(TOKEN + "\n")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (client_home / "client.toml").write_text(f'api_url = "{url}"\ntoken_file = "{token_file}"\n')
    with serving(home, port, ORCHESTRATOR_REDIS_URL=redis_url, ORCHESTRATOR_API_TOKEN_FILE=str(token_file)):
        yield Installation(url, token_file, client_home, Settings(home=home, redis_url=redis_url))


@pytest.fixture(scope="session")
def installation(
    tmp_path_factory: pytest.TempPathFactory, embedded_redis_server: RedisServer
) -> Iterator[Installation]:
    """One for all tests, on the embedded Redis."""
    homes = tmp_path_factory.mktemp("api"), tmp_path_factory.mktemp("client")
    with installed(*homes, embedded_redis_server.unix_url) as made:
        yield made


@pytest.fixture
def orch(installation: Installation) -> Orch:
    """The command line with the profile of the installation, as ``orch up`` writes it."""
    return Orch(ORCHESTRATOR_HOME=str(installation.client_home))


@pytest.fixture
def runtime(installation: Installation) -> Iterator[Runtime]:
    """The installation's own database, to play the worker."""
    opened = open_runtime(installation.settings)
    yield opened
    opened.close()
