"""An operating system's process behind the face of docker-py's container: what pytest-celery's nodes ask of one.

The process lives in a directory of its own and in a session of its own; its log is kept over restarts, as a
container's is. ``kill`` signals the first process alone, and what is left of the session ends with it, as the rest of
a container does.
"""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psutil

KILL_SECONDS: Final = 10.0
EXEC_SECONDS: Final = 60.0
#: The variable that tells a command run in the container which process the container is.
PID_VARIABLE: Final = "CONTAINER_PID"


class ProcessContainer:
    """One process that can be signalled, restarted and read as a container can.

    Args:
        argv: The command; ``%h`` in it becomes the container's host name, and ``python`` and ``celery`` are those of
            the environment that the tests run in.
        directory: Where it runs and keeps its log; must exist.
        environment: Variables beside those of the tests.
        ports: Container port (``6379/tcp``) to the loopback port on which the command listens instead.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        directory: Path,
        name: str,
        environment: Mapping[str, str] | None = None,
        ports: Mapping[str, int] | None = None,
    ) -> None:
        self.id = uuid.uuid4().hex * 2
        self.name = f"{name}-{self.short_id}"
        self.directory = directory
        self._argv = [part.replace("%h", self.short_id) for part in argv]
        self._environment = dict(environment or {})
        self._ports = dict(ports or {})
        self._log = directory / f"{self.name}.log"
        self._log.touch()
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._session_ended = False

    @property
    def short_id(self) -> str:
        """The first twelve characters of the id, which are the host name."""
        return self.id[:12]

    @property
    def pid(self) -> int:
        """The process id; 0 when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    @property
    def status(self) -> str:
        """``created``, ``running``, ``paused`` or ``exited``, as it is now."""
        if self._process is None:
            return "created"
        if self._process.poll() is not None:
            self._end_session()
            return "exited"
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED:
                return "paused"
        return "running"

    @property
    def attrs(self) -> dict[str, Any]:
        """What ``docker inspect`` would show, as far as tests read it."""
        status = self.status
        bindings = {port: [{"HostIp": "127.0.0.1", "HostPort": str(host)}] for port, host in self._ports.items()}
        return {
            "Id": self.id,
            "Name": self.name,
            "Config": {
                "Hostname": self.short_id,
                "Cmd": list(self._argv),
                "Env": [f"{key}={value}" for key, value in self._environment.items()],
                "Labels": {},
            },
            "HostConfig": {"PortBindings": bindings},
            "NetworkSettings": {"Networks": {"host": {"IPAddress": "127.0.0.1"}}, "Ports": bindings},
            "State": {
                "Status": status,
                "Running": status in {"running", "paused"},
                "Paused": status == "paused",
                "Pid": self.pid,
                "ExitCode": self._exit_code(),
            },
        }

    def start(self) -> None:
        """Start the command; harmless when it runs."""
        if self.pid:
            return
        self._log_start, self._session_ended = self._log.stat().st_size, False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*_dying_with_the_tests(), *_here(self._argv)],
                cwd=self.directory,
                env=self._variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self, timeout: float = KILL_SECONDS) -> None:
        """End it with SIGTERM, and with SIGKILL when that takes longer than ``timeout`` seconds."""
        self.kill("SIGTERM")
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill("SIGKILL")
        self._end_session()

    def restart(self, timeout: float = KILL_SECONDS) -> None:
        """Stop and start it, on the same ports and in the same directory."""
        self.stop(timeout)
        self.start()

    def kill(self, signal: str | int | None = None) -> None:
        """Signal the process; after SIGKILL, the default, return when it is gone."""
        number = _signal_number("SIGKILL" if signal is None else signal)
        if self._process is None or not self.pid:
            return
        self._process.send_signal(number)
        if number == _signal_number("SIGKILL"):
            self._process.wait(KILL_SECONDS)
            self._end_session()

    def pause(self) -> None:
        """Stop every process of the session where it is."""
        self._signal_session(signal.SIGSTOP)

    def unpause(self) -> None:
        """Let them go on."""
        self._signal_session(signal.SIGCONT)

    def wait(self, timeout: float = KILL_SECONDS) -> dict[str, int]:
        """Return the exit code when it has ended."""
        if self._process is not None:
            self._process.wait(timeout)
            self._end_session()
        return {"StatusCode": self._exit_code()}

    def reload(self) -> None:
        """Nothing to fetch: ``status`` and ``attrs`` are always those of now."""

    def remove(self, **_: Any) -> None:
        """End it; the directory is its owner's."""
        self.kill("SIGKILL")

    def logs(self, **_: Any) -> bytes:
        """Return all that it has printed, over restarts."""
        return self._log.read_bytes()

    def logs_since_start(self) -> str:
        """Return what it has printed since it was last started."""
        return self._log.read_bytes()[self._log_start :].decode(errors="replace")

    def exec_run(self, cmd: str | Sequence[str], **_: Any) -> tuple[int, bytes]:
        """Run a command in the directory and with the variables of the process; return its exit code and output."""
        argv = shlex.split(cmd) if isinstance(cmd, str) else list(cmd)
        done = subprocess.run(
            _here(argv),
            cwd=self.directory,
            env=self._variables() | {PID_VARIABLE: str(self.pid)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=EXEC_SECONDS,
            check=False,
        )
        return done.returncode, done.stdout

    def top(self) -> Iterator[psutil.Process]:
        """Yield the process and all that it has started and that still live."""
        if pid := self.pid:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                yield process
                yield from process.children(recursive=True)

    def _variables(self) -> dict[str, str]:
        binaries = str(Path(sys.executable).parent)
        path = f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {**os.environ, "PATH": path, **self._environment}

    def _exit_code(self) -> int:
        code = (self._process.returncode if self._process is not None else 0) or 0
        return code if code >= 0 else 128 - code  # ended by a signal, as Docker tells it

    def _end_session(self) -> None:
        # Once: later the number may be another's.
        if not self.pid and not self._session_ended:
            self._session_ended = True
            self._signal_session(signal.SIGKILL)

    def _signal_session(self, number: signal.Signals) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # the session has ended by itself
                os.killpg(self._process.pid, number)


def write_files(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write what a container would find in its volume."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _here(argv: Sequence[str]) -> list[str]:
    match argv:
        case ["python" | "python3", *rest]:
            return [sys.executable, *rest]
        case ["celery", *rest]:
            # Not -m celery: a worker that starts itself again at SIGHUP could not.
            script = Path(sys.executable).with_name("celery")
            return [str(script), *rest] if script.exists() else list(argv)
    return list(argv)


def _dying_with_the_tests() -> list[str]:
    """Return a prefix by which the kernel ends the command when the tests' process ends, however that ends."""
    return ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []


def _signal_number(given: str | int) -> int:
    if isinstance(given, int):
        return given
    if given.isdigit():
        return int(given)
    return signal.Signals[given if given.startswith("SIG") else f"SIG{given}"].value
