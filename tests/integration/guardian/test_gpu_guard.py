"""Device locks between guardians, and what a guardian tells about the GPUs."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.cluster import GpuHealth, GpuSample
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.guardian.client import GuardianSettings
from orchestrator.guardian.helpers import MOST_LEFT, Watch
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.messages import GpuFault, GpuReport, Spawned, SpawnFailed
from tests.support.guardian import Host, StartHost, lives, python, wait

DAEMON = (
    "import os, time\nif os.fork() == 0:\n    os.setsid(); time.sleep(600)\nprint('up', flush=True)\ntime.sleep(600)"
)


def start_on(host: Host, *gpus: str, exclusive: bool = True, name: str = "r1") -> None:
    """Start a runner that holds these GPUs and has a daemon."""
    host.start(name, argv=python(DAEMON), gpus=gpus, exclusive=exclusive)
    host.wait_printed(b"up", name)


def test_a_gpu_has_one_exclusive_user_on_a_host(start_host: StartHost) -> None:
    """Another guardian's runner is refused, after the wait, with the pid of who holds the GPU."""
    first, second = start_host("node-a"), start_host("node-b", lock_wait_seconds=0.2)
    start_on(first, "GPU-a", "GPU-b")

    second.spawn(argv=("true",), gpus=("GPU-c", "GPU-b"))

    reason = second.expect(SpawnFailed, "r1").reason
    assert reason == f"GPU-b is locked by pid {first.guardian.pid} for runner r1"
    assert second.run("r2", argv=("true",), gpus=("GPU-c",)).exit_code == 0


def test_a_gpu_is_handed_on_when_the_last_descendant_is_gone(start_host: StartHost) -> None:
    """The next runner starts only after the daemon of the one before has ended, not when its leader has."""
    first, second = start_host("node-a", leftover_grace_seconds=0.5), start_host("node-b", lock_wait_seconds=30)
    source = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n    os.setsid(); print(os.getpid(), flush=True); time.sleep(600)\n"
        "time.sleep(0.3)"
    )
    first.start(argv=python(source), gpus=("GPU-a",))
    daemon = int(first.wait_printed(b"\n"))
    second.spawn(argv=("sh", "-c", f"cat /proc/{daemon}/environ && echo alive"), gpus=("GPU-a",))
    assert lives(daemon)

    first.expect_end()
    second.expect_end()

    assert b"alive" not in second.printed["r1"]


def test_shared_users_share_and_keep_an_exclusive_one_out(start_host: StartHost) -> None:
    """Any number of shared leases hold a GPU together; an exclusive one waits for the last."""
    first, second = start_host("node-a"), start_host("node-b", lock_wait_seconds=0.2)
    start_on(first, "GPU-a", exclusive=False)
    start_on(second, "GPU-a", exclusive=False)

    second.spawn("r2", argv=("true",), gpus=("GPU-a",))
    assert second.expect(SpawnFailed, "r2").reason.startswith("GPU-a is locked by pid ")

    for host in (first, second):
        host.guardian.kill("r1", grace_seconds=0)
        host.expect_end()
    assert second.run("r3", argv=("true",), gpus=("GPU-a",)).exit_code == 0
    lock = first.settings.find_lock_dir() / "gpu-GPU-a.lock"
    assert lock.read_bytes() == b""  # notes of finished users do not pile up


def test_the_same_guardian_reuses_a_gpu_at_once(host: Host) -> None:
    """A runner that is asked for while its GPU's last one is being killed waits for exactly that."""
    start_on(host, "GPU-a")
    host.guardian.kill("r1", grace_seconds=0)
    ended = host.run("r2", argv=("true",), gpus=("GPU-a",))

    assert ended.exit_code == 0


def test_a_runner_that_waits_for_a_gpu_can_be_ended(start_host: StartHost) -> None:
    """A kill takes a waiting request back; the GPU is free for others afterwards."""
    first, second = start_host("node-a"), start_host("node-b", lock_wait_seconds=600)
    start_on(first, "GPU-b")
    second.spawn(argv=("true",), gpus=("GPU-a", "GPU-b"))
    second.run("r2", argv=("true",))  # whatever was asked before is under way

    second.guardian.kill("r1", grace_seconds=600)

    assert second.expect(SpawnFailed, "r1").reason == "ended before it started"
    assert first.run("r2", argv=("true",), gpus=("GPU-a",)).exit_code == 0


def test_a_lock_that_cannot_be_used_fails_the_start(start_host: StartHost, tmp_path: Path) -> None:
    """A lock file that is a link is not followed: somebody else made it."""
    host = start_host()
    (host.settings.find_lock_dir() / "gpu-GPU-a.lock").symlink_to(tmp_path / "elsewhere")

    host.spawn(argv=("true",), gpus=("GPU-a",))

    assert "device lock of GPU-a: Too many levels of symbolic links" in host.expect(SpawnFailed, "r1").reason
    assert not (tmp_path / "elsewhere").exists()


@pytest.fixture
def gpus(tmp_path: Path) -> tuple[Path, tuple[GpuSample, ...]]:
    """Return a file of two simulated GPUs, and what it says."""
    path, samples = tmp_path / "gpus.toml", make_gpus(2, owner=str(tmp_path))
    write_gpus(path, samples)
    return path, samples


def test_changes_of_the_gpus_are_told(start_host: StartHost, gpus: tuple[Path, tuple[GpuSample, ...]]) -> None:
    """The first report comes by itself, the next when something changes."""
    path, (first, second) = gpus
    host = start_host(simulated_gpus=path, sample_seconds=0.05, report_seconds=600)
    assert host.expect(GpuReport).samples == (first, second)

    ill = GpuSample(second.gpu, 512, GpuHealth.QUARANTINED, (), 7, 80, 300)
    write_gpus(path, [first, ill])
    assert host.expect(GpuReport).samples == (first, ill)

    write_gpus(
        path, [first, GpuSample(second.gpu, 512, GpuHealth.QUARANTINED, (), 99, 81, 301)]
    )  # only busier and warmer
    write_gpus(path, [first])
    assert host.expect(GpuReport).samples == (first,)


