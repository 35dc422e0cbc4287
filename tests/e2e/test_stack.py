"""`orch up` and `orch down` with real supervisord, Redis and MariaDB; ``stack/program.py`` plays our own parts."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pymysql
import pytest

from orchestrator_cli.stack.home import Home
from orchestrator_cli.stack.supervision import Supervisor, marked_processes
from tests.e2e.conftest import Orch
from tests.support.servers import free_port
from tests.support.waiting import wait_for

ORCH = Path(__file__).with_name("stack") / "orch.py"
ROOT = Path(__file__).parents[2]
COMMAND_SECONDS = 90


@pytest.fixture
def environment(home: Home) -> dict[str, str]:
    """The environment of the commands: the sources, with relative entries as a developer has them, and the home."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    return own | {"ORCHESTRATOR_HOME": str(home.path), "PYTHONPATH": ".:tasks:beat:cli"}


@pytest.fixture
def orch(environment: dict[str, str]) -> Orch:
    """Run a command of the stack to its end."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ORCH), *arguments],
            env=environment | variables,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )

    return run


def up(orch: Orch, *arguments: str, **variables: str) -> dict[str, Any]:
    """Start a detached stack with two simulated GPUs and return what it printed."""
    port = str(free_port())
    done = orch("up", "--detach", "--json", "--simulate", "2", "--api-port", port, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def part_pids(home: Home) -> dict[str, int]:
    """Return the process of each part that has one."""
    return {name: state.pid for name, state in Supervisor(home).states().items() if state.pid}


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that only waits to be reaped does not."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.quick
def test_up_returns_when_the_stack_is_ready_and_down_leaves_no_process(orch: Orch, home: Home) -> None:
    """Every part runs after ``up --detach``; after ``down`` none does, nor does anything that a part started."""
    stack = up(orch)
    assert {part["name"] for part in stack["parts"]} >= {"redis", "api", "beat", "worker"}
    assert stack["state"] == "started"
    orphan = int((home.path / "orphan.pid").read_text())
    pids = [process.pid for process in marked_processes(home)]
    assert orphan in pids

    done = orch("down", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "stopped"
    assert [pid for pid in pids if is_alive(pid)] == []
    assert marked_processes(home) == []
    assert not home.state_file.exists()


def test_the_parts_are_told_where_everything_is(orch: Orch, home: Home) -> None:
    """Settings reach the parts by environment; a token of the caller's does not; the schema came before them."""
    stack = up(orch, ORCHESTRATOR_API_TOKEN="of-another-api")
    seen = dict(
        line.split("=", 1) for line in (home.path / "worker.environment").read_text().splitlines() if "=" in line
    )
    assert seen["ORCHESTRATOR_DATABASE_URL"] == stack["database"] == f"sqlite:///{home.path}/orchestrator.db"
    assert seen["ORCHESTRATOR_REDIS_URL"] == stack["redis"] == f"unix://{home.redis_socket}?db=0"
    assert seen["ORCHESTRATOR_API_URL"] == stack["api_url"]
    assert seen["ORCHESTRATOR_SIMULATED_GPUS"] == str(home.gpus_file)
    assert "ORCHESTRATOR_API_TOKEN" not in seen
    assert (home.path / "db.environment").stat().st_mtime_ns < (home.path / "api.environment").stat().st_mtime_ns


def test_secrets_are_closed_to_others_and_clients_find_them(orch: Orch, home: Home) -> None:
    """The token is 256 random bits, readable by its owner alone, in no argument list; it outlives a restart."""
    stack = up(orch)
    profile = tomllib.loads(home.client_file.read_text())
    assert profile == {"api_url": stack["api_url"], "token_file": str(home.token_file)}
    token = home.token_file.read_text().strip()
    assert token.startswith("orch_")
    assert len(bytes.fromhex(token.removeprefix("orch_"))) == 32
    for path, mode in (
        (home.token_file, 0o600),
        (home.supervisor_config, 0o600),
        (home.run, 0o700),
        (home.path, 0o700),
    ):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    assert not any(token in " ".join(process.cmdline()) for process in marked_processes(home))
    orch("down")
    up(orch)
    assert home.token_file.read_text().strip() == token


def test_simulated_gpus_are_written_for_the_worker(orch: Orch, home: Home) -> None:
    """``--simulate 2`` leaves a file of two GPUs with uuids of this home's own."""
    up(orch)
    gpus = tomllib.loads(home.gpus_file.read_text())["gpus"]
    assert [gpu["index"] for gpu in gpus] == [0, 1]
    assert len({gpu["uuid"] for gpu in gpus}) == 2


