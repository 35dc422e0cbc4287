"""Bring an embedded stack up, watch over it, take it down.

Order up: servers, then the database's schema, then our own parts, until ``/readyz`` says that a worker can take jobs.
Order down: worker, then beat, Flower and api, then the servers. Whatever carries the stack's mark and is still alive
then is killed, so ``down`` also cleans up after a supervisord that was killed itself.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

import psutil

from orchestrator.errors import Conflict, InvalidRequest, StackUnavailable
from orchestrator.gpus.driver import open_driver
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator_cli.stack import parts as parts_module
from orchestrator_cli.stack import readiness
from orchestrator_cli.stack.home import Home
from orchestrator_cli.stack.parts import Database, Part, StackOptions
from orchestrator_cli.stack.supervision import Census, PartState, Supervisor, spawn

READY_SECONDS = 60
POLL_SECONDS = 0.1
#: A worker gets so long to finish its jobs after TERM; then QUIT makes it give them back.
WARM_SECONDS = 8
#: Longer than any part's ``stop_seconds``, after which supervisord kills it.
STOP_SECONDS = 75
#: What the parts started gets so long to end by itself when they have ended.
FAREWELL_SECONDS = 2
#: Leftovers get so long after TERM, and so long after KILL.
LEFTOVER_SECONDS = 5
#: A part that ended while the stack starts must then stay up so long.
STEADY_SECONDS = 10
#: A part that ended so often while the stack starts will not come up.
FATAL_ENDS = 3
#: The states of a part from which it must be stopped; between two tries it has no process, but will have one.
ALIVE = {"STARTING", "RUNNING", "BACKOFF", "STOPPING"}
DEFAULT_SIMULATED = 4
DEFAULT_API_PORT, FLOWER_PORT = 8470, 5555

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack, as ``up --json`` shows it; no field is secret."""

    state: str  # "started" by this call, or "already running"
    home: str
    api_url: str
    flower_url: str | None
    database: str
    redis: str
    token_file: str
    simulated_gpus: bool
    supervisor_pid: int
    parts: tuple[PartState, ...]

    def document(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Stopped:
    """What ``down`` did, as ``down --json`` shows it."""

    state: str  # "stopped", or "not running"
    parts: tuple[str, ...]
    killed: tuple[int, ...]  # processes that had to be killed

    def document(self) -> dict[str, Any]:
        """Return the fields as JSON has them."""
        return asdict(self)


def running(home: Home) -> Stack | None:
    """Return the stack whose supervisord answers in this home, if there is one.

    Raises:
        Conflict: If another release noted it in another way.
    """
    state = home.read_state()
    if not state:
        return None
    try:
        states = Supervisor(home).states()
    except StackUnavailable:
        return None
    if set(state) != {field.name for field in fields(Stack)}:
        raise Conflict(f"a stack of another release runs in {home.path}; stop it with that release's `orch down`")
    return Stack(**state | {"state": "already running", "parts": tuple(states.values())})


def bring_up(home: Home, database: Database, api_port: int, *, simulate: int | None, say: Say) -> Stack:
    """Start the stack and return when it is ready for jobs; a stack that runs already is returned as it is.

    Args:
        simulate: So many simulated GPUs; None for the host's own, or a few simulated ones when it has none.

    Raises:
        InvalidRequest: If something that the caller can change stands in the way; nothing was started.
        StackUnavailable: If a part does not come up in time; everything was stopped again.
    """
    with home.locked(within_seconds=READY_SECONDS):
        if stack := running(home):
            return stack
        if home.read_state() is not None:
            say("clearing what an earlier stack left behind")
            _clear(home, Census(home))
        home.prepare()
        options = _options(home, database, api_port, simulate=simulate, say=say)
        try:
            return _start(options, say=say)
        except BaseException:  # an interrupt too: nothing of a stack that did not come up may stay
            say("stopping everything again")
            _take_down(home, say=lambda line: None)
            raise


def take_down(home: Home, *, say: Say) -> Stopped:
    """Stop every part and return when no process of the stack is left; harmless when none runs."""
    if not home.path.is_dir():
        return Stopped("not running", (), ())
    with home.locked(within_seconds=READY_SECONDS):
        return _take_down(home, say=say)


def _options(home: Home, database: Database, api_port: int, *, simulate: int | None, say: Say) -> StackOptions:
    if not readiness.port_is_free(api_port):
        raise InvalidRequest(f"port {api_port} is in use; choose another with --api-port")
    # Another stack's Flower may be there, or come at the same moment: only the default stack tries Flower's own port.
    wanted = FLOWER_PORT if api_port == DEFAULT_API_PORT else api_port % 65535 + 1
    flower_port = wanted if readiness.port_is_free(wanted) else readiness.free_port()
    simulated = _prepare_gpus(home, simulate, say=say)
    if database is Database.MARIADB:
        parts_module.install_mariadb(home)
    return StackOptions(home, database, api_port, flower_port, simulated)


def _prepare_gpus(home: Home, simulate: int | None, *, say: Say) -> bool:
    """Write the simulated GPUs' file when it is wanted; tell whether GPUs are simulated."""
    if simulate is None:
        driver = open_driver(None)
        try:
            if driver.sample():
                return False
        finally:
            driver.close()
        if home.gpus_file.exists():
            say(f"no GPU found; using the simulated ones of {home.gpus_file}")
            return True
        say(f"no GPU found; simulating {DEFAULT_SIMULATED}")
    count = DEFAULT_SIMULATED if simulate is None else simulate
    write_gpus(home.gpus_file, make_gpus(count, owner=str(home.path)))
    return True


def _start(options: StackOptions, *, say: Say) -> Stack:
    home, supervisor = options.home, Supervisor(options.home)
    servers, services = parts_module.servers(options), parts_module.services()
    needed = [part for part in services if part.is_needed]
    environment = parts_module.environment(options, os.environ)
    started_at, deadline = time.monotonic(), time.monotonic() + READY_SECONDS

    home.write_state({})  # from here on there may be processes to find
    process = spawn(home, [*servers, *services], environment)
    _await("supervisord", lambda: supervisor.is_up() or process.poll() is not None, home, deadline)
    if process.returncode is not None:
        raise StackUnavailable(f"supervisord ended at once\n{readiness.tail(home.log('supervisord-start'))}")
    for part in servers:
        supervisor.start(part.name)
    _await_servers(options, servers, supervisor, deadline)
    say(f"{' and '.join(part.name for part in servers)} ready")
    _upgrade_schema(options, environment, deadline)
    say("schema up to date")
    for part in services:
        supervisor.start(part.name)
    for path in ("/healthz", "/readyz"):
        _await_http(options.api_url + path, needed, supervisor, home, deadline)
        say(f"{path} ok")
    _await_running(needed, supervisor, home, deadline)
    home.write_client(options.api_url)
    home.write_stack(parts_module.shared_settings(options))
    stack = _describe(options, process.pid, supervisor.states())
    home.write_state(stack.document() | {"parts": []})
    say(f"ready after {time.monotonic() - started_at:.1f} s")
    return stack


def _describe(options: StackOptions, pid: int, states: dict[str, PartState]) -> Stack:
    return Stack(
        state="started",
        home=str(options.home.path),
        api_url=options.api_url,
        flower_url=options.flower_url if "flower" in states else None,
        database=options.database_url,
        redis=options.redis_url,
        token_file=str(options.home.token_file),
        simulated_gpus=options.simulate,
        supervisor_pid=pid,
        parts=tuple(states.values()),
    )


def _await(what: str, condition: Callable[[], bool], home: Home, deadline: float) -> None:
    while not condition():
        if time.monotonic() > deadline:
            log = readiness.tail(home.log(what))
            raise StackUnavailable(f"{what} did not come up within {READY_SECONDS} s\n{log}".rstrip())
        time.sleep(POLL_SECONDS)


def _await_servers(options: StackOptions, servers: Sequence[Part], supervisor: Supervisor, deadline: float) -> None:
    home, watch = options.home, _Watch(servers, supervisor, options.home)

    def serves(name: str) -> bool:
        watch.all_well()
        if name == "redis":
            return readiness.redis_answers(home.redis_socket)
        return readiness.mariadb_answers(home.mariadb_socket)

    for part in servers:
        _await(part.name, partial(serves, part.name), home, deadline)


def _await_http(url: str, services: Sequence[Part], supervisor: Supervisor, home: Home, deadline: float) -> None:
    watch = _Watch(services, supervisor, home)
    while (fault := readiness.http_fault(url)) is not None:
        watch.all_well()
        if time.monotonic() > deadline:
            # What the API misses is in its answer; when there is none, it is the API that failed.
            name = "worker" if url.endswith("/readyz") else "api"
            log = readiness.tail(home.log(name))
            raise StackUnavailable(f"not ready within {READY_SECONDS} s: {fault}\n--- {home.log(name)}\n{log}")
        time.sleep(POLL_SECONDS)


def _await_running(services: Sequence[Part], supervisor: Supervisor, home: Home, deadline: float) -> None:
    """Return when supervisord has seen every part stay up: readiness says nothing of beat."""
    watch = _Watch(services, supervisor, home)

    def is_steady(state: PartState) -> bool:
        return state.state == "RUNNING" and (not state.stopped_at or state.up_seconds >= STEADY_SECONDS)

    def all_are_steady() -> bool:
        watch.all_well()
        states = supervisor.states()
        return all(is_steady(states[part.name]) for part in services)

    _await("every part", all_are_steady, home, deadline)


class _Watch:
    """Sees parts that end again and again while the stack starts."""

    def __init__(self, parts: Sequence[Part], supervisor: Supervisor, home: Home) -> None:
        self._supervisor, self._home = supervisor, home
        self._ends: dict[str, set[int]] = {part.name: set() for part in parts}

    def all_well(self) -> bool:
        """Return True; raise ``StackUnavailable`` with the end of the log for a part that does not stay up."""
        states = self._supervisor.states()
        for name, ends in self._ends.items():
            state = states[name]
            if state.stopped_at:
                ends.add(state.stopped_at)
            if state.state == "FATAL" or len(ends) >= FATAL_ENDS:
                log = self._home.log(name)
                raise StackUnavailable(
                    f"{name} does not stay up: {state.description}\n--- {log}\n{readiness.tail(log)}"
                )
        return True


def _upgrade_schema(options: StackOptions, environment: dict[str, str], deadline: float) -> None:
    path = options.home.log("db-upgrade")
    argv = [*parts_module.PROGRAM, "db", "upgrade"]
    with path.open("wb") as log:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                cwd=options.home.path,
                timeout=max(1.0, deadline - time.monotonic()),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise StackUnavailable(f"`orch db upgrade` took too long\n{readiness.tail(path)}") from error
    if done.returncode:
        raise StackUnavailable(f"`orch db upgrade` failed ({done.returncode})\n--- {path}\n{readiness.tail(path)}")


def _take_down(home: Home, *, say: Say) -> Stopped:
    noted, census = home.read_state() is not None, Census(home)
    stopped: tuple[str, ...] = ()
    try:
        stopped = _stop_parts(Supervisor(home), census, say=say)
        psutil.wait_procs(census.look(), timeout=FAREWELL_SECONDS)
    except StackUnavailable:
        if noted:
            say("supervisord does not answer; ending its processes")
    killed = _clear(home, census)
    return Stopped("stopped" if noted or stopped or killed else "not running", stopped, killed)


def _stop_parts(supervisor: Supervisor, census: Census, *, say: Say) -> tuple[str, ...]:
    """Stop the parts from the worker to the servers; supervisord kills those that do not end in time."""
    alive = [state.name for state in supervisor.states().values() if state.state in ALIVE]
    for names in (["worker"], ["beat", "flower", "api"], ["redis", "mariadb"]):
        if group := [name for name in names if name in alive]:
            census.look()
            for name in group:
                supervisor.stop(name)
            _await_end(supervisor, group, census)
            say(f"{', '.join(group)} stopped")
    supervisor.shut_down()
    return tuple(alive)


def _await_end(supervisor: Supervisor, names: Sequence[str], census: Census) -> None:
    started_at = time.monotonic()
    has_quit = False
    while left := [name for name, state in supervisor.states().items() if name in names and state.state in ALIVE]:
        waited = time.monotonic() - started_at
        if waited > WARM_SECONDS and "worker" in left and not has_quit:
            supervisor.signal("worker", "QUIT")
            has_quit = True
        if waited > STOP_SECONDS:
            raise StackUnavailable(f"{', '.join(left)} did not end within {STOP_SECONDS} s")
        census.look()  # what a worker starts while it ends would be lost from sight with it
        time.sleep(POLL_SECONDS)


def _clear(home: Home, census: Census) -> tuple[int, ...]:
    """End what is alive of the stack, and remove what says that it runs; return the processes that took a signal."""
    signalled: set[int] = set()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        signalled |= _end_all(census, signum)
    if left := census.look():
        raise StackUnavailable(f"processes of the stack do not end: {[process.pid for process in left]}")
    shutil.rmtree(home.run, ignore_errors=True)  # sockets and process ids of what is gone
    home.state_file.unlink(missing_ok=True)
    return tuple(sorted(signalled))


def _end_all(census: Census, signum: signal.Signals) -> set[int]:
    """Send a signal once to each process of the stack, late comers too, and wait a while for all to end."""
    signalled: set[int] = set()
    deadline = time.monotonic() + LEFTOVER_SECONDS
    while (left := census.look()) and time.monotonic() < deadline:
        for process in left:
            if process.pid not in signalled:
                _send(process, signum)
                signalled.add(process.pid)
        psutil.wait_procs(left, timeout=0.5)
    return signalled


def _send(process: psutil.Process, signum: signal.Signals) -> None:
    try:
        process.send_signal(signum)  # compares start times: a recycled process id is left alone
    except psutil.NoSuchProcess:
        return
