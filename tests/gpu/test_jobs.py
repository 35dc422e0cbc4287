"""Jobs that compute on a real GPU: what they see, what is measured of them, and what they leave behind."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.domain.cluster import GpuHealth
from orchestrator.domain.job import FailureClass, JobState
from orchestrator.services.cancel import CancelService
from orchestrator.services.why import explain
from tests.gpu.conftest import CLEAN_MIB, HERE, USE, RealHost, read_gpus
from tests.support.waiting import wait_for

pytestmark = pytest.mark.gpu

#: More than the context of any GPU takes, less than any GPU has.
SHARE_MIB = 4096


def test_a_job_sees_its_gpu_and_one_without_gpus_sees_none(host: RealHost) -> None:
    (first, *_) = host.gpus
    with_gpu, without = host.use("devices", gpus=1), host.use("devices", gpus=0)
    jobs = host.ended(with_gpu, without)
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2, [host.cluster.output(job.id) for job in jobs]
    (attempt,) = host.cluster.runtime.jobs.attempts(with_gpu)
    assert host.cluster.output(with_gpu).split() == list(attempt.gpus)
    assert host.cluster.output(without).split() == []
    assert first.gpu.memory_mib > SHARE_MIB


def test_a_job_over_its_share_is_ended_and_its_neighbour_finishes(host: RealHost) -> None:
    modest = host.use("hold", "1024:8", gpu_memory_mib=SHARE_MIB)
    host.wait_until_used(modest)
    greedy = host.use("hold", "1024:3", f"{SHARE_MIB + 2048}:60", gpu_memory_mib=SHARE_MIB)
    over, within = host.ended(greedy, modest)

    assert (over.state, over.failure_class) == (JobState.FAILED, FailureClass.VRAM_EXCEEDED)
    assert within.state is JobState.SUCCEEDED
    assert "vram_warned" in [event.kind for event in host.cluster.runtime.jobs.history(greedy)]
    peaks = [host.cluster.runtime.jobs.attempts(job)[0].peak_gpu_memory_mib for job in (modest, greedy)]
    assert 1024 <= (peaks[0] or 0) < SHARE_MIB  # with the context
    assert (peaks[1] or 0) >= SHARE_MIB + 2048
    host.wait_until_clean()


def test_what_a_gpu_did_for_a_job_is_accounted(host: RealHost) -> None:
    idle, busy = host.use("hold", "256:6", gpus=1), host.use("work", "6", gpus=1)
    host.ended(idle, busy)
    seconds = [host.cluster.runtime.jobs.attempts(job)[0].gpu_busy_seconds for job in (idle, busy)]
    assert seconds[0] is not None
    assert seconds[0] < 2
    assert seconds[1] is not None
    assert seconds[1] > 3


def test_the_memory_of_a_cancelled_job_is_back_and_the_next_one_has_it(host: RealHost) -> None:
    """The first asks for most of the GPU, so that the second has no room beside it."""
    most = host.gpus[0].gpu.memory_mib * 3 // 4
    first = host.use("hold", f"{most}:600", gpus=1)
    host.wait_until_used(first)
    second = host.use("hold", f"{most}:1", gpus=1)
    CancelService(host.cluster.runtime).cancel(first, by="test")
    cancelled, after = host.ended(first, second)
    assert (cancelled.state, after.state) == (JobState.CANCELLED, JobState.SUCCEEDED), host.cluster.output(second)
    host.wait_until_clean()


def test_a_daemon_that_a_job_leaves_is_ended_before_the_next_job_starts(host: RealHost) -> None:
    """It has left the session and its parent, and ignores TERM."""
    daemon = " ".join((*USE, "hold", "2048:600"))
    script = f"trap '' TERM; (setsid {daemon} &)& sleep 8"
    first = host.cluster.command("sh", "-c", script, gpus=1)
    wait_for(lambda: len(read_gpus()[0].processes) == 1, within_seconds=30, describe=host.cluster.logs)
    (process,) = read_gpus()[0].processes
    assert process.used_mib >= 2048
    second = host.use("hold", "256:0", gpus=1)
    jobs = host.ended(first, second)
    assert [job.state for job in jobs] == [JobState.SUCCEEDED] * 2
    assert not psutil.pid_exists(process.pid)
    assert host.gpus[0].health is GpuHealth.HEALTHY


def test_a_stranger_is_told_and_waited_for(host: RealHost) -> None:
    with subprocess.Popen([*USE, "hold", "2048:600"], stdout=subprocess.PIPE) as stranger:
        try:
            wait_for(lambda: host.gpus[0].foreign.used_mib >= 2048, within_seconds=30, describe=host.cluster.logs)
            assert f"pid {stranger.pid} (" in "; ".join(host.gpus[0].foreign.by)
            waits = host.use("hold", "256:0", gpus=len(host.gpus))
            beside = host.use("hold", "256:0", gpu_memory_mib=SHARE_MIB)
            (shared,) = host.ended(beside)
            assert shared.state is JobState.SUCCEEDED
            wait_for(
                lambda: "in use without a lease" in explain(host.cluster.runtime, waits)[0].words,
                within_seconds=30,
                describe=host.cluster.logs,
            )
        finally:
            stranger.kill()
    (job,) = host.ended(waits)
    assert job.state is JobState.SUCCEEDED
    assert host.gpus[0].strikes == 0


def test_a_fault_of_a_job_is_its_own(host: RealHost) -> None:
    """The driver reports an XID for it, which is held against no card: the next job has the same GPU at once."""
    failed, after = host.use("fault", gpus=len(host.gpus)), host.use("hold", "256:0", gpus=len(host.gpus))
    jobs = host.ended(failed, after)
    assert [job.state for job in jobs] == [JobState.FAILED, JobState.SUCCEEDED]
    assert "CUDA error 700" in host.cluster.output(failed)
    assert [(record.health, record.strikes) for record in host.gpus] == [(GpuHealth.HEALTHY, 0)] * len(host.gpus)


def test_a_worker_that_is_killed_leaves_nothing_on_the_gpu(host: RealHost) -> None:
    job = host.use("hold", "2048:600", gpus=1)
    host.wait_until_used(job)
    os.kill(host.worker.pid, signal.SIGKILL)
    host.wait_until_clean()
    again = host.cluster.worker("real", gpus=None, app="cuda_app", queues="gpu", path=HERE)
    assert again.popen.poll() is None
    wait_for(
        lambda: host.cluster.job(job).attempt == 2 and host.cluster.job(job).state is JobState.RUNNING,
        within_seconds=60,
        describe=host.cluster.logs,
    )
    CancelService(host.cluster.runtime).cancel(job, by="test")
    host.ended(job)


def test_a_warm_runner_keeps_its_context(host: RealHost) -> None:
    """The second job finds the first one's process, and opens the GPU in a fraction of the time."""
    first = host.ended(host.cluster.task("g.opened", gpus=1))[0].result
    assert [process.pid for process in read_gpus()[0].processes] == [first["pid"]]
    second = host.ended(host.cluster.task("g.opened", gpus=1))[0].result
    assert (second["pid"], second["seen"]) == (first["pid"], first["seen"])
    print(f"opened cold in {first['seconds']:.3f} s, warm in {second['seconds']:.3f} s", file=sys.stderr)
    command = host.use("hold", "256:0", gpus=len(host.gpus))
    assert host.ended(command)[0].state is JobState.SUCCEEDED  # it has evicted the idle runner
    assert all(gpu.used_mib < CLEAN_MIB or first["pid"] not in {p.pid for p in gpu.processes} for gpu in read_gpus())


def test_a_job_cannot_open_the_card_of_another(host: RealHost) -> None:
    """Where the host permits a filter of devices; the attempt says whether it did."""
    card = Path("/dev/nvidia0")
    opens = f"open({str(card)!r}, 'rb').close()"
    without = host.cluster.command(sys.executable, "-c", opens, gpus=0)
    own = host.cluster.command(sys.executable, "-c", opens, gpus=len(host.gpus))
    refused, opened = host.ended(without, own)
    isolation = host.cluster.runtime.jobs.attempts(without)[0].isolation or ""
    print(f"isolation: {isolation}", file=sys.stderr)
    assert opened.state is JobState.SUCCEEDED, host.cluster.output(own)
    if "devices" in isolation:
        assert refused.state is JobState.FAILED
        assert "PermissionError" in host.cluster.output(without)
    else:
        assert refused.state is JobState.SUCCEEDED, host.cluster.output(without)
