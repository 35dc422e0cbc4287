"""What is left when the worker, the guardian, or both die or stop: nothing."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.errors import RunnerLost
from orchestrator.guardian.client import Guardian, GuardianSettings
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.messages import RUNNER_ID, RunnerSpec, SpawnFailed
from orchestrator.guardian.processes import read_processes, read_variable
from tests.support.guardian import (
    DEADLINE,
    STUBBORN,
    STUBBORN_TREE,
    Host,
    StartHost,
    StartWorker,
    WorkerProcess,
    lives,
    make_spec,
    python,
    wait,
)


def stubborn(**values: Any) -> RunnerSpec:
    """Return a runner that ignores TERM and has left descendants everywhere."""
    return make_spec(argv=python(STUBBORN), **values)


def marked(runner: int) -> list[int]:
    """Return every living process that bears the mark of this runner, waiting until it has spread."""
    mark = read_variable(runner, RUNNER_ID)
    assert mark is not None

    def find() -> list[int] | None:
        found = [p.pid for p in read_processes().values() if p.alive and read_variable(p.pid, RUNNER_ID) == mark]
        return found if len(found) >= 3 else None

    return wait(find, "the runner's descendants")


def test_a_killed_worker_takes_everything_along_within_a_second(start_worker: StartWorker) -> None:
    """No runner, no daemon of one, no guardian outlives a worker that is killed."""
    worker = start_worker(stubborn())
    pids = [*marked(worker.runner), worker.guardian]

    os.kill(worker.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    wait(lambda: not any(map(lives, pids)), "the end of all")

    assert time.monotonic() - killed_at < 1


def test_a_stopped_workers_runner_dies_at_its_deadline(start_worker: StartWorker) -> None:
    """A worker that is frozen cannot renew, and need not be alive for its runner to be killed."""
    worker = start_worker(stubborn(deadline=boottime() + 3))
    pids = marked(worker.runner)
    os.kill(worker.pid, signal.SIGSTOP)
    assert lives(worker.runner)

    wait(lambda: not any(map(lives, pids)), "the runner's end")
    assert lives(worker.guardian)
    os.kill(worker.pid, signal.SIGCONT)


def test_a_killed_guardian_takes_the_runners_along_and_is_missed(start_host: StartHost) -> None:
    """The kernel kills fork server and runners with it; the worker learns it from its next read."""
    host = start_host()
    runner = host.start(argv=("sleep", "600"))
    pids = [runner, *host.children()]
    os.kill(host.guardian.pid, signal.SIGKILL)

    def learn() -> RunnerLost | None:
        try:
            host.guardian.read_events()
        except RunnerLost as lost:
            return lost
        return None

    assert f"pid {host.guardian.pid} is gone: exit code -9" in str(wait(learn, "the news"))
    wait(lambda: not any(map(lives, pids)), "the end of fork server, sampler and runner")
    with pytest.raises(RunnerLost):
        host.guardian.read_events()


def test_a_successor_ends_what_a_killed_guardian_left(start_host: StartHost) -> None:
    """Descendants that outlive a killed guardian are gone before its successor is ready."""
    first = start_host()
    pids = marked(first.start(argv=python(STUBBORN_TREE)))
    os.kill(first.guardian.pid, signal.SIGKILL)
    wait(lambda: not lives(first.guardian.pid), "the guardian's end")
    assert any(map(lives, pids))

    second = start_host()

    assert [pid for pid in pids if lives(pid)] == []
    assert [record["cause"] for record in second.journal() if record["op"] == "exit"] == ["cleared"]


def test_the_next_holder_of_a_gpu_ends_what_a_killed_guardian_left(start_host: StartHost) -> None:
    """The lock of a killed guardian is free at once, its runner's descendants are alive: the next holder ends them."""
    first = start_host("node-a")
    pids = marked(first.start(argv=python(STUBBORN_TREE), gpus=("GPU-a",)))
    os.kill(first.guardian.pid, signal.SIGKILL)
    wait(lambda: not lives(first.guardian.pid), "the guardian's end")

    second = start_host("node-b")
    assert any(map(lives, pids))
    source = (
        "def lives(pid):\n"
        "    try: return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] != 'Z'\n"
        "    except OSError: return False\n"
        f"print([pid for pid in {pids} if lives(pid)])"
    )
    second.run(argv=python(source), gpus=("GPU-a",))

    assert second.printed["r1"] == b"[]\n"


def test_two_workers_cannot_have_one_node(host: Host, settings: Callable[..., GuardianSettings]) -> None:
    """A second guardian of a live worker's node refuses, naming the worker."""
    with pytest.raises(RunnerLost, match=f"refused: the worker with pid {os.getpid()} runs under this node's name"):
        Guardian.start(settings())


def test_a_stuck_guardian_of_a_dead_worker_is_replaced(start_worker: StartWorker, start_host: StartHost) -> None:
    """A guardian that is stopped and has lost its worker is killed by the next one, and its runner with it."""
    worker: WorkerProcess = start_worker(stubborn())
    pids = [*marked(worker.runner), worker.guardian]
    os.kill(worker.guardian, signal.SIGSTOP)
    os.kill(worker.pid, signal.SIGKILL)
    worker.process.wait(DEADLINE)

    start_host()

    assert [pid for pid in pids if lives(pid)] == []


def test_a_worker_that_does_not_read_does_not_hold_up_its_guardian(start_host: StartHost) -> None:
    """Events wait for a worker that is busy; reports about GPUs do not pile up meanwhile."""
    host = start_host(sample_seconds=0.01, report_seconds=0.01)
    for number in range(50):
        host.spawn(f"r{number}", argv=("no-such-program",))

    failed = [host.expect(SpawnFailed, f"r{number}").reason for number in range(50)]
    assert set(failed) == {"cannot run 'no-such-program': No such file or directory"}
