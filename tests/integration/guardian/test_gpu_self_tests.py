"""Self-tests of simulated GPUs, in processes of the guardian's."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.gpus.self_test import Verdict
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.guardian.client import GuardianSettings
from orchestrator.guardian.messages import GpuTested
from tests.support.guardian import Host, StartHost, lives, python, wait

StartTester = Callable[..., Host]


@pytest.fixture
def uuids(tmp_path: Path) -> tuple[str, str, str]:
    """Return the uuids of GPUs that pass, that fail and that hang."""
    gpus = make_gpus(3, owner=str(tmp_path))
    passes, fails, hangs = (sample.gpu.uuid for sample in gpus)
    write_gpus(tmp_path / "gpus.toml", gpus, self_tests={fails: "fails", hangs: "hangs"})
    return passes, fails, hangs


@pytest.fixture
def start(start_host: StartHost, tmp_path: Path) -> StartTester:
    """Return a starter of guardians of these GPUs."""
    return lambda **values: start_host(simulated_gpus=tmp_path / "gpus.toml", **values)


def test_a_test_tells_whether_a_gpu_passes(start: StartTester, uuids: tuple[str, str, str]) -> None:
    host = start()
    for uuid, verdict, reason in (
        (uuids[0], Verdict.PASSED, ""),
        (uuids[1], Verdict.FAILED, "it is simulated to"),
        ("GPU-x", Verdict.FAILED, "it is simulated to"),
    ):
        host.guardian.self_test(uuid)
        assert host.expect(GpuTested) == GpuTested(uuid, verdict, reason)


def test_a_gpu_that_hangs_fails_and_holds_up_nobody(start: StartTester, uuids: tuple[str, str, str]) -> None:
    """Runners come and go, and another GPU is tested meanwhile; the process is ended when its time is over."""
    host = start(self_test_seconds=3)
    host.guardian.self_test(uuids[2])
    tester = host.helper("guardian.self_test")
    host.guardian.self_test(uuids[0])
    assert host.expect(GpuTested).gpu == uuids[0]
    assert host.run(argv=python("import subprocess; subprocess.Popen(['sleep', '600'])")).exit_code == 0
    assert lives(tester), "it is a helper, and nothing that the runner has left behind"

    assert host.expect(GpuTested) == GpuTested(uuids[2], Verdict.FAILED, "it took more than 3 s")
    wait(lambda: not lives(tester), "the end of the test")


def test_a_test_that_somebody_ends_says_nothing_of_the_gpu(start: StartTester, uuids: tuple[str, str, str]) -> None:
    """One that crashes does: what it ran was the driver's."""
    host = start(self_test_seconds=600)
    for number, verdict in ((signal.SIGKILL, Verdict.UNTESTED), (signal.SIGSEGV, Verdict.FAILED)):
        host.guardian.self_test(uuids[2])
        os.kill(host.helper("guardian.self_test"), number)
        told = host.expect(GpuTested)
        assert (told.verdict, told.reason) == (verdict, f"it ended with {-number} before it had a result")


def test_a_gpu_is_tested_once_at_a_time(start: StartTester, uuids: tuple[str, str, str]) -> None:
    host = start(self_test_seconds=600)
    host.guardian.self_test(uuids[2])
    tester = host.helper("guardian.self_test")
    host.guardian.self_test(uuids[2])
    host.run(argv=("true",))  # whatever was asked before is under way
    assert [pid for pid in host.children() if b"guardian.self_test" in Path(f"/proc/{pid}/cmdline").read_bytes()] == [
        tester
    ]


def test_a_guardian_that_ends_takes_its_tests_along(
    settings: Callable[..., GuardianSettings], tmp_path: Path, uuids: tuple[str, str, str]
) -> None:
    """Nothing of it stays on the GPU."""
    host = Host(settings(simulated_gpus=tmp_path / "gpus.toml", self_test_seconds=600))
    host.start(argv=("sleep", "600"))
    host.guardian.self_test(uuids[2])
    tester = host.helper("guardian.self_test")
    host.close()
    wait(lambda: not lives(tester), "the end of the test")
