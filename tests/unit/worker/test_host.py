"""The host's account of GPUs and lines."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuOrder, GpuSample
from orchestrator.domain.gpu_memory import ForeignUse
from orchestrator.domain.job import JobKind, LeaseMode, Resources
from orchestrator.domain.lease import PoolMember
from orchestrator.domain.pool import Leave
from orchestrator.domain.wants import Wants
from orchestrator.worker.host import Host, Line, Shape, WaitingJob
from orchestrator.worker.run_times import RunTimes

GPU_MIB = 1000


def sample(index: int, health: GpuHealth = GpuHealth.HEALTHY) -> GpuSample:
    return GpuSample(Gpu(f"GPU-{index}", index, "Sim", GPU_MIB, "1"), 0, health, (), None, None, None)


def make_host(gpus: int = 4, *, cpu_slots: int = 2, run_seconds: float | None = None) -> Host:
    run_times = RunTimes(look_ahead_seconds=0.5, most_ahead=64)
    if run_seconds is not None:
        run_times.note("task", run_seconds)
    host = Host(cpu_slots=cpu_slots, run_times=run_times)
    host.update_gpus(sample(index) for index in range(gpus))
    return host


def waiting(
    seq: int,
    gpus: int = 1,
    *,
    mib: int | None = None,
    priority: int = 5,
    kind: JobKind = JobKind.TASK,
    tenant: str = "a",
) -> WaitingJob:
    return WaitingJob(seq, f"job-{seq}", Shape(Resources(gpus, mib), tenant, kind, "task", priority), seq)


def chosen(host: Host) -> dict[int, Line]:
    return {job.seq: line for line, jobs in host.choose() for job in jobs}


def test_a_large_job_that_does_not_fit_lets_a_smaller_one_pass() -> None:
    host = make_host(4)
    for job in (waiting(1, 3), waiting(2, 2), waiting(3, 1), waiting(4, 0)):
        host.add_waiting(job)

    assert set(chosen(host)) == {1, 3, 4}
    assert host.waiting_count == 1


def test_a_more_urgent_job_goes_first() -> None:
    host = make_host(1)
    host.add_waiting(waiting(1, priority=2))
    host.add_waiting(waiting(2, priority=7))

    assert set(chosen(host)) == {2}


def test_short_jobs_line_up_behind_a_running_one_of_their_shape() -> None:
    host = make_host(1, run_seconds=0.01)
    for seq in range(1, 21):
        host.add_waiting(waiting(seq))
    first = chosen(host)
    line = first[1]
    line.lease_id = 7

    assert set(first) == set(range(1, 21))
    assert {id(each) for each in first.values()} == {id(line)}


def test_no_job_lines_up_while_the_first_claim_is_on_its_way() -> None:
    host = make_host(1, run_seconds=0.01)
    host.add_waiting(waiting(1))
    line = chosen(host)[1]
    line.claiming = True
    host.add_waiting(waiting(2))

    assert chosen(host) == {}


@pytest.mark.parametrize("run_seconds", [None, 0.6], ids=["never seen", "longer than the look-ahead"])
def test_jobs_of_unknown_or_long_tasks_do_not_line_up(run_seconds: float | None) -> None:
    host = make_host(1, run_seconds=run_seconds)
    host.add_waiting(waiting(1))
    host.add_waiting(waiting(2))

    assert set(chosen(host)) == {1}


def test_nothing_lines_up_while_an_earlier_job_waits_for_gpus() -> None:
    """A line that keeps growing would keep the gang's GPUs from ever becoming free."""
    host = make_host(2, run_seconds=0.001)
    host.add_waiting(waiting(1))
    chosen(host)[1].lease_id = 1
    host.add_waiting(waiting(2, 2))
    host.add_waiting(waiting(3, 2))
    host.add_waiting(waiting(4, 1))
    host.add_waiting(waiting(5, 1))

    assert set(chosen(host)) == {4}


def test_commands_and_other_tenants_do_not_share_a_line() -> None:
    host = make_host(1, run_seconds=0.001)
    host.add_waiting(waiting(1))
    chosen(host)[1].lease_id = 1
    host.add_waiting(waiting(2, kind=JobKind.COMMAND))
    host.add_waiting(waiting(3, tenant="b"))

    assert chosen(host) == {}


def test_closing_a_line_frees_its_gpus() -> None:
    host = make_host(2)
    host.add_waiting(waiting(1, 2))
    line = chosen(host)[1]
    assert host.free_gpus() == 0
    host.take_out(line, 1)
    host.close(line)

    assert host.free_gpus() == 2


def test_shared_jobs_fill_the_fullest_gpu_that_fits() -> None:
    host = make_host(2)
    for seq, mib in ((1, 600), (2, 300), (3, 500)):
        host.add_waiting(waiting(seq, mib=mib))
    lines = chosen(host)

    assert lines[1].grant.gpus == lines[2].grant.gpus != lines[3].grant.gpus


