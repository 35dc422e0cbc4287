"""How runners end: with everything that they started, whoever asked for it."""

import os
import signal
import time
from pathlib import Path

from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.messages import Spawned, SpawnFailed
from orchestrator.guardian.processes import read_process
from tests.support.guardian import DEADLINE, STUBBORN, Host, StartHost, lives, python, wait


def pids_printed(host: Host, count: int, runner_id: str = "r1") -> list[int]:
    """Return the pids that a runner's processes have printed, once there are so many."""

    def find() -> list[int] | None:
        host.turn()
        lines = host.printed[runner_id].decode().split("\n")[:-1]
        return [int(line) for line in lines] if len(lines) >= count else None

    return wait(find, f"{count} pids")


def test_a_job_that_forks_daemonises_and_ignores_term_leaves_nothing(host: Host) -> None:
    """After the grace every process of the tree is killed, and the end is reported only then."""
    host.start(argv=python(STUBBORN))
    pids = pids_printed(host, 4)
    assert all(map(lives, pids))

    host.guardian.kill("r1", grace_seconds=0.3)
    ended = host.expect_end()

    assert [pid for pid in pids if lives(pid)] == []
    assert (ended.exit_code, ended.signal, ended.cause) == (None, signal.SIGKILL, "killed")


def test_a_daemon_lives_as_long_as_its_runner(host: Host) -> None:
    """Leaving parent, session and group is allowed while the runner runs, and no way out of it."""
    host.spawn(entry="guardian_entries:daemonise")
    daemon = int(host.receive())
    host.run("other", argv=("true",))  # its end makes the guardian look at every process
    assert lives(daemon)

    host.guardian.kill("r1", grace_seconds=0)
    host.expect_end()
    assert not lives(daemon)


def test_one_runners_end_leaves_the_daemons_of_another_alone(host: Host) -> None:
    """Trees are told apart even when all their members have become the guardian's own children."""
    host.spawn("a", entry="guardian_entries:daemonise")
    host.spawn("b", entry="guardian_entries:daemonise")
    first, second = int(host.receive("a")), int(host.receive("b"))

    host.guardian.kill("a", grace_seconds=0)
    host.expect_end("a")

    assert (lives(first), lives(second)) == (False, True)
    host.guardian.kill("b", grace_seconds=0)
    host.expect_end("b")


def test_a_chain_of_forks_cannot_outrun_its_end(host: Host) -> None:
    """Processes that fork, leave their session and exit, again and again, are caught."""
    source = (
        "import os\nprint('go', flush=True)\nfor _ in range(20000):\n    if os.fork(): os._exit(0)\n    os.setsid()"
    )
    host.spawn(argv=python(source))
    host.expect(Spawned, "r1")
    host.wait_printed(b"go")

    host.guardian.kill("r1", grace_seconds=0)
    host.expect_end()


def test_a_tree_that_grows_while_it_is_killed_is_gone_at_the_end(host: Host) -> None:
    """A bounded fork bomb leaves nothing."""
    source = (
        "import os, time\n"
        "for _ in range(6):\n"
        "    os.fork()\n"
        "    time.sleep(0.05)\n"
        "os.write(1, b'full\\n')\n"
        "while True:\n"
        "    if os.fork() == 0: time.sleep(0.1); os._exit(0)\n"
        "    time.sleep(0.05)"
    )
    host.start(argv=python(source))
    host.wait_printed(b"full")
    host.guardian.kill("r1", grace_seconds=0)
    host.expect_end()


def test_term_reaches_the_whole_tree_and_is_given_time(host: Host) -> None:
    """Within its grace a job ends in its own way, and so does its child, stopped or not."""
    source = (
        "import os, signal, sys, time\n"
        "child = os.fork()\n"
        "def on_term(*_): os.write(1, b'child\\n' if child == 0 else b'leader\\n'); sys.exit(5)\n"
        "signal.signal(signal.SIGTERM, on_term)\n"
        "if child == 0: print('ready', flush=True); os.kill(os.getpid(), signal.SIGSTOP)\n"
        "elif os.waitpid(child, 0): sys.exit(5)\n"
        "time.sleep(600)"
    )
    host.start(argv=python(source))
    host.wait_printed(b"ready")

    host.guardian.kill("r1", grace_seconds=DEADLINE)
    ended = host.expect_end()

    assert (ended.exit_code, ended.cause) == (5, "killed")
    assert b"child" in host.printed["r1"]
    assert b"leader" in host.printed["r1"]


def test_a_second_kill_shortens_the_grace(host: Host) -> None:
    """The earlier of two KILLs counts."""
    host.start(argv=python(STUBBORN))
    pids_printed(host, 4)
    host.guardian.kill("r1", grace_seconds=600)
    host.guardian.kill("r1", grace_seconds=0)

    assert host.expect_end().signal == signal.SIGKILL


def test_what_a_job_leaves_behind_is_ended_before_its_end_counts(start_host: StartHost) -> None:
    """The job is its first process; the code is its, and what it left in the background goes with it."""
    host = start_host(leftover_grace_seconds=0.1)
    ended = host.run(argv=("sh", "-c", "trap '' TERM; sleep 600 & echo $!; setsid sleep 600 & echo $!; exit 3"))

    pids = pids_printed(host, 2)
    assert [pid for pid in pids if lives(pid)] == []
    assert (ended.exit_code, ended.signal, ended.cause) == (3, None, "exit")


