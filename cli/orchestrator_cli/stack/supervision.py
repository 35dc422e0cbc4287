"""supervisord for one home: its configuration, its start, orders to it, and the processes that carry its mark."""

import contextlib
import http.client
import os
import shlex
import socket
import subprocess
import sys
import xmlrpc.client  # the other end is our own supervisord, behind a socket of ours
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from orchestrator.errors import StackUnavailable
from orchestrator.home import write_private
from orchestrator_cli.stack.home import Home
from orchestrator_cli.stack.parts import Part

#: supervisord puts it into the environment of what it starts, and ``spawn`` into its own: the mark of this stack.
MARK = "SUPERVISOR_SERVER_URL"
ORDER_SECONDS = 5
NOT_RUNNING = 70  # supervisor.xmlrpc.Faults.NOT_RUNNING
#: supervisord waits a second longer before each further try; after these (about 3.5 minutes) it gives a part up.
START_RETRIES = 20


@dataclass(frozen=True, slots=True)
class PartState:
    """What supervisord says of a part."""

    name: str
    state: str  # STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN
    pid: int  # 0 when it does not run
    stopped_at: int  # seconds since 1970; 0 when it never stopped
    up_seconds: int  # since it was last started, by supervisord's clock; 0 when it does not run
    description: str


def render(home: Home, parts: Sequence[Part], *, umask: int) -> str:
    """Return supervisord's configuration; parts start only when told to, and again whenever they end.

    No setting is in it: parts inherit their environment from supervisord.
    """
    sections: list[tuple[str, dict[str, object]]] = [
        ("unix_http_server", {"file": home.supervisor_socket, "chmod": "0700"}),
        (
            "supervisord",
            {
                "logfile": home.log("supervisord"),
                "logfile_maxbytes": "5MB",
                "logfile_backups": 1,
                "pidfile": home.run / "supervisord.pid",
                "nodaemon": "true",
                "silent": "true",
                "umask": f"{umask:03o}",
                "minprocs": 1,
            }
            | ({"user": "root"} if os.getuid() == 0 else {}),  # said aloud, or it warns
        ),
        (
            "rpcinterface:supervisor",
            {"supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"},
        ),
    ]
    sections += [(f"program:{part.name}", _program(home, part)) for part in parts]
    return "\n".join(
        f"[{title}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items()) for title, options in sections
    )


def _program(home: Home, part: Part) -> dict[str, object]:
    return {
        "command": shlex.join(part.argv),
        "directory": home.path,
        "autostart": "false",
        "autorestart": "true",
        "startsecs": 1,
        "startretries": START_RETRIES,
        "stopsignal": part.stop_signal,
        "stopwaitsecs": part.stop_seconds,
        "redirect_stderr": "true",
        "stdout_logfile": home.log(part.name),
        "stdout_logfile_maxbytes": "20MB",
        "stdout_logfile_backups": 2,
    }


def spawn(home: Home, parts: Sequence[Part], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start supervisord in a session of its own, out of reach of the terminal's signals."""
    os.umask(umask := os.umask(0o077))
    write_private(home.supervisor_config, render(home, parts, umask=umask))
    with home.log("supervisord-start").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "--configuration", str(home.supervisor_config)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home.path,
            env=dict(environment) | {MARK: _mark(home)},
            start_new_session=True,
        )


class Supervisor:
    """Orders to the supervisord of a home; each raises ``StackUnavailable`` when it does not answer in time."""

    def __init__(self, home: Home) -> None:
        self._path = str(home.supervisor_socket)

    def states(self) -> dict[str, PartState]:
        """Return how each part is."""
        return {
            str(info["name"]): PartState(
                name=info["name"],
                state=info["statename"],
                pid=int(info["pid"]),
                stopped_at=int(info["stop"]),
                up_seconds=int(info["now"]) - int(info["start"]) if info["pid"] else 0,
                description=info["description"],
            )
            for info in self._order("getAllProcessInfo")
        }

    def is_up(self) -> bool:
        """Tell whether supervisord answers."""
        try:
            return bool(self._order("getState")["statename"])
        except StackUnavailable:
            return False

    def start(self, name: str) -> None:
        """Start a part; return at once."""
        self._order("startProcess", name, False)

    def stop(self, name: str) -> None:
        """Ask a part to end and not to be started again; return at once. One that does not run is left so."""
        self._order("stopProcess", name, False, tolerate=NOT_RUNNING)

    def signal(self, name: str, signal_name: str) -> None:
        """Send a signal to a part, which may be stopping, or have ended just now."""
        self._order("signalProcess", name, signal_name, tolerate=NOT_RUNNING)

    def shut_down(self) -> None:
        """End supervisord, and what is left of its parts."""
        self._order("shutdown")

    def _order(self, method: str, *arguments: Any, tolerate: int | None = None) -> Any:
        proxy = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_UnixTransport(self._path))
        try:
            with proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == tolerate:
                return None
            raise StackUnavailable(f"supervisord refused {method} {arguments}: {fault.faultString}") from fault
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
            raise StackUnavailable(f"supervisord does not answer on {self._path}") from error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ORDER_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ORDER_SECONDS)
        self.sock.connect(self._path)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)


class Census:
    """The processes of a home's stack: those that carry its mark, those seen earlier, and the descendants of both.

    The mark is in the environment with which a process was started, so it also finds parts whose supervisord was
    killed, and restarted ones that nobody noted. A look while the parents live is what finds a descendant that shed
    its environment. This process and its ancestors are never counted.
    """

    def __init__(self, home: Home) -> None:
        self._mark = _mark(home)
        self._mine = {process.pid for process in [psutil.Process(), *psutil.Process().parents()]}
        self._seen: set[psutil.Process] = set()  # equal when process id and start time are

    def look(self) -> list[psutil.Process]:
        """Return every process of the stack that is alive now."""
        roots = {process for process in psutil.process_iter() if process in self._seen or self._is_marked(process)}
        for root in roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._seen |= {root, *root.children(recursive=True)}
        self._seen = {process for process in self._seen if process.pid not in self._mine and _is_alive(process)}
        return sorted(self._seen, key=lambda process: process.pid)

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return bool(process.environ().get(MARK) == self._mark)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def marked_processes(home: Home) -> list[psutil.Process]:
    """Return the live processes of a home's stack, as one look finds them."""
    return Census(home).look()


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _mark(home: Home) -> str:
    return f"unix://{home.supervisor_socket}"
