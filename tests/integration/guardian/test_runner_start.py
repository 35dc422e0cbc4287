"""How runners start: exactly what they were given, nothing else, and a reason when they cannot."""

import json
import os
import select
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.guardian.messages import RUNNER_ID, Spawned, SpawnFailed
from orchestrator.guardian.processes import read_variable
from tests.support.guardian import DEADLINE, SPARSE, Host, StartHost, make_spec, python

DUMP = "import json, os; print(json.dumps(dict(os.environ)))"


def test_a_command_gets_exactly_its_environment(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the worker's environment reaches a command but what its spec names; only the mark is added."""
    monkeypatch.setenv("SECRET", "of the worker")
    given = {
        "PATH": os.environ["PATH"],
        "CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b",
        "LC_ALL": "C.UTF-8",
        "GREETING": "grüße = ok",
    }

    ended = host.run(argv=python(DUMP), environment=given)

    seen = json.loads(host.printed["r1"])
    assert ended.exit_code == 0
    assert seen.pop(RUNNER_ID).endswith(":r1")
    assert seen == given


def test_gpus_are_fixed_before_the_first_instruction(host: Host) -> None:
    """The environment with which the kernel started the program names the GPUs."""
    pid = host.start(argv=("sleep", "60"), environment=SPARSE | {"CUDA_VISIBLE_DEVICES": "GPU-a"})

    assert read_variable(pid, "CUDA_VISIBLE_DEVICES") == "GPU-a"
    host.guardian.kill("r1", 0)
    host.expect_end()


def test_an_entry_runs_in_a_fork_with_its_own_environment(
    start_host: StartHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task runner is forked from the process that imported the app, and has none of the worker's variables."""
    monkeypatch.setenv("SECRET", "of the worker")
    host = start_host(preload=("guardian_entries",))
    given = SPARSE | {"CUDA_VISIBLE_DEVICES": "GPU-a"}
    host.spawn(entry="guardian_entries:describe", environment=given, cwd="/tmp", rlimits={"core": 0})

    found = host.receive()
    ended = host.expect_end()

    assert ended.exit_code == 0
    mark = found["environment"].pop(RUNNER_ID)
    assert found["environment"] == given
    assert found["shown"] == given | {RUNNER_ID: mark}
    assert found["cwd"] == "/tmp"
    assert found["spec"] == "r1"
    assert found["sid"] == found["pid"] != found["imported_by"]
    assert found["imported_by"] == host.helper("fork_server")
    assert found["core"] == [0, 0]
    assert found["sigterm"] is True
    assert found["blocked"] == []
    shared = {name: link for name, link in found["descriptors"].items() if link != "/dev/null"}
    assert set(shared) == {"1", "2", str(found["control"])}


def test_a_command_inherits_no_descriptor(host: Host) -> None:
    """A command has stdin, which is empty, and its output; nothing of the guardian, the fork server or the worker."""
    source = "import os\nprint([os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2)])\n"
    source += "print([n for n in os.listdir('/proc/self/fd') if int(n) > 2 and os.path.exists(f'/proc/self/fd/{n}')])\n"
    source += "print(repr(open(0).read()))"
    host.run(argv=python(source))

    standard, rest, read = host.printed["r1"].decode().splitlines()
    assert "/dev/null" in standard
    assert standard.count("pipe:") == 2
    assert rest == "[]"
    assert read == "''"


def test_limits_priority_and_signals_are_in_force(host: Host) -> None:
    """A runner leads its own session, with default signals, its limits, its niceness and a raised OOM score."""
    source = (
        "import json, os, resource, signal\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status').read().splitlines())\n"
        "print(json.dumps({'session': os.getsid(0) == os.getpid() == os.getpgid(0), 'nice': os.nice(0),"
        " 'nofile': resource.getrlimit(resource.RLIMIT_NOFILE), 'core': resource.getrlimit(resource.RLIMIT_CORE),"
        " 'blocked': int(status['SigBlk'], 16), 'ignored': int(status['SigIgn'], 16),"
        " 'oom': int(open('/proc/self/oom_score_adj').read()), 'cwd': os.getcwd(),"
        " 'umask': int(status['Umask'], 8), 'no_new_privileges': int(status['NoNewPrivs'])}))"
    )
    before = int(Path("/proc/self/oom_score_adj").read_text())
    limits = {"nofile": 64, "core": 0}
    host.run(argv=python(source), nice=5, rlimits=limits, cwd="/tmp", umask=0o027, no_new_privileges=True)

    seen = json.loads(host.printed["r1"])
    python_ignores = {signal.SIGPIPE, signal.SIGXFSZ}  # the interpreter's own doing
    # The two above 31 are the C library's own; it ignores them in whatever it spawns.
    assert seen.pop("ignored") & 0x7FFFFFFF == sum(1 << (number - 1) for number in python_ignores)
    assert seen.pop("oom") == min(1000, before + 300)
    assert seen == {
        "session": True,
        "nice": os.nice(0) + 5,
        "nofile": [64, 64],
        "core": [0, 0],
        "blocked": 0,
        "cwd": "/tmp",
        "umask": 0o027,
        "no_new_privileges": 1,
    }


def test_a_shell_pipeline_breaks_as_it_should(host: Host) -> None:
    """SIGPIPE is back at its default, which Python had ignored: ``yes | head`` ends."""
    ended = host.run(argv=("sh", "-c", "yes | head -n 1"))

    assert (ended.exit_code, host.printed["r1"]) == (0, b"y\n")


def test_output_is_complete(host: Host) -> None:
    """Every byte of stdout and stderr arrives, in the order written, also from a child that ends last."""
    source = (
        "import os, subprocess, sys\n"
        "for n in range(60000): os.write(1 + n % 2, b'%08d' % n)\n"
        "subprocess.run(['sh', '-c', 'printf end'])"
    )
    host.run(argv=python(source))

    assert host.printed["r1"] == b"".join(b"%08d" % n for n in range(60000)) + b"end"


FAILURES: list[tuple[dict[str, Any], str]] = [
    ({"argv": ("no-such-program",)}, "cannot run 'no-such-program': No such file or directory"),
    ({"argv": ("/etc/passwd",)}, "cannot run '/etc/passwd': Permission denied"),
    ({"argv": ("true",), "cwd": "/no/such/place"}, "working directory /no/such/place: No such file or directory"),
    ({"argv": ("true",), "cwd": "/etc/passwd"}, "working directory /etc/passwd: Not a directory"),
    ({"argv": ("true",), "rlimits": {"nosuch": 1}}, "resource limit nosuch: no such limit"),
    ({"argv": ("true",), "environment": {"A=B": "c"}}, "environment variable 'A=B': illegal environment variable name"),
    ({"argv": ("tr\0ue",)}, "cannot run 'tr\\x00ue': execve: embedded null character in path"),
    (
        {"entry": "no_such_module:main"},
        "entry no_such_module:main: ModuleNotFoundError: No module named 'no_such_module'",
    ),
    ({"entry": "guardian_entries:absent"}, "has no attribute 'absent'"),
]


@pytest.mark.parametrize(("values", "reason"), FAILURES, ids=[reason[:40] for _values, reason in FAILURES])
def test_a_start_that_fails_says_why(host: Host, values: dict[str, Any], reason: str) -> None:
    """No exit code stands for a failed start: the event names what was wrong, and nothing is left."""
    host.spawn(**values)

    assert reason in host.expect(SpawnFailed, "r1").reason
    assert not any(isinstance(event, Spawned) for event in host.events)
    assert host.run("r2", argv=("true",)).exit_code == 0


def test_two_living_runners_cannot_share_a_name(host: Host) -> None:
    """A name is free again only when the runner that bore it is gone."""
    host.start(argv=("sleep", "60"))
    again = host.guardian.spawn(make_spec("r1", argv=("true",)))
    assert host.expect(SpawnFailed, "r1").reason == "a runner of this name is alive"
    assert os.read(again.output, 1) == b""  # nobody holds the ends that were meant for it
    for end in (again.control, again.control_far):
        end.close()
    os.close(again.output)

    host.guardian.kill("r1", 0)
    host.expect_end()
    assert host.run(argv=("true",)).exit_code == 0


def test_an_entry_that_raises_prints_its_traceback_and_fails(host: Host) -> None:
    """An uncaught exception is exit code 1 and a traceback in the output; ``sys.exit`` keeps its code."""
    assert host.run("crash", entry="guardian_entries:crash").exit_code == 1
    assert host.run("leave", entry="guardian_entries:leave").exit_code == 7

    assert b"RuntimeError: boom" in host.printed["crash"]
    assert host.printed["leave"].decode() == "leaving ✓\n"


def test_a_task_runner_is_talked_to_through_its_socket(host: Host) -> None:
    """Packets written before the runner exists wait for it; its end of the socket closes with it."""
    pipes = host.spawn(entry="guardian_entries:echo")
    pipes.control.send(b'"early"')
    assert host.receive() == "early"

    pipes.control.shutdown(socket.SHUT_RDWR)
    assert host.expect_end().exit_code == 0


def test_a_module_that_cannot_be_imported_does_not_stop_the_guardian(start_host: StartHost) -> None:
    """Commands run all the same; a task runner that needs the module says so."""
    host = start_host(preload=("no_such_module",))

    assert host.run("command", argv=("true",)).exit_code == 0
    host.spawn("task", entry="no_such_module:main")
    assert "no_such_module" in host.expect(SpawnFailed, "task").reason


def test_how_long_a_start_takes(start_host: StartHost, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the time from the request to the event, and to a task runner's first answer; asserts nothing about it."""
    host = start_host(preload=("guardian_entries", "json", "asyncio", "http.client"))
    host.run("warm-up", argv=("true",))
    begun, answered = [], []
    for number in range(20):
        name = f"r{number}"
        before = time.perf_counter()
        pipes = host.spawn(name, entry="guardian_entries:echo")
        pipes.control.send(b"1")
        select.select([host.guardian], [], [], DEADLINE)
        begun.append(time.perf_counter() - before)
        select.select([pipes.control], [], [], DEADLINE)
        assert host.receive(name) == 1
        answered.append(time.perf_counter() - before)
        pipes.control.shutdown(socket.SHUT_RDWR)
        assert host.expect_end(name).exit_code == 0
    with capsys.disabled():
        median = sorted(begun)[10] * 1e3, sorted(answered)[10] * 1e3
        print(f"\nforked runner: begun after {median[0]:.1f} ms, answers after {median[1]:.1f} ms (medians of 20)")


@pytest.mark.parametrize(
    "source", ["import os; os._exit(5)", "import sys; sys.exit('no')", "import time; time.sleep(600)"], ids=str
)
def test_a_preload_that_exits_or_hangs_is_left_out(start_host: StartHost, tmp_path: Path, source: str) -> None:
    """Whatever the app does while it is imported, commands run; a task runner imports it by itself, and is told how."""
    (tmp_path / "stubborn_app.py").write_text(source)
    host = start_host(preload=("stubborn_app",), import_path=(str(tmp_path),), preload_deadline_seconds=1)

    assert host.run(argv=("true",)).exit_code == 0


def test_a_default_timeout_of_sockets_does_not_reach_runners(host: Host) -> None:
    """Celery sets one while a worker stops: the far end is still read without waiting, and blocks for the runner."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(5.0)
    try:
        pipes = host.spawn(argv=("true",))
    finally:
        socket.setdefaulttimeout(before)

    with pytest.raises(BlockingIOError):
        pipes.control_far.recv(1, socket.MSG_DONTWAIT)
    assert os.get_blocking(pipes.control_far.fileno())
    assert host.expect_end().exit_code == 0
