"""Whether a stack's parts serve: asked of the parts themselves, not of their processes."""

import contextlib
import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

PROBE_SECONDS = 3
#: The stack is on this machine: a proxy of the user's is not asked.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def redis_answers(path: Path) -> bool:
    """Tell whether Redis serves commands; while it loads its data it answers, but with an error."""
    return _exchange(path, b"PING\r\n").startswith(b"+PONG")


def mariadb_answers(path: Path) -> bool:
    """Tell whether MariaDB greets clients: it does so only after its start-up file ran."""
    greeting = _exchange(path, b"")
    return len(greeting) > 4 and greeting[4] == 10  # the protocol's version follows the packet's head


def port_is_free(port: int) -> bool:
    """Tell whether a server could bind the loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def http_fault(url: str) -> str | None:
    """Return None when a URL answers 200, else what it said or why it could not be asked."""
    try:
        with _OPENER.open(url, timeout=PROBE_SECONDS) as answer:
            return None if answer.status == 200 else f"{url}: {answer.status}"
    except urllib.error.HTTPError as error:
        return f"{url}: {error.code} {_detail(error.read(2000))}".rstrip()
    except (OSError, ValueError) as error:
        return f"{url}: {error}"


def tail(path: Path, lines: int = 15) -> str:
    """Return the end of a log file; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _detail(body: bytes) -> str:
    """Return a problem document's detail, else the body."""
    with contextlib.suppress(ValueError):
        problem = json.loads(body)
        if isinstance(problem, dict):
            return str(problem.get("detail") or problem.get("title") or "")
    return body.decode(errors="replace")[:200]


def _exchange(path: Path, question: bytes) -> bytes:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(PROBE_SECONDS)
            connection.connect(str(path))
            connection.sendall(question)
            return connection.recv(256)
    except OSError:
        return b""
