"""Which jobs hear that their GPUs do nothing, and when."""

from dataclasses import replace

from orchestrator.domain.cluster import GpuProcess, GpuSample
from orchestrator.domain.gpu_memory import Verdict
from orchestrator.gpus.simulated import make_gpus
from orchestrator.worker.idleness import Holder, IdlePolicy, IdleWatch

POLICY = IdlePolicy(warn_seconds=10, end_seconds=30)
JOB = Holder("job", ("G0", "G1"), begun_at=100, runner="r1")
(CARD,) = make_gpus(1, owner="test")


def look(watch: IdleWatch, now: float, *readings: int | None, holder: Holder = JOB) -> list[tuple[Verdict, float]]:
    found = {uuid: replace(CARD, utilization_percent=load) for uuid, load in zip(holder.gpus, readings, strict=False)}
    return [(verdict, idle) for _key, verdict, idle in watch.look(now, [holder], found)]


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


def works(runners: tuple[str | None, ...], *, load: int | None = 90, tells: bool = True) -> bool:
    """Return whether the job's only GPU works for it, with processes of these runners on it."""
    processes = tuple(GpuProcess(100 + number, 300, runner=runner) for number, runner in enumerate(runners))
    reading: GpuSample = replace(CARD, utilization_percent=load, processes=processes, tells_processes=tells)
    holder = replace(JOB, gpus=("G0",))
    return not IdleWatch(POLICY).look(110, [holder], {"G0": reading})


def test_a_gpu_without_a_process_of_the_job_does_nothing_for_it() -> None:
    """Neither beside a busy neighbour, nor if its load is not told, as that of an instance."""
    assert not works(("r2", "r3"))
    assert not works(("self-test",))
    assert not works((), load=None)


def test_a_gpu_with_a_process_of_the_job_works_if_it_is_busy_or_does_not_tell() -> None:
    assert works(("r2", "r1"))
    assert works(("r1",), load=None)
    assert not works(("r1",), load=0)


def test_a_process_that_may_be_the_jobs_own_counts_as_such() -> None:
    """It belongs to no runner; and where processes are not told, any may be there."""
    assert works(("r2", None))
    assert works((), tells=False)
    assert works((), tells=False, load=None)
