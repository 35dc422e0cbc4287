"""How busy GPUs are, from samples."""

from collections import deque
from typing import Any, cast

import pytest

from orchestrator.domain.job import JobKind, LeaseMode, Resources
from orchestrator.domain.lease import LeaseGrant
from orchestrator.worker.busy import BusyMeter
from orchestrator.worker.host import Line, Shape
from orchestrator.worker.work import Callbacks, JobWork, Work


def work(*gpus: str, begun_at: float | None = 0.0) -> Work:
    shape = Shape(Resources(len(gpus)), "default", JobKind.TASK, "task", 5)
    line = Line(1, LeaseGrant(gpus, LeaseMode.EXCLUSIVE, None), shape, jobs=deque())
    job = JobWork(line, cast("Any", None), 1, cast("Any", None))
    made = Work("id", "task", None, Callbacks(None, None, None, None), None, None, job)
    made.begun_at = begun_at
    return made


def test_samples_count_for_the_time_since_the_one_before() -> None:
    meter, job = BusyMeter(), work("0", "1")
    meter.note(10, [job], {"0": 100, "1": 100})  # of the time before the first one nothing is known
    meter.note(12, [job], {"0": 100, "1": 50})
    meter.note(13, [job], {"0": 0, "1": 0})

    assert job.busy_seconds == pytest.approx(3.0)


def test_a_job_is_counted_from_its_own_begin() -> None:
    meter, late = BusyMeter(), work("0", begun_at=11.5)
    meter.note(10, [], {"0": 100})
    meter.note(12, [late], {"0": 100})

    assert late.busy_seconds == pytest.approx(0.5)


def test_what_the_driver_does_not_tell_is_not_zero() -> None:
    meter, job, waiting = BusyMeter(), work("0"), work("0", begun_at=None)
    for now in (1, 2):
        meter.note(now, [job, waiting], {"0": None})

    assert (job.busy_seconds, waiting.busy_seconds) == (None, None)
