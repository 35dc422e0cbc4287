"""How busy GPUs are, from samples."""

from collections import deque
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.domain.cluster import GpuSample
from orchestrator.domain.job import JobKind, LeaseMode, Resources
from orchestrator.domain.lease import LeaseGrant, Measured
from orchestrator.gpus.simulated import make_gpus
from orchestrator.worker.busy import BusyMeter, take_measured
from orchestrator.worker.host import Line, Shape
from orchestrator.worker.work import Callbacks, JobWork, Work

CARDS = make_gpus(2, owner="test", memory_mib=1000)


def loads(*percent: int | None) -> list[GpuSample]:
    """Return a reading of the GPUs ``0`` and ``1``."""
    return [
        replace(card, gpu=replace(card.gpu, uuid=str(card.gpu.index)), utilization_percent=load)
        for card, load in zip(CARDS, percent, strict=False)
    ]


def work(*gpus: str, begun_at: float | None = 0.0, share: int | None = None) -> Work:
    shape = Shape(Resources(len(gpus)), "default", JobKind.TASK, "task", 5)
    mode = LeaseMode.EXCLUSIVE if share is None else LeaseMode.SHARED
    line = Line(1, LeaseGrant(gpus, mode, share), shape, jobs=deque())
    claimed = SimpleNamespace(seq=7, attempt=2)
    job = JobWork(line, cast("Any", claimed), 1, cast("Any", None))
    made = Work("id", "task", None, Callbacks(None, None, None, None), None, None, job)
    made.begun_at = begun_at
    return made


def test_samples_count_for_the_time_since_the_one_before() -> None:
    meter, job = BusyMeter(), work("0", "1")
    meter.note(10, [job], loads(100, 100))  # of the time before the first one nothing is known
    meter.note(12, [job], loads(100, 50))
    meter.note(13, [job], loads(0, 0))

    assert job.busy_seconds == pytest.approx(3.0)


def test_a_job_is_counted_from_its_own_begin() -> None:
    meter, late = BusyMeter(), work("0", begun_at=11.5)
    meter.note(10, [], loads(100))
    meter.note(12, [late], loads(100))

    assert late.busy_seconds == pytest.approx(0.5)


def test_what_the_driver_does_not_tell_is_not_zero() -> None:
    meter, job, waiting = BusyMeter(), work("0"), work("0", begun_at=None)
    for now in (1, 2):
        meter.note(now, [job, waiting], loads(None))

    assert (job.busy_seconds, waiting.busy_seconds) == (None, None)


def test_the_jobs_that_share_a_gpu_are_together_as_busy_as_it_is() -> None:
    """Each by its part, whoever keeps it busy; what nobody has of it counts for nobody."""
    meter, quarters = BusyMeter(), [work("0", share=250) for _ in range(4)]
    meter.note(10, quarters, loads(80))
    meter.note(20, quarters, loads(80))
    assert [job.busy_seconds for job in quarters] == [pytest.approx(2.0)] * 4

    meter.note(30, quarters[:1], loads(80))
    assert quarters[0].busy_seconds == pytest.approx(4.0)


def test_what_was_measured_is_told_once_and_again_when_it_has_changed() -> None:
    job, silent = work("0"), work("0")
    job.busy_seconds, job.peak_gpu_mib = 2.5, 300
    assert take_measured([job, silent]) == [Measured(7, 2, 1, 2.5, 300)]
    assert take_measured([job, silent]) == []
    job.busy_seconds = 3.0
    assert take_measured([job, silent]) == [Measured(7, 2, 1, 3.0, 300)]