def test_a_second_up_says_so_and_changes_nothing(orch: Orch, home: Home) -> None:
    """Same processes, exit code 0, and the ports of the first."""
    first = up(orch)
    pids = part_pids(home)
    second = up(orch)
    assert second["state"] == "already running"
    assert second["api_url"] == first["api_url"]
    assert part_pids(home) == pids


@pytest.mark.parametrize("part", ["worker", "redis"])
def test_a_part_that_dies_is_started_again(part: str, orch: Orch, home: Home) -> None:
    """kill -9 of a part is answered with a new one."""
    up(orch)
    old = part_pids(home)[part]
    os.kill(old, signal.SIGKILL)
    wait_for(
        lambda: part_pids(home).get(part, old) != old, within_seconds=15, describe=f"{part} with another process id"
    )


def test_redis_keeps_its_data_over_a_crash(orch: Orch, home: Home) -> None:
    """Append-only persistence is on: what was acknowledged a second ago is there after kill -9."""
    up(orch)
    assert redis_says(home, "SET k v") == "+OK"
    old = part_pids(home)["redis"]
    wait_for(
        lambda: b"\nk\r" in b"".join(p.read_bytes() for p in home.redis_data.rglob("*.aof")),
        within_seconds=5,
        describe="the append-only file",
    )
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: part_pids(home).get("redis", old) != old, within_seconds=15, describe="a new redis")
    wait_for(lambda: redis_says(home, "GET k") == "$1", within_seconds=10, describe="the value")


def redis_says(home: Home, command: str) -> str:
    """Return the first line of Redis's answer; empty while it does not serve."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(str(home.redis_socket))
            connection.sendall(command.encode() + b"\r\n")
            return connection.recv(200).decode().splitlines()[0]
    except OSError:
        return ""


def test_down_cleans_up_after_a_killed_supervisord(orch: Orch, home: Home) -> None:
    """Parts whose supervisord was killed are found by their mark, and so is what they started."""
    stack = up(orch)
    pids = [process.pid for process in marked_processes(home)]
    os.kill(stack["supervisor_pid"], signal.SIGKILL)
    done = orch("down", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["killed"]
    assert [pid for pid in pids if is_alive(pid)] == []


def test_up_clears_what_a_killed_supervisord_left(orch: Orch, home: Home) -> None:
    """A new ``up`` never runs beside the remains of the old one."""
    stack = up(orch)
    old = [process.pid for process in marked_processes(home)]
    os.kill(stack["supervisor_pid"], signal.SIGKILL)
    assert up(orch)["state"] == "started"
    assert [pid for pid in old if is_alive(pid)] == []


@pytest.mark.parametrize("part", ["db", "beat", "api"])
def test_a_part_that_fails_is_named_and_everything_stops(part: str, orch: Orch, home: Home) -> None:
    """Exit code 1, the part and the end of its log on stderr, and no process left."""
    done = orch("up", "--detach", "--simulate", "1", "--api-port", str(free_port()), FAKE_FAIL=part)
    assert done.returncode == 1
    assert f"{part} fails as it was told to" in done.stderr
    assert done.stdout == ""
    assert marked_processes(home) == []
    assert not home.state_file.exists()


def test_flower_only_watches(orch: Orch, home: Home) -> None:
    """A Flower that fails does not keep the stack from jobs."""
    assert up(orch, FAKE_FAIL="flower")["state"] == "started"
    assert orch("down").returncode == 0
    assert marked_processes(home) == []


@pytest.mark.slow
def test_a_worker_that_ignores_term_is_made_to_end(orch: Orch, home: Home) -> None:
    """TERM, then QUIT, then KILL: ``down`` has an end."""
    up(orch, FAKE_DEAF="worker")
    done = orch("down")
    assert done.returncode == 0, done.stderr
    assert marked_processes(home) == []


def test_a_busy_port_is_a_mistake_that_starts_nothing(orch: Orch, home: Home) -> None:
    """One line that names the port and the option, exit code 2."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = orch("up", "--detach", "--simulate", "1", "--api-port", str(port))
    assert done.returncode == 2
    assert done.stderr == f"orch: port {port} is in use; choose another with --api-port\n"
    assert marked_processes(home) == []