def test_a_crash_tells_its_signal(host: Host) -> None:
    """A runner killed by a signal has no exit code."""
    ended = host.run(argv=("sh", "-c", "kill -SEGV $$"))

    assert (ended.exit_code, ended.signal, ended.cause) == (None, signal.SIGSEGV, "exit")


def test_peak_memory_is_told(host: Host) -> None:
    """The largest resident size of the runner is in its end."""
    ended = host.run(argv=python("x = b'x' * (96 << 20)"))

    assert 96 <= ended.peak_rss_mib < 160


def test_a_passed_deadline_kills(host: Host) -> None:
    """A runner whose lease was not renewed is killed, with its children, TERM or no TERM."""
    host.start(argv=python(STUBBORN))
    pids = pids_printed(host, 4)
    host.guardian.set_deadlines({"r1": boottime() + 0.2, "unknown": 0.0})

    ended = host.expect_end()

    assert (ended.cause, ended.signal) == ("deadline", signal.SIGKILL)
    assert [pid for pid in pids if lives(pid)] == []


def test_a_renewed_deadline_does_not_kill(host: Host) -> None:
    """A deadline replaces the one before, the spec's own included."""
    host.start(argv=("sleep", "6"), deadline=boottime() + 5)
    host.guardian.set_deadlines({"r1": boottime() + 600})

    ended = host.expect_end()

    assert (ended.cause, ended.exit_code) == ("exit", 0)


def test_a_deadline_that_passed_before_the_start_prevents_it(host: Host) -> None:
    """A request that comes after its lease has run out starts nothing."""
    host.spawn(argv=("sleep", "600"), deadline=boottime() - 1)

    assert host.expect(SpawnFailed, "r1").reason == "ended before it started"


def test_a_signal_goes_to_the_group_or_to_the_leader_alone(host: Host) -> None:
    """A soft time limit interrupts the runner and not its children."""
    source = (
        "import os, signal, time\n"
        "name = 'child' if os.fork() == 0 else 'leader'\n"
        "say = lambda text: os.write(1, f'{name} {text}\\n'.encode())\n"
        "signal.signal(signal.SIGUSR1, lambda *_: say('heard'))\n"
        "say('ready')\n"
        "while True: time.sleep(600)"
    )
    host.start(argv=python(source))
    host.wait_printed(b"child ready")
    host.wait_printed(b"leader ready")

    host.guardian.signal("r1", signal.SIGUSR1, leader_only=True)
    host.wait_printed(b"leader heard")
    assert b"child heard" not in host.printed["r1"]
    host.guardian.signal("r1", signal.SIGUSR1)
    host.wait_printed(b"child heard")


def test_runners_of_a_dead_fork_server_end_and_new_ones_start(host: Host) -> None:
    """The fork server takes its runners along; the guardian cleans up after them and starts another."""
    host.spawn(entry="guardian_entries:daemonise")
    daemon = int(host.receive())
    runner = host.expect(Spawned, "r1").pid
    server = host.helper("fork_server")

    os.kill(server, signal.SIGKILL)
    ended = host.expect_end()

    assert (ended.exit_code, ended.cause) == (None, "exit")
    assert not lives(runner)
    assert not lives(daemon)
    assert host.run("r2", argv=("true",)).exit_code == 0
    assert host.helper("fork_server") != server


def test_a_spawn_that_waits_for_a_new_fork_server_is_not_lost(host: Host) -> None:
    """A request made while there is no fork server is served by the next one."""
    os.kill(host.helper("fork_server"), signal.SIGKILL)
    wait(lambda: len(host.children()) == 1, "the fork server's end")

    assert host.run(argv=("true",)).exit_code == 0


def test_close_leaves_no_process(start_host: StartHost) -> None:
    """Closing kills every runner and ends the guardian and its helpers before it returns."""
    host = start_host()
    host.start(argv=python(STUBBORN))
    pids = [*pids_printed(host, 4), host.guardian.pid, *host.children()]

    host.guardian.close(timeout_seconds=DEADLINE)

    assert [pid for pid in pids if lives(pid)] == []
    assert read_process(host.guardian.pid) is None


def test_the_journal_tells_every_runner_from_its_start_to_its_end(host: Host) -> None:
    """Each record names runner, token, GPUs, and once it is known the process by pid, group and start time."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    pid = host.start(argv=("sleep", "600"), gpus=("GPU-a",), token=42)
    host.guardian.kill("r1", grace_seconds=0)
    host.expect_end()

    records = [record for record in host.journal() if record.get("runner") == "r1"]
    assert [record["op"] for record in records] == ["spawn", "began", "kill", "exit"]
    assert {(record["token"], *record["gpus"]) for record in records} == {(42, "GPU-a")}
    assert {(record["pid"], record["pgid"]) for record in records[1:]} == {(pid, pid)}
    assert records[1]["start_ticks"] > 0
    assert before <= records[0]["at"] <= records[1]["at"] <= records[3]["at"] <= boottime()
    assert {record["boot_id"] for record in records} == {Path("/proc/sys/kernel/random/boot_id").read_text().strip()}
    assert (records[3]["signal"], records[3]["cause"]) == (signal.SIGKILL, "killed")
