"""What a guardian logs, as its worker does."""

import json
from pathlib import Path

import pytest

from orchestrator.guardian.settings import GuardianSettings
from tests.support.guardian import Host, wait


def test_a_guardian_logs_objects_with_its_host(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It knows runners and leases, not jobs: what a runner's end means for a job, the worker says."""
    host = Host(
        GuardianSettings(
            node="gpu-7", home=tmp_path, lock_dir=tmp_path / "locks", preload=("no_such_module",), log_format="json"
        )
    )
    said = ""

    def logged() -> list[str]:
        nonlocal said
        said += capfd.readouterr().err
        return [line for line in said.splitlines() if "no_such_module" in line]

    try:
        (line,) = wait(logged, lambda: said)
    finally:
        host.close()
    found = json.loads(line)
    assert (found["host"], found["process"], found["level"]) == ("gpu-7", "guardian", "WARNING")
    assert found["logger"] == "orchestrator.guardian.helpers"
    assert found["pid"] > 0
