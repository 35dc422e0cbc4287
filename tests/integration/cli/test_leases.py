"""``orch lease``: a command under a lease of this host's GPUs."""

import os
import pty
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.client import Client
from orchestrator.errors import LeaseLost
from orchestrator.guardian.processes import read_process
from orchestrator.runtime import Runtime
from tests.integration.cli.conftest import ORCH, Installation, Orch, installed
from tests.support.running import confirming, register
from tests.support.servers import RedisServer
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def installation(
    tmp_path_factory: pytest.TempPathFactory, embedded_redis_server: RedisServer
) -> Iterator[Installation]:
    """One with a host that other tests do not expect."""
    homes = tmp_path_factory.mktemp("lease-api"), tmp_path_factory.mktemp("lease-client")
    with installed(*homes, embedded_redis_server.unix_url) as made:
        yield made


@pytest.fixture
def here(orch: Orch, runtime: Runtime, tmp_path: Path) -> Iterator[Orch]:
    """The command line on host gpu-9, which has two GPUs and confirms its leases."""
    register(runtime, "gpu-9", 2)
    orch.environment |= {"ORCHESTRATOR_NODE": "gpu-9", "ORCHESTRATOR_LOCK_DIR": str(tmp_path)}
    with confirming(runtime):
        yield orch


def held(runtime: Runtime) -> list[str]:
    """Return the GPUs that are leased without a job."""
    return [uuid for lease in runtime.leases.leases() for uuid in lease.gpus]


def alive(pid: int) -> bool:
    process = read_process(pid)
    return process is not None and process.alive


def test_a_command_sees_its_gpus_and_gives_its_exit_code(here: Orch, runtime: Runtime) -> None:
    script = 'echo "$CUDA_VISIBLE_DEVICES $ORCHESTRATOR_FENCING_TOKEN"; exit 7'
    ended = here("lease", "--gpus", "2", "--name", "mine", "--", "sh", "-c", script)
    (listed,) = [one for one in here("leases", "--ended", "--json").document if one["name"] == "mine"]

    assert (ended.code, ended.out.split()) == (7, ["gpu-9-0,gpu-9-1", str(listed["id"])])
    assert re.fullmatch(r"orch: lease \d+ of gpu-9-0, gpu-9-1 on gpu-9\n", ended.err)
    assert (listed["state"], listed["gpus"], held(runtime)) == ("released", ["gpu-9-0", "gpu-9-1"], [])


def test_nothing_that_it_started_outlives_the_lease(here: Orch, runtime: Runtime, tmp_path: Path) -> None:
    """Neither a child in another session, nor the command when its ``orch`` is killed; that lease ends by itself."""
    pids = tmp_path / "pids"
    daemon = f"setsid sh -c 'echo $$ >> {pids}; exec sleep 600' & sleep 0.5; "
    assert here("lease", "--", "sh", "-c", daemon).code == 0
    (first,) = map(int, pids.read_text().split())
    assert not alive(first)

    process = here.start("lease", "--ttl", "5", "--", "sh", "-c", f"echo $$ >> {pids}; exec sleep 600")
    second = int(wait_for(lambda: [*pids.read_text().split(), ""][1], within_seconds=20, describe="the command"))
    assert held(runtime) == ["gpu-9-0"]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    wait_for(lambda: not alive(second), within_seconds=10, describe="the command's end")
    (lease,) = runtime.leases.leases()
    assert here("leases", "--release", str(lease.id)).code == 0, "no leader is here to expire it"


def test_a_lease_that_an_operator_ends_takes_the_command_along(here: Orch, runtime: Runtime, tmp_path: Path) -> None:
    """Its holder hears of it with the next heartbeat, ends what runs, and says so by its exit code."""
    file = tmp_path / "up"
    script = f"trap '' TERM; touch {file}; while :; do sleep 0.1; done"
    process = here.start("lease", "--ttl", "5", "--grace", "0.2", "--", "sh", "-c", script)
    wait_for(file.exists, within_seconds=20, describe="the command")
    (lease,) = runtime.leases.leases()
    assert here("leases", "--release", str(lease.id), "--json").document[0]["state"] == "released"
    _, error = process.communicate(timeout=30)

    assert process.returncode == 4
    assert f"lease {lease.id} is lost" in error
    assert runtime.leases.leases() == []


def test_a_shell_has_the_terminal_and_its_job_control(here: Orch) -> None:
    """What is typed goes to the shell; an interrupt is for what runs in its foreground, and not for the lease."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(ORCH[0], [*ORCH, "lease", "--", "sh", "-i"], here.environment | {"PS1": "ready> "})
    seen = b""

    def read_until(wanted: bytes) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while wanted not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(terminal, 4096)
        seen = seen.partition(wanted)[2]

    read_until(b"ready> ")
    os.write(terminal, b"sleep 600\n")
    time.sleep(0.5)
    os.write(terminal, b"\x03")
    read_until(b"ready> ")
    os.write(terminal, b"echo $((40 + 2)) $CUDA_VISIBLE_DEVICES\n")
    read_until(b"42 gpu-9-0")
    os.write(terminal, b"exit 5\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    os.close(terminal)


def test_mistakes_and_busy_gpus_are_one_line(here: Orch) -> None:
    unknown = here("lease", "--", "true", ORCHESTRATOR_NODE="nowhere")
    never = here("lease", "--gpus", "9", "--", "true")
    missing = here("lease", "--", "/no/such/program")

    assert (unknown.code, "this host, nowhere, is not registered" in unknown.err) == (2, True)
    assert (never.code, "no host has 9 GPUs" in never.err) == (2, True)
    assert (missing.code, "/no/such/program: No such file" in missing.err) == (2, True)
    process = here.start("lease", "--gpus", "2", "--", "sleep", "600")
    wait_for(lambda: here("leases", "--json").document, within_seconds=20, describe="the lease")
    busy = here("lease", "--", "true")
    process.terminate()
    process.communicate(timeout=20)
    assert (busy.code, "gpu-9 has 0 of 1 such GPUs free" in busy.err) == (4, True)
    assert here("lease", "--wait", "30", "--", "true").code == 0


def test_a_program_holds_a_lease_and_learns_of_its_loss(
    installation: Installation, runtime: Runtime, here: Orch
) -> None:
    """A thread renews it; once somebody ended it, ``check`` says so, and leaving the block is no error."""
    with (
        Client(installation.url, installation.token_file.read_text().strip()) as client,
        client.lease(gpus=1, ttl_seconds=5.0, name="held") as lease,
    ):
        (granted,) = runtime.leases.leases()
        assert (granted.id, lease.environment["CUDA_VISIBLE_DEVICES"]) == (lease.fencing_token, "gpu-9-0")
        renewed = lambda: runtime.leases.leases()[0].expires_at > granted.expires_at  # noqa: E731
        wait_for(renewed, within_seconds=20, describe="a heartbeat")
        lease.check()
        runtime.leases.release(None, lease_id=lease.id, by="operator")
        wait_for(lease.lost.is_set, within_seconds=20, describe="the loss")
        with pytest.raises(LeaseLost):
            lease.check()