def test_down_without_a_stack_is_no_fault(orch: Orch, home: Home) -> None:
    """It says so, with exit code 0, and makes no home."""
    done = orch("down", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "not running"
    assert not home.path.exists()


@pytest.fixture
def foreground(environment: dict[str, str], home: Home) -> Iterator[subprocess.Popen[str]]:
    """``orch up`` in the foreground, just started."""
    argv = [sys.executable, str(ORCH), "up", "--simulate", "1", "--api-port", str(free_port())]
    with subprocess.Popen(argv, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def said_until(process: subprocess.Popen[str], word: str) -> str:
    """Return what a command says on stderr up to a word."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if word in line:
            return said
    raise AssertionError(f"ended without {word!r}: {said}")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_in_the_foreground_an_interrupt_stops_the_stack(
    signum: signal.Signals, foreground: subprocess.Popen[str], home: Home
) -> None:
    """``up`` stays, a signal takes everything down, exit code 0."""
    said_until(foreground, "Ctrl-C")
    assert len(part_pids(home)) >= 3
    foreground.send_signal(signum)
    _, said = foreground.communicate(timeout=COMMAND_SECONDS)
    assert foreground.returncode == 0, said
    assert marked_processes(home) == []


def test_in_the_foreground_restarts_are_told(foreground: subprocess.Popen[str], home: Home) -> None:
    """A line names the part that ended and its log."""
    said_until(foreground, "Ctrl-C")
    os.kill(part_pids(home)["beat"], signal.SIGKILL)
    assert str(home.log("beat")) in said_until(foreground, "beat ended and is started again")


def test_in_the_foreground_the_loss_of_the_supervisor_ends_everything(
    foreground: subprocess.Popen[str], home: Home
) -> None:
    """Exit code 1, and no part goes on unsupervised."""
    said_until(foreground, "Ctrl-C")
    state = home.read_state()
    assert state
    os.kill(state["supervisor_pid"], signal.SIGKILL)
    _, said = foreground.communicate(timeout=COMMAND_SECONDS)
    assert foreground.returncode == 1, said
    assert marked_processes(home) == []


def test_an_interrupted_start_leaves_nothing(foreground: subprocess.Popen[str], home: Home) -> None:
    """Ctrl-C while the stack starts: exit code 130, no process, no state."""
    wait_for(home.redis_socket.exists, within_seconds=20, describe="redis")
    foreground.send_signal(signal.SIGINT)
    _, said = foreground.communicate(timeout=COMMAND_SECONDS)
    assert foreground.returncode == 130, said
    assert marked_processes(home) == []
    assert not home.state_file.exists()


def test_two_stacks_live_side_by_side(orch: Orch, home: Home, tmp_path: Path) -> None:
    """Another home is another stack; stopping one leaves the other."""
    other = Home(tmp_path / "other")
    try:
        first, second = up(orch), up(orch, ORCHESTRATOR_HOME=str(other.path))
        assert first["api_url"] != second["api_url"]
        assert orch("down").returncode == 0
        assert marked_processes(home) == []
        assert len(part_pids(other)) >= 3
    finally:
        orch("down", ORCHESTRATOR_HOME=str(other.path))
    assert marked_processes(other) == []


def test_a_home_that_is_too_deep_for_sockets_has_them_elsewhere(orch: Orch, tmp_path: Path) -> None:
    """Unix sockets allow about a hundred bytes; the stack then uses a closed directory below /tmp."""
    deep = Home(tmp_path / ("d" * 90) / "home with spaces")
    try:
        up(orch, ORCHESTRATOR_HOME=str(deep.path))
        assert deep.run.parent == Path("/tmp")
        assert stat.S_IMODE(deep.run.stat().st_mode) == 0o700
    finally:
        orch("down", ORCHESTRATOR_HOME=str(deep.path))
    assert marked_processes(deep) == []
    assert not deep.run.exists()


def test_with_mariadb_the_stack_brings_a_private_server(orch: Orch, home: Home) -> None:
    """Its database exists before the schema is upgraded, and only this user's socket leads to it."""
    stack = up(orch, "--database", "mariadb")
    assert stack["database"].startswith("mysql+pymysql://root@localhost/orchestrator?unix_socket=")
    connected = pymysql.connect(unix_socket=str(home.mariadb_socket), user="root", database="orchestrator")
    with connected, connected.cursor() as cursor:
        cursor.execute("SELECT @@skip_networking, @@innodb_flush_log_at_trx_commit")
        assert cursor.fetchone() == (1, 1)
    assert orch("down").returncode == 0
    assert marked_processes(home) == []
