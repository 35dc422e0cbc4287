"""A runner that outlives KILL costs its own GPUs, and nothing else."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.guardian.messages import SpawnFailed, Stuck
from tests.support.freezer import Freezer
from tests.support.guardian import StartHost, StartWorker, lives, make_spec, wait

SLEEP = ("sleep", "600")


@pytest.fixture
def freezer(start_host: StartHost, start_worker: StartWorker) -> Iterator[Freezer]:
    """Thawed before the guardians are closed."""
    with Freezer() as made:
        yield made


def test_it_is_told_and_its_gpu_stays_locked_until_it_is_gone(start_host: StartHost, freezer: Freezer) -> None:
    """The other GPU serves on; when the process is gone at last, so does this one."""
    host = start_host(kill_wait_seconds=0.3, lock_wait_seconds=0.3)
    pid = host.start("r1", argv=SLEEP, gpus=("GPU-0",))
    freezer.freeze([pid])
    host.guardian.kill("r1", 0)

    assert host.expect(Stuck, "r1") == Stuck("r1", ("GPU-0",), (pid,))
    host.spawn("r2", argv=("true",), gpus=("GPU-0",))
    assert "GPU-0 is locked" in host.expect(SpawnFailed, "r2").reason
    assert host.run("r3", argv=("true",), gpus=("GPU-1",)).exit_code == 0
    assert lives(pid)

    freezer.thaw()
    assert host.expect(Stuck, "r1").is_over
    assert not lives(pid)
    assert host.run("r4", argv=("true",), gpus=("GPU-0",)).exit_code == 0
    assert [record["op"] for record in host.journal() if record.get("runner") == "r1"] == [
        "spawn", "began", "kill", "stuck", "exit",
    ]  # fmt: skip


def test_a_daemon_that_outlives_its_runner_and_kill_is_told_likewise(
    start_host: StartHost, freezer: Freezer, tmp_path: Path
) -> None:
    """Its leader ended well, and still nothing is said of that end: something of the job may use the GPU."""
    host = start_host(kill_wait_seconds=0.3, leftover_grace_seconds=0.1)
    done = tmp_path / "done"
    script = f"setsid sleep 600 & echo $!; until [ -e {done} ]; do sleep 0.05; done"
    host.start("r1", argv=("sh", "-c", script), gpus=("GPU-0",))
    daemon = int(host.wait_printed(b"\n", "r1"))
    freezer.freeze([daemon])
    done.touch()

    assert host.expect(Stuck, "r1").pids == (daemon,)
    freezer.thaw()
    assert host.expect(Stuck, "r1").is_over


def test_a_guardian_stays_for_it_when_its_worker_ends(start_host: StartHost, freezer: Freezer) -> None:
    """The worker does not wait, and a second one's guardian on the host still finds the GPU locked."""
    first = start_host(kill_wait_seconds=0.3)
    pid = first.start("r1", argv=SLEEP, gpus=("GPU-0",))
    freezer.freeze([pid])
    first.guardian.close(timeout_seconds=10)

    second = start_host("node-b", lock_wait_seconds=0.3)
    second.spawn("r2", argv=("true",), gpus=("GPU-0",))
    assert f"GPU-0 is locked by pid {first.guardian.pid}" in second.expect(SpawnFailed, "r2").reason
    freezer.thaw()
    wait(lambda: not lives(first.guardian.pid), "the guardian's end")
    assert second.run("r3", argv=("true",), gpus=("GPU-0",)).exit_code == 0


def test_a_restart_starts_for_the_other_gpus(
    start_host: StartHost, start_worker: StartWorker, freezer: Freezer
) -> None:
    """The worker is killed, and its guardian is in the way of the next one, which ends it and takes the lock over."""
    spec = make_spec("r1", argv=SLEEP, gpus=("GPU-0",))
    worker = start_worker(spec, kill_wait_seconds=600)
    freezer.freeze([worker.runner])
    worker.process.kill()

    host = start_host(kill_wait_seconds=0.3, lock_wait_seconds=0.3)
    told = host.expect(Stuck)
    assert (told.gpus, told.pids, told.is_over) == (("GPU-0",), (worker.runner,), False)
    host.spawn("r2", argv=("true",), gpus=("GPU-0",))
    assert "GPU-0 is locked" in host.expect(SpawnFailed, "r2").reason
    assert host.run("r3", argv=("true",), gpus=("GPU-1",)).exit_code == 0

    freezer.thaw()
    assert host.expect(Stuck) == Stuck(told.runner_id, ("GPU-0",), (), is_over=True)
    assert host.run("r4", argv=("true",), gpus=("GPU-0",)).exit_code == 0
    assert not lives(worker.runner)
