"""Messages, settings and the journal as they are written and read."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuProcess, GpuSample
from orchestrator.gpus.self_test import Verdict
from orchestrator.guardian.journal import Journal
from orchestrator.guardian.messages import (
    Exited,
    GpuFault,
    GpuReport,
    GpuTested,
    GuardianEvent,
    RunnerSpec,
    Spawned,
    SpawnFailed,
    event_from_document,
    event_to_document,
)
from orchestrator.guardian.predecessor import find_unfinished
from orchestrator.guardian.settings import GuardianSettings

SPEC: dict[str, Any] = {
    "runner_id": "r1",
    "argv": ("true",),
    "entry": None,
    "environment": {"A": "ü"},
    "cwd": "/",
    "gpus": ("GPU-a",),
    "exclusive": True,
    "token": 7,
    "nice": None,
    "rlimits": {"core": 0},
}
SAMPLE = GpuSample(Gpu("GPU-a", 0, "S", 80, "1"), 3, GpuHealth.SUSPECT, (GpuProcess(1, 2),), None, 40, 300)


@pytest.mark.parametrize(
    "event",
    [
        Spawned("r1", 5, 99),
        SpawnFailed("r1", "why"),
        Exited("r1", None, 9, "deadline", 12),
        GpuReport((SAMPLE,)),
        GpuReport(()),
        GpuFault("why"),
        GpuTested("GPU-a", Verdict.FAILED, "why"),
    ],
)
def test_an_event_is_read_as_it_was_written(event: GuardianEvent) -> None:
    """Types, tuples and enumerations survive JSON."""
    assert event_from_document(json.loads(json.dumps(event_to_document(event)))) == event


@pytest.mark.parametrize("values", [{}, {"argv": None, "entry": "a:b"}, {"deadline": math.inf, "nice": -5}])
def test_a_spec_is_read_as_it_was_written(values: dict[str, Any]) -> None:
    """Also one whose deadline never comes."""
    spec = RunnerSpec(**(SPEC | values))

    assert RunnerSpec.from_document(json.loads(json.dumps(spec.to_document()))) == spec


@pytest.mark.parametrize(
    "values",
    [{"argv": None}, {"entry": "a:b"}, {"argv": ()}, {"runner_id": "a/b"}, {"runner_id": ""}, {"runner_id": "x" * 65}],
)
def test_a_spec_has_one_program_and_a_plain_name(values: dict[str, Any]) -> None:
    """Faults show where the spec is made, not in another process."""
    with pytest.raises(ValueError, match=r"a runner has an argv or an entry|cannot name a runner"):
        RunnerSpec(**(SPEC | values))


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Paths stay paths, absent ones absent."""
    for settings in (
        GuardianSettings(node="n", home=tmp_path),
        GuardianSettings("n", tmp_path, tmp_path / "l", tmp_path / "j", tmp_path / "g.toml", ("a", "b"), ("/x",), 1),
    ):
        assert GuardianSettings.from_document(json.loads(json.dumps(settings.to_document()))) == settings


def test_locks_fall_back_to_the_home_only_when_none_are_configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory that was asked for is used or is an error; the system's is used if it can be."""
    blocked = tmp_path / "file"
    blocked.touch()
    system = "orchestrator.guardian.settings.SYSTEM_LOCKS"
    monkeypatch.setattr(system, blocked / "locks")
    assert GuardianSettings("n", tmp_path).find_lock_dir() == tmp_path / "locks"
    monkeypatch.setattr(system, tmp_path / "run")
    assert GuardianSettings("n", tmp_path).find_lock_dir() == tmp_path / "run"
    with pytest.raises(OSError, match="Not a directory"):
        GuardianSettings("n", tmp_path, lock_dir=blocked / "locks").find_lock_dir()


def test_a_torn_line_and_another_boot_are_passed_over(tmp_path: Path) -> None:
    """What a killed writer left half-written is not read, and nothing of an earlier boot can be alive."""
    journal = Journal(tmp_path / "n.jsonl")
    journal.append("spawn", mark="m1", runner="r1", gpus=[])
    with (tmp_path / "n.jsonl").open("a") as file:
        file.write(json.dumps({"op": "spawn", "mark": "m2", "boot_id": "earlier"}) + '\n"text"\n{"op": "sp')

    assert [record["mark"] for record in journal.read()] == ["m1"]


def test_a_runner_is_unfinished_until_its_exit(tmp_path: Path) -> None:
    """What is known of it is collected over its records."""
    journal = Journal(tmp_path / "n.jsonl")
    for mark in ("m1", "m2"):
        journal.append("spawn", mark=mark, runner=mark, gpus=["GPU-a"])
        journal.append("began", mark=mark, runner=mark, gpus=["GPU-a"], pid=4, start_ticks=5)
    journal.append("kill", mark="m1")
    journal.append("exit", mark="m1")

    (left,) = find_unfinished(journal.read())
    assert (left["mark"], left["pid"], left["start_ticks"], left["gpus"]) == ("m2", 4, 5, ["GPU-a"])


def test_a_journal_that_grew_is_rotated_with_what_is_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file still names the guardian and every living runner; the old one is kept beside it."""
    monkeypatch.setattr("orchestrator.guardian.journal.ROTATE_BYTES", 2000)
    journal = Journal(tmp_path / "n.jsonl")
    journal.append("start", pid=1)
    journal.append("spawn", mark="lives", runner="r0", gpus=[])
    journal.append("began", mark="lives", runner="r0", gpus=[], pid=4, start_ticks=5)
    for number in range(100):
        journal.append("spawn", mark=f"m{number}", runner="r", gpus=[])
        journal.append("exit", mark=f"m{number}", runner="r", gpus=[])

    assert (tmp_path / "n.jsonl").stat().st_size < 2500
    assert (tmp_path / "n.jsonl.1").exists()
    assert [record["mark"] for record in find_unfinished(journal.read())] == ["lives"]
    assert [record["pid"] for record in journal.read() if record["op"] == "start"] == [1]


def test_a_node_has_one_writer(tmp_path: Path) -> None:
    """The journal's lock is exclusive, also against the same process."""
    first, second = Journal(tmp_path / "n.jsonl"), Journal(tmp_path / "n.jsonl")

    assert first.try_lock()
    assert not second.try_lock()