def test_unchanged_gpus_are_told_now_and_then(start_host: StartHost, gpus: tuple[Path, tuple[GpuSample, ...]]) -> None:
    """A worker that hears nothing for longer than the interval knows that something is wrong."""
    host = start_host(simulated_gpus=gpus[0], sample_seconds=0.05, report_seconds=0.2)

    assert host.expect(GpuReport) == host.expect(GpuReport) == GpuReport(gpus[1])


def test_gpus_that_cannot_be_read_are_a_fault_and_come_back(
    start_host: StartHost, gpus: tuple[Path, tuple[GpuSample, ...]]
) -> None:
    """The fault says what is wrong; no old reading stands in for the missing one."""
    path, samples = gpus
    host = start_host(simulated_gpus=path, sample_seconds=0.05)
    host.expect(GpuReport)

    path.write_text("[[gpus]]\nuuid = 3\n")
    assert "gpus[0].index: missing" in host.expect(GpuFault).reason
    write_gpus(path, samples)
    assert host.expect(GpuReport).samples == samples


def test_a_driver_that_hangs_is_a_fault_and_holds_up_nothing(
    start_host: StartHost, gpus: tuple[Path, tuple[GpuSample, ...]]
) -> None:
    """The sampler is replaced; meanwhile runners start and end as ever."""
    host = start_host(simulated_gpus=gpus[0], sample_seconds=0.05, report_seconds=600, sampler_deadline_seconds=1)
    host.expect(GpuReport)
    sampler = host.helper("sampler")

    os.kill(sampler, signal.SIGSTOP)
    assert host.run(argv=("true",)).exit_code == 0
    assert host.expect(GpuFault).reason == "the GPU driver has not answered for 1 s"

    assert host.expect(GpuReport).samples == gpus[1]
    wait(lambda: not lives(sampler), "the old sampler's end")
    assert host.helper("sampler") != sampler


def test_a_card_that_hangs_its_driver_is_left_out_and_comes_back(
    start_host: StartHost, gpus: tuple[Path, tuple[GpuSample, ...]]
) -> None:
    """The other one is read and used all the while; this one is doubted, then not told of, and tried by itself."""
    path, (well, sick) = gpus
    bounds = {"hung_lost_seconds": 3, "hung_retry_seconds": 0.2, "hung_most_retry_seconds": 0.5}
    host = start_host(
        simulated_gpus=path, sample_seconds=0.05, report_seconds=600, sampler_deadline_seconds=1, **bounds
    )
    assert host.expect(GpuReport).samples == gpus[1]
    write_gpus(path, gpus[1], hanging=[sick.gpu.uuid])

    assert host.expect(GpuReport).samples == (well, replace(sick, health=GpuHealth.SUSPECT))
    assert host.run(argv=("true",), gpus=(well.gpu.uuid,)).exit_code == 0
    assert host.expect(GpuReport).samples == (well,)
    assert not any(isinstance(event, GpuFault) for event in host.events), "one card is not all of them"

    write_gpus(path, gpus[1])
    assert host.expect(GpuReport).samples == gpus[1]
    readers = [pid for pid in host.children() if b"sampler" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(readers) == 1, "none that hung is left"


def test_each_card_that_hangs_is_left_out(start_host: StartHost, tmp_path: Path) -> None:
    path, samples = tmp_path / "gpus.toml", make_gpus(4, owner=str(tmp_path))
    write_gpus(path, samples, hanging=[samples[0].gpu.uuid, samples[2].gpu.uuid])
    host = start_host(simulated_gpus=path, sample_seconds=0.05, report_seconds=600, sampler_deadline_seconds=1)

    # Of a card that hung from the start on nothing is known, not even its name.
    assert host.expect(GpuReport).samples == (samples[1], samples[3])


def test_a_sampler_that_its_driver_keeps_from_ending_is_left_and_another_started(
    settings: Callable[..., GuardianSettings], gpus: tuple[Path, tuple[GpuSample, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as a bound: one more each time would fill the host."""
    kill, spared = os.kill, list[int]()
    watch = Watch(settings(simulated_gpus=gpus[0]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "kill", lambda pid, _number: spared.append(pid))  # a process that is in its driver
        for number in range(MOST_LEFT):
            watch.check(boottime() + 3600)
            assert (len(spared), watch.pid) == (number + 1, 0)
            assert watch.wakes_at is not None
            watch.start()
    assert len(set(spared)) == MOST_LEFT
    assert (watch.pid, watch.pids) == (0, set(spared))

    kill(spared[0], signal.SIGKILL)
    assert watch.on_ended(*os.waitpid(spared[0], 0)) is None
    watch.start()
    assert watch.pid not in {0, *spared}
    for pid in watch.pids:
        kill(pid, signal.SIGKILL)
        watch.on_ended(*os.waitpid(pid, 0))
    assert watch.pids == set()


def test_no_runner_is_spared_as_a_helper(start_host: StartHost) -> None:
    """Helpers that were replaced do not confuse the guardian about what is left of a runner."""
    host = start_host(leftover_grace_seconds=0.1)
    os.kill(host.helper("sampler"), signal.SIGKILL)
    assert host.expect(GpuFault).reason == "the GPU sampler ended with -9"

    host.spawn(argv=("sh", "-c", "setsid sleep 600 & echo $!"))
    host.expect(Spawned, "r1")
    host.expect_end()
    assert not lives(int(host.printed["r1"]))
