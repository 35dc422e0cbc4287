"""GPUs that a real worker lends to somebody without a job, who is told that he has them when nothing is left there."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.cluster import GpuHealth, GpuSample
from orchestrator.domain.job import JobState
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.guardian.processes import read_process
from tests.integration.api.conftest import client_of
from tests.integration.cli.conftest import serving
from tests.support.cluster import Cluster
from tests.support.servers import free_port
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
#: Far beyond a test: what is gone was evicted, and did not end by itself.
IDLE = 600


def cards(cluster: Cluster, count: int = 1) -> list[GpuSample]:
    """Describe the GPUs of host ``a``, so that they can be described otherwise later."""
    made = list(make_gpus(count, owner=f"{cluster.home}-a"))
    write_gpus(cluster.home / "a.toml", made)
    return made


def warm(cluster: Cluster, **options: Any) -> int:
    """Have a task leave a warm runner behind, which uses 4000 MiB of its GPU; return its pid."""
    job_id = cluster.task("t.use", str(cluster.home / "a.toml"), 4000, **({"gpus": 1} | options))
    pid = cluster.wait_for_state(job_id, JobState.SUCCEEDED).result
    assert isinstance(pid, int)
    assert read_process(pid) is not None, "the runner is kept"
    return pid


def post(cluster: Cluster, **body: Any) -> Any:
    """Ask for a lease over HTTP, and return the answer."""
    with client_of(cluster.runtime) as api:
        return api.post("/leases", json=body)


def orch_lease(cluster: Cluster, port: int, *argv: str) -> "subprocess.CompletedProcess[str]":
    """Run a command under a lease of host ``a``, as a user there does."""
    here: Mapping[str, str] = cluster.environment(
        node="a", simulated_gpus=cluster.home / "a.toml", api_url=f"http://127.0.0.1:{port}"
    )
    command = [sys.executable, "-m", "orchestrator_cli", "lease", "--", *argv]
    return subprocess.run(command, env=here, capture_output=True, text=True, timeout=60, check=False)


def test_a_command_under_a_lease_finds_the_warm_runner_gone(cluster: Cluster) -> None:
    """``orch lease`` right after a task: the runner's process has ended before the command begins."""
    (card,) = cards(cluster)
    cluster.worker("a", app="tasks_app", path=HERE, runner_idle=IDLE)
    settings = {name: value for name, value in cluster.environment().items() if name.startswith("ORCHESTRATOR_")}
    del settings["ORCHESTRATOR_HOME"]
    port = free_port()
    with serving(cluster.home, port, **settings):
        pid = warm(cluster)
        look = f"cat /proc/{pid}/stat 2>/dev/null || echo gone; echo $CUDA_VISIBLE_DEVICES"
        found = orch_lease(cluster, port, "sh", "-c", look)

    assert (found.returncode, found.stdout.split()) == (0, ["gone", card.gpu.uuid]), found.stderr + cluster.logs()


@pytest.mark.parametrize("lent", [{}, {"gpu_memory": 1000}], ids=["whole", "share"])
@pytest.mark.parametrize("kept", [{}, {"gpu_memory_mib": 5000}], ids=["after-whole", "after-share"])
def test_a_lease_over_http_is_answered_when_the_warm_runner_is_gone(
    cluster: Cluster, kept: dict[str, Any], lent: dict[str, Any]
) -> None:
    """Whether it had the whole GPU or a share, and whichever is lent; afterwards a job has the GPU again."""
    cards(cluster)
    cluster.worker("a", app="tasks_app", path=HERE, runner_idle=IDLE)
    pid = warm(cluster, **kept)

    answer = post(cluster, **lent)

    assert read_process(pid) is None
    assert (answer.status_code, answer.json()["ready_at"] is not None) == (201, True), answer.text
    cluster.runtime.leases.release(None, lease_id=answer.json()["id"], by="test")
    assert warm(cluster) != pid


def test_a_runner_at_work_on_its_share_stays_beside_a_lent_share(cluster: Cluster) -> None:
    """Only what is idle makes way."""
    cards(cluster)
    cluster.worker("a", app="tasks_app", path=HERE, runner_idle=IDLE)
    done = cluster.home / "done"
    wait = f"while [ ! -e {done} ]; do sleep 0.05; done"
    job_id = cluster.command("sh", "-c", wait, gpu_memory_mib=1000)
    cluster.wait_for_state(job_id, JobState.RUNNING)

    answer = post(cluster, gpu_memory=1000)

    assert answer.status_code == 201, answer.text
    assert cluster.job(job_id).state is JobState.RUNNING
    done.touch()
    cluster.wait_for_state(job_id, JobState.SUCCEEDED)


def test_a_gpu_that_does_not_come_clean_is_quarantined_and_another_is_lent(cluster: Cluster) -> None:
    """Who waits gets the other one; who does not is told why, and holds nothing."""
    first, second = cards(cluster, 2)
    cluster.worker("a", gpu_clean_wait=0.3)
    write_gpus(cluster.home / "a.toml", [replace(first, used_mib=9000), second])
    told = lambda: [gpu.used_mib for gpu in cluster.runtime.cluster.nodes()[0].gpus]  # noqa: E731
    wait_for(lambda: told() == [9000, 0], within_seconds=20, describe=cluster.logs)

    refused = post(cluster)
    assert refused.status_code == 409, refused.text
    assert "9000 MiB in use that no lease explains" in refused.json()["faults"][0]
    assert cluster.runtime.leases.leases() == []
    health = lambda: cluster.runtime.cluster.gpu_standings("a")[first.gpu.uuid].health  # noqa: E731
    wait_for(lambda: health() is GpuHealth.QUARANTINED, within_seconds=20, describe=cluster.logs)
    granted = post(cluster, wait_seconds=20)
    assert (granted.status_code, granted.json()["gpus"]) == (201, [second.gpu.uuid]), granted.text


def test_a_host_that_does_not_answer_lends_nothing(cluster: Cluster) -> None:
    """Its worker is stopped, and still counts as alive: the lease is kept until the bound, and then released."""
    cards(cluster)
    worker = cluster.worker("a")
    cluster.runtime = replace(
        cluster.runtime, settings=cluster.runtime.settings.model_copy(update={"gpu_clean_wait": 0.1})
    )
    worker.popen.send_signal(signal.SIGSTOP)
    try:
        answer = post(cluster, ttl_seconds=5)
    finally:
        worker.popen.send_signal(signal.SIGCONT)

    assert answer.status_code == 409, answer.text
    assert "a: its worker did not confirm in 15.1 s" in answer.json()["faults"][0]
    assert cluster.runtime.leases.leases() == []
