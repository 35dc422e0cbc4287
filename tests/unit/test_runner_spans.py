"""What runners and guardians wrote: read as it was, torn ends included, and judged."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.history import LeaseRow, RunnerSpan
from orchestrator.domain.job import LeaseMode
from orchestrator.testing import runner_dump
from orchestrator.testing.runner_spans import check_overlaps, check_tokens, load_spans
from tests.support.waiting import wait_for

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def span(start: float, end: float | None, *, pid: int = 1, token: int = 1, gpu: str = "g", **more: Any) -> RunnerSpan:
    return RunnerSpan(f"f:{pid}", "boot", pid, token, (gpu,), start, end, job_id=f"j{pid}", attempt=1, **more)


def lease(number: int, mode: LeaseMode = LeaseMode.EXCLUSIVE, ended: datetime | None = None) -> LeaseRow:
    state = "active" if ended is None else "released"
    return LeaseRow(number, "a", mode, None, state, NOW, NOW, NOW + SECOND, ended, ("g",))


def overlaps(*spans: RunnerSpan, leases: Mapping[int, LeaseRow] | None = None) -> list[str]:
    return [one.invariant for one in check_overlaps(spans, leases or {})]


def test_processes_one_after_the_other_are_fine_and_together_are_not() -> None:
    first = span(0, 10)

    assert overlaps(first, span(10, 20, pid=2)) == []
    assert overlaps(first, span(9.5, 20, pid=2)) == ["runner-exclusive"]
    assert overlaps(first, span(2, 3, pid=2, gpu="other")) == []
    assert overlaps(first, replace(span(2, 3, pid=2), boot="another host's or an earlier one's")) == []


def test_one_that_outlives_several_overlaps_each_of_them() -> None:
    assert overlaps(span(0, 100), span(1, 2, pid=2), span(3, 4, pid=3)) == ["runner-exclusive"] * 2


def test_shares_of_a_gpu_run_together_and_not_beside_an_exclusive_holder() -> None:
    leases = {1: lease(1, LeaseMode.SHARED), 2: lease(2, LeaseMode.SHARED), 3: lease(3)}

    assert overlaps(span(0, 9), span(1, 9, pid=2, token=2), leases=leases) == []
    assert overlaps(span(0, 9), span(1, 9, pid=2, token=3), leases=leases) == ["runner-exclusive"]


def test_a_runner_without_an_end_is_judged_by_who_found_it_alive() -> None:
    killed = span(0, None)

    assert overlaps(killed, span(5, 6, pid=2)) == []
    assert overlaps(killed, span(5, 6, pid=2, beside=(1,))) == ["runner-exclusive"]


def test_what_a_guardian_tells_of_a_runner_is_not_a_second_runner() -> None:
    told = replace(span(0, 10), job_id=None, attempt=None)

    assert overlaps(told, span(0.1, 9.9)) == []
    assert overlaps(told, replace(told, pid=2, start=5.0)) == ["runner-exclusive"]
    assert overlaps(told, replace(told, pid=2, start=5.0, is_exclusive=False)) == ["runner-exclusive"]
    assert overlaps(replace(told, is_exclusive=False), replace(told, pid=2, is_exclusive=False)) == []


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=8))
def test_the_sweep_line_finds_what_a_look_at_every_pair_finds(uses: list[tuple[int, int]]) -> None:
    spans = [span(start, start + length, pid=number) for number, (start, length) in enumerate(uses)]
    spans.sort(key=lambda one: (one.start, one.pid))
    pairs = [
        (one.pid, other.pid)
        for place, one in enumerate(spans)
        for other in spans[place + 1 :]
        if other.end is not None and one.end is not None and one.end > other.start
    ]

    assert len(overlaps(*spans)) == len(pairs)


def test_a_runner_is_judged_by_its_lease() -> None:
    ended = {1: lease(1, ended=NOW + 10 * SECOND)}
    good = span(0, 9, start_wall=NOW, end_wall=NOW + 9 * SECOND)

    def told(one: RunnerSpan, claimed: int = 1) -> list[str]:
        return [found.seen for found in check_tokens([one], ended, {("j1", 1): claimed}, skew=SECOND)]

    assert told(good) == []
    assert "alive at" in told(replace(good, end_wall=NOW + 12 * SECOND))[0]
    assert "before lease 1 was granted" in told(replace(good, start_wall=NOW - 2 * SECOND))[0]
    assert "saw GPUs ['h']" in told(replace(good, gpus=("h",)))[0]
    assert "was claimed under 2" in told(good, claimed=2)[0]
    assert told(replace(good, end=None, end_wall=None)) == []
    assert told(replace(good, token=9, job_id="pruned")) == [], "its lease is gone with its job"


def dump(file: Path, seconds: str, gpus: str, job: str) -> subprocess.Popen[bytes]:
    said = {"ORCHESTRATOR_JOB_ID": job, "ORCHESTRATOR_ATTEMPT": "1", "ORCHESTRATOR_FENCING_TOKEN": "3"}
    environment = os.environ | said | {"CUDA_VISIBLE_DEVICES": gpus}
    return subprocess.Popen([sys.executable, runner_dump.__file__, str(file), seconds], env=environment)


def test_a_runner_tells_of_itself_and_of_a_live_one_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "dumps.jsonl"
    stuck = dump(file, "600", "g,h", "j1")
    try:
        wait_for(lambda: file.exists() and file.read_text(), within_seconds=20, describe="the first line")
        assert dump(file, "0", "h", "j2").wait(20) == 0
    finally:
        stuck.kill()
        stuck.wait(20)
    assert dump(file, "0", "g", "j3").wait(20) == 0
    first, second, third = load_spans([file])

    assert (first.job_id, first.gpus, first.token, first.end) == ("j1", ("g", "h"), 3, None)
    assert second.beside == (stuck.pid,)
    assert second.end is not None
    assert second.end >= second.start
    assert third.beside == (), "it was dead by then"


def test_a_journal_is_read_by_marks(tmp_path: Path) -> None:
    common = {"boot_id": "b", "token": 4, "gpus": ["g"], "exclusive": True}
    records = [
        {"op": "start", "at": 0.5, "boot_id": "b"},
        {"op": "spawn", "mark": "m1", "at": 1.0} | common,
        {"op": "began", "mark": "m1", "at": 1.5, "pid": 7} | common,
        {"op": "exit", "mark": "m1", "at": 3.0, "boot_id": "b"},
        {"op": "began", "mark": "m2", "at": 4.0, "pid": 8} | common,
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))

    assert [(one.pid, one.start, one.end) for one in load_spans([tmp_path])] == [(7, 1.5, 3.0), (8, 4.0, None)]


def test_a_runner_that_outlives_its_journals_file_is_one_runner(tmp_path: Path) -> None:
    """A journal that is set aside says again, in the next file, what is still open."""
    began = {"op": "began", "mark": "m1", "at": 1.5, "pid": 7, "boot_id": "b", "token": 4, "gpus": ["g"]}
    began["exclusive"] = True
    (tmp_path / "a.jsonl.1").write_text(json.dumps(began) + "\n")
    ended = {"op": "exit", "mark": "m1", "at": 3.0, "boot_id": "b"}
    (tmp_path / "a.jsonl").write_text(json.dumps(began) + "\n" + json.dumps(ended) + "\n")

    assert [(one.start, one.end) for one in load_spans([tmp_path])] == [(1.5, 3.0)]


def test_a_torn_last_line_is_left_out_and_any_other_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"op": "start", "at": 1, "boot_id": "b"}\n{"op": "ex')
    assert load_spans([file]) == []
    file.write_text('{"op": "ex\n{"op": "start", "at": 1, "boot_id": "b"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:1"):
        load_spans([file])
    file.write_text("[]\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:1"):
        load_spans([file])