def test_what_is_leased_without_a_job_is_left_alone() -> None:
    """As a whole, or the part of it that is; it is granted again once that has ended."""
    host = make_host(gpus=2)
    uuids = [sample(index).gpu.uuid for index in range(2)]
    host.set_lent({uuids[0]: GpuOrder(lent=True), uuids[1]: GpuOrder(lent_mib=sample(1).gpu.memory_mib // 2)})
    assert host.free_gpus() == 0
    host.add_waiting(waiting(1))
    assert chosen(host) == {}
    host.set_lent({})
    assert host.free_gpus() == 2
    assert chosen(host)[1].grant.gpus == (uuids[0],)


@pytest.mark.parametrize("health", [GpuHealth.SUSPECT, GpuHealth.QUARANTINED, GpuHealth.LOST])
def test_an_unhealthy_gpu_is_not_granted(health: GpuHealth) -> None:
    host = make_host(1)
    host.update_gpus([sample(0, health)])
    host.add_waiting(waiting(1))

    assert chosen(host) == {}
    assert host.free_gpus() == 0


def test_an_instance_is_granted_to_who_asks_for_its_profile_and_to_nobody_else() -> None:
    """F7: neither a whole GPU nor a share is made of one, even if nothing else is free."""
    host = make_host(0)
    profiles = (None, "3g.40gb", "2g.20gb", "2g.20gb")
    cards = [replace(sample(index).gpu, mig_profile=profile) for index, profile in enumerate(profiles)]
    host.update_gpus(replace(sample(index), gpu=card) for index, card in enumerate(cards))
    wanted = ("3g.40gb", "2g.20gb", "2g.20gb", "2g.20gb")
    for seq, profile in enumerate(wanted):
        shape = Shape(Resources(1, wants=Wants(mig_profile=profile)), "a", JobKind.COMMAND, "run", 5)
        host.add_waiting(WaitingJob(seq, f"job-{seq}", shape, seq))
    for job in (waiting(10, 2), waiting(11), waiting(12), waiting(13, mib=100)):
        host.add_waiting(job)

    granted = {seq: line.grant.gpus for seq, line in chosen(host).items()}
    assert granted == {0: ("GPU-1",), 1: ("GPU-2",), 2: ("GPU-3",), 11: ("GPU-0",)}


@pytest.mark.parametrize(("free", "served_by"), [((499, 499), None), ((400, 500), "GPU-1"), ((300, 300), None)])
def test_a_share_is_never_made_of_two_gpus(free: tuple[int, int], served_by: str | None) -> None:
    """F3: half a GPU is served by one that has so much left, or waits."""
    host = make_host(2)
    host.set_lent({f"GPU-{index}": GpuOrder(lent_mib=GPU_MIB - mib) for index, mib in enumerate(free)})
    host.add_waiting(waiting(1, mib=GPU_MIB // 2))

    assert [line.grant.gpus for line in chosen(host).values()] == ([] if served_by is None else [(served_by,)])


def test_what_is_used_without_a_lease_is_not_granted() -> None:
    """A share gets what is left beside it, and a GPU that others use much of is not granted as a whole."""
    host = make_host(1)
    host.update_gpus([replace(sample(0), foreign=ForeignUse(600, (), clean=False))])
    for job in (waiting(1), waiting(2, mib=500), waiting(3, mib=400)):
        host.add_waiting(job)

    assert set(chosen(host)) == {3}
    assert host.free_gpus() == 0
    host.close(next(iter(host.lines.values())))
    host.update_gpus([replace(sample(0), foreign=ForeignUse(600, (), clean=True))])
    assert set(chosen(host)) == {1}


def test_headroom_is_not_lent_out_in_shares() -> None:
    host = Host(cpu_slots=1, run_times=RunTimes(look_ahead_seconds=0.5, most_ahead=64), headroom_mib=100)
    host.update_gpus([sample(0)])
    for job in (waiting(1, mib=500), waiting(2, mib=401), waiting(3, mib=400)):
        host.add_waiting(job)

    assert set(chosen(host)) == {1, 3}


def test_what_the_policy_keeps_is_not_lent_out_either() -> None:
    """The larger of the two counts, and only in shares."""
    host = Host(cpu_slots=1, run_times=RunTimes(look_ahead_seconds=0.5, most_ahead=64), headroom_mib=100)
    host.update_gpus([sample(0)])
    host.set_lent({"GPU-0": GpuOrder(headroom_mib=500)})
    for job in (waiting(1, mib=501), waiting(2, mib=500)):
        host.add_waiting(job)
    assert set(chosen(host)) == {2}
    host.set_lent({"GPU-0": GpuOrder(headroom_mib=50)})
    assert set(chosen(host)) == set()
    host.close(next(iter(host.lines.values())))
    assert set(chosen(host)) == {1}


def loading(seq: int, pool: str = "chat") -> WaitingJob:
    """Return a job that makes a runner of a pool."""
    return WaitingJob(seq, f"job-{seq}", Shape(LOADS, "a", JobKind.TASK, "load", 5), seq)


def asking(seq: int, model: str = "llama", tenant: str = "a") -> WaitingJob:
    """Return a job that wants a model."""
    wants = Wants(model=model)
    return WaitingJob(seq, f"job-{seq}", Shape(Resources(1, None, wants), tenant, JobKind.TASK, "ask", 5), seq)


LOADS = Resources(1, None, Wants(pool="chat", generation=1))


def with_pool(gpus: int = 2, *, tenant: str | None = None, load_seconds: float = 10.0, asked: float = 1.0) -> Host:
    """Return a host on which a runner of a pool is ready."""
    host = make_host(gpus)
    host._run_times.note("ask", asked)
    host.add_waiting(loading(900))
    line = chosen(host)[900]
    host.take_out(line, 900)
    assert line.pool is not None
    line.lease_id, line.pool.member = 7, PoolMember(7, "chat", "llama", tenant, load_seconds)
    return host


def test_a_job_goes_to_the_runner_that_has_its_model_and_waits_there_while_a_load_takes_longer() -> None:
    """By the pool's name or the model's. Others open lines of their own, and so does a job whose wait is too long."""
    host = with_pool(3)
    assert host.free_pool_lines() == 1
    for job in (asking(1), asking(2, "chat"), asking(3, "other"), waiting(4)):
        host.add_waiting(job)
    lines = chosen(host)
    assert {seq: line.lease_id for seq, line in lines.items()} == {1: 7, 3: None, 4: None}
    assert host.free_pool_lines() == 0

    patient, hurried = with_pool(3), with_pool(3, load_seconds=0.5)
    for host, count in ((patient, 1), (hurried, 3)):
        for seq in range(1, 4):
            host.add_waiting(asking(seq))
        assert len(chosen(host)) == count


def test_short_jobs_line_up_behind_the_model_whoever_asks() -> None:
    """But for a tenant that the pool does not serve, or once its runner is to leave."""
    host = with_pool(1, asked=0.01)
    for seq, tenant in enumerate("abc"):
        host.add_waiting(asking(seq, tenant=tenant))
    lines = chosen(host)
    assert {line.lease_id for line in lines.values()} == {7}
    assert len(lines) == 3
    for seq, line in lines.items():
        host.take_out(line, seq)
    (line,) = host.lines.values()
    assert line.ahead_seconds == 0.0

    strict = with_pool(1, tenant="b", asked=0.01)
    strict.add_waiting(asking(1, tenant="a"))
    strict.add_waiting(asking(2, tenant="b"))
    assert set(chosen(strict)) == {2}

    leaving = with_pool(1, asked=0.01)
    (line,) = leaving.lines.values()
    assert line.pool is not None
    line.pool.leave = Leave.DRAIN
    leaving.add_waiting(asking(1))
    assert chosen(leaving) == {}


def test_loads_never_share_a_runner() -> None:
    host = make_host(1, run_seconds=0.001)
    host._run_times.note("load", 0.001)
    for seq in (1, 2):
        host.add_waiting(loading(seq))
    assert set(chosen(host)) == {1}


jobs = st.lists(
    st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(1, GPU_MIB)), st.integers(0, 9)), max_size=40
)


@given(jobs=jobs, gpus=st.integers(0, 4), closings=st.lists(st.integers(0, 20), max_size=20))
def test_no_gpu_is_ever_given_out_beyond_its_capacity(
    jobs: list[tuple[int, int | None, int]], gpus: int, closings: list[int]
) -> None:
    """Whatever is delivered and however lines end, exclusive leases never meet and shares fit the card."""
    host = make_host(gpus)
    for seq, (count, mib, priority) in enumerate(jobs, start=1):
        host.add_waiting(waiting(seq, 1 if mib else count, mib=mib, priority=priority))
    for closing in [*closings, None]:
        host.choose()
        exclusive = [
            uuid for line in host.lines.values() if line.grant.mode is LeaseMode.EXCLUSIVE for uuid in line.grant.gpus
        ]
        shares: dict[str, int] = {}
        for line in host.lines.values():
            if line.grant.mode is LeaseMode.SHARED:
                shares[line.grant.gpus[0]] = shares.get(line.grant.gpus[0], 0) + (line.grant.memory_mib or 0)
        assert len(exclusive) == len(set(exclusive))
        assert all(total <= GPU_MIB for total in shares.values())
        assert not set(exclusive) & shares.keys()
        lines = list(host.lines.values())
        if closing is not None and closing < len(lines):
            lines[closing].jobs.clear()
            host.close(lines[closing])
