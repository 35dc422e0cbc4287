"""Which jobs hear that their GPUs do nothing, and when."""

from dataclasses import replace

from orchestrator.domain.gpu_memory import Verdict
from orchestrator.worker.idleness import Holder, IdlePolicy, IdleWatch

POLICY = IdlePolicy(warn_seconds=10, end_seconds=30)
JOB = Holder("job", ("G0", "G1"), begun_at=100)


def look(watch: IdleWatch, now: float, *readings: int | None, holder: Holder = JOB) -> list[tuple[Verdict, float]]:
    utilization = dict(zip(holder.gpus, readings, strict=False))
    return [(verdict, idle) for _key, verdict, idle in watch.look(now, [holder], utilization)]


def test_a_job_is_warned_once_and_ended_once() -> None:
    watch = IdleWatch(POLICY)
    told = [look(watch, now, 0, 0) for now in (101, 109, 110, 111, 129, 131, 140)]
    assert told == [[], [], [(Verdict.WARN, 10)], [], [], [(Verdict.END, 31)], []]


def test_it_counts_from_the_jobs_start_also_if_nothing_was_read_before() -> None:
    assert look(IdleWatch(POLICY), 140, 0, 0) == [(Verdict.WARN, 40), (Verdict.END, 40)]


def test_work_of_one_of_its_gpus_starts_the_count_anew() -> None:
    watch = IdleWatch(POLICY)
    told = [look(watch, now, 0, load) for now, load in ((110, 0), (111, 3), (120, 0), (121, 0), (141, 0))]
    assert told == [[(Verdict.WARN, 10)], [], [], [(Verdict.WARN, 10)], [(Verdict.END, 30)]]


def test_a_gpu_that_tells_nothing_counts_as_busy() -> None:
    watch = IdleWatch(POLICY)
    assert [look(watch, now, 0, None) for now in (110, 140)] == [[], []]
    assert [look(watch, now, 0) for now in (150, 190)] == [[], []], "nor does one that is not read"


def test_a_job_without_gpus_is_never_idle_to_them() -> None:
    watch = IdleWatch(IdlePolicy(0, 0))
    assert look(watch, 10_000, 0, 0) == []


def test_the_next_job_begins_with_a_clean_slate() -> None:
    watch = IdleWatch(POLICY)
    look(watch, 112, 0, 0)
    assert watch.look(113, [], {}) == []
    assert look(watch, 114, 0, 0, holder=Holder("job", ("G0", "G1"), begun_at=113)) == []


def test_a_gpu_that_hardly_works_does_nothing() -> None:
    """As much as the operator says."""
    watch = IdleWatch(IdlePolicy(10, 30, idle_percent=5))
    assert look(watch, 111, 5, 0) == [(Verdict.WARN, 11)]
    assert look(watch, 112, 6, 0) == []
    assert look(watch, 121, 5, 5) == []
    assert look(watch, 122, 5, 5) == [(Verdict.WARN, 10)]


def test_the_time_to_load_does_not_count() -> None:
    """From the start of the job on, or when it says that it loads."""
    watch = IdleWatch(IdlePolicy(10, 30, grace_seconds=20))
    assert [look(watch, now, 0, 0) for now in (119, 129, 130)] == [[], [], [(Verdict.WARN, 10)]]

    loading = replace(JOB, is_loading=True)
    watch = IdleWatch(POLICY)
    assert [look(watch, now, 0, 0, holder=loading) for now in (110, 500)] == [[], []]
    assert [look(watch, now, 0, 0) for now in (509, 510)] == [[], [(Verdict.WARN, 10)]]
