"""Submitting, cancelling, refilling, explaining: against the world in memory."""

from datetime import timedelta

import pytest

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuRecord, NodeState
from orchestrator.domain.job import JobState, Resources
from orchestrator.domain.request import CommandRequest, TaskRequest
from orchestrator.errors import (
    IdempotencyConflict,
    InvalidJob,
    StoreUnavailable,
    UnknownJob,
    UnknownQueue,
    UnknownTask,
    UnsatisfiableRequest,
)
from orchestrator.ports import NodeRecord
from orchestrator.scheduling.plan import keeper
from orchestrator.scheduling.snapshot import Candidate, GpuView, HostView, QueueView, Snapshot
from orchestrator.services.cancel import CancelService
from orchestrator.services.feasibility import REFRESH_SECONDS, require_satisfiable
from orchestrator.services.refill import Refill
from orchestrator.services.submit import WAKE_SECONDS, SubmitService
from orchestrator.services.why import explain
from orchestrator.testing.fakes import MemoryWorld, memory_world

COMMAND = CommandRequest(argv=("true",))


@pytest.fixture
def world() -> MemoryWorld:
    return memory_world()


def node(name: str, *memories: int, health: GpuHealth = GpuHealth.HEALTHY, live: bool = True) -> NodeRecord:
    cards = tuple(
        GpuRecord(Gpu(f"{name}-{i}", i, "Sim", mib, "1"), name, health, 0, 0, None, None)
        for i, mib in enumerate(memories)
    )
    now = memory_world().clock.now()
    return NodeRecord(name, "boot", f"celery@{name}", 1, NodeState.UP, ("gpu",), 2, 0, now, live, cards)


def host(name: str, gpus: int, busy: int = 0) -> HostView:
    cards = tuple(GpuView(f"{name}-{i}", i, "Sim", 1000, 0, i < busy, healthy=True) for i in range(gpus))
    return HostView(name, True, cards, frozenset({"gpu"}), 2, 0, 0)


def candidate(seq: int, gpus: int = 1) -> Candidate:
    return Candidate(seq, "gpu", "default", 5, Resources(gpus))


class TestSubmit:
    def test_an_admitted_job_is_in_its_stream_when_submit_returns(self, world: MemoryWorld) -> None:
        (job,) = SubmitService(world.runtime).submit([COMMAND])

        assert job.state is JobState.QUEUED
        assert [entry.job_id for entry in world.streams.entries.values()] == [job.id]
        assert world.wake.published == []

    def test_a_redis_that_is_down_does_not_refuse_a_job(self, world: MemoryWorld) -> None:
        """Stored is acknowledged; what could not be published is counted and left to the leader."""
        world.streams.down = world.wake.down = True
        service = SubmitService(world.runtime)
        world.jobs.window = 1
        jobs = service.submit([COMMAND, COMMAND])

        assert [job.created for job in jobs] == [True, True]
        assert service.unpublished == 1

    def test_a_database_that_is_down_refuses(self, world: MemoryWorld) -> None:
        world.jobs.down = True
        with pytest.raises(StoreUnavailable):
            SubmitService(world.runtime).submit([COMMAND])

    def test_the_leader_is_woken_for_what_stays_waiting_but_not_for_each(self, world: MemoryWorld) -> None:
        """A burst of submits is one wake-up; a repeated one is none."""
        world.jobs.window = 0
        service = SubmitService(world.runtime)
        request = CommandRequest(argv=("true",), key="k")
        for _ in range(3):
            service.submit([COMMAND])
        assert world.wake.published == [("place", {})]

        world.clock.advance(WAKE_SECONDS)
        service.submit([request])
        world.clock.advance(WAKE_SECONDS)
        service.submit([request])
        assert len(world.wake.published) == 2

    def test_all_or_none(self, world: MemoryWorld) -> None:
        """One bad request refuses its whole list."""
        with pytest.raises(InvalidJob):
            SubmitService(world.runtime).submit([COMMAND, CommandRequest(argv=())])
        with pytest.raises(UnknownQueue):
            SubmitService(world.runtime).submit([COMMAND, CommandRequest(argv=("true",), queue="nowhere")])
        assert world.jobs.jobs == {}

    def test_the_queues_of_the_settings_exist_from_the_start(self, world: MemoryWorld) -> None:
        """Also in a database that no worker has seen."""
        world.jobs.queue_names.clear()
        (job,) = SubmitService(world.runtime).submit([CommandRequest(argv=("true",), queue="preloads")])

        assert job.created
        assert world.jobs.queue_names == {"gpu", "preloads"}

    def test_an_unknown_task_is_refused_where_tasks_are_known(self, world: MemoryWorld) -> None:
        service = SubmitService(world.runtime, known_tasks=["mine.train"])
        service.submit([TaskRequest(task="mine.train"), COMMAND])
        with pytest.raises(UnknownTask):
            service.submit([TaskRequest(task="mine.other")])

    def test_a_start_time_that_has_passed_is_now(self, world: MemoryWorld) -> None:
        past, future = (world.clock.now() + timedelta(hours=hours) for hours in (-1, 1))
        jobs = SubmitService(world.runtime).submit([CommandRequest(argv=("true",), run_at=at) for at in (past, future)])
        assert [job.state for job in jobs] == [JobState.QUEUED, JobState.SCHEDULED]

    def test_a_key_with_another_request_is_a_conflict(self, world: MemoryWorld) -> None:
        service = SubmitService(world.runtime)
        service.submit([CommandRequest(argv=("true",), key="k")])
        with pytest.raises(IdempotencyConflict):
            service.submit([CommandRequest(argv=("false",), key="k")])


class TestFeasibility:
    def test_the_closest_host_is_named(self) -> None:
        hosts = [node("small", 1000), node("big", 1000, 2000)]
        with pytest.raises(UnsatisfiableRequest, match="big, has 2"):
            require_satisfiable(Resources(3), hosts)
        with pytest.raises(UnsatisfiableRequest, match="big, has 2000 MiB"):
            require_satisfiable(Resources(1, 2001), hosts)

    def test_what_may_come_back_counts(self) -> None:
        """Lost hosts and sick GPUs do, GPUs that are gone do not; without any host nothing is known."""
        require_satisfiable(Resources(1), [node("lost", 1000, live=False)])
        require_satisfiable(Resources(1), [node("sick", 1000, health=GpuHealth.QUARANTINED)])
        require_satisfiable(Resources(99), [])
        require_satisfiable(Resources(0), [node("cpu")])
        with pytest.raises(UnsatisfiableRequest):
            require_satisfiable(Resources(1), [node("gone", 1000, health=GpuHealth.LOST)])

    def test_hosts_are_read_seldom_but_never_refused_from_memory(self, world: MemoryWorld) -> None:
        """A host that has just come is seen by the request that needs it."""
        service = SubmitService(world.runtime)
        request = CommandRequest(argv=("true",), gpus=2)
        world.cluster.hosts = [node("a", 1000, 1000)]
        for _ in range(5):
            service.submit([request])
        assert world.cluster.reads == 1

        world.cluster.hosts.append(node("b", *[1000] * 8))
        service.submit([CommandRequest(argv=("true",), gpus=8)])
        assert world.cluster.reads == 2
        world.clock.advance(REFRESH_SECONDS)
        service.submit([request])
        assert world.cluster.reads == 3


class TestCancel:
    def test_a_worker_is_told_at_once(self, world: MemoryWorld) -> None:
        (job,) = SubmitService(world.runtime).submit([COMMAND])
        world.jobs.change(job.id, state=JobState.RUNNING)
        outcome = CancelService(world.runtime).cancel(job.id, by="ada", reason="wrong data")

        assert (outcome.cancelled, outcome.stopping) == (False, True)
        assert world.wake.published == [("cancel", {"job_id": job.id})]

    def test_cancelling_twice_changes_nothing(self, world: MemoryWorld) -> None:
        service = CancelService(world.runtime)
        (job,) = SubmitService(world.runtime).submit([COMMAND])
        first, second = service.cancel(job.id, by="ada"), service.cancel(job.id, by="bob")

        assert first.cancelled
        assert second.cancelled
        assert second.job.reason == first.job.reason

    def test_a_lost_message_does_not_lose_the_cancellation(self, world: MemoryWorld) -> None:
        (job,) = SubmitService(world.runtime).submit([COMMAND])
        world.wake.down = True
        assert CancelService(world.runtime).cancel(job.id, by="ada").cancelled

    def test_an_unknown_job_is_an_error(self, world: MemoryWorld) -> None:
        with pytest.raises(UnknownJob):
            CancelService(world.runtime).cancel("x", by="ada")


class TestRefill:
    def test_a_host_takes_what_fits_in_order(self, world: MemoryWorld) -> None:
        jobs = (candidate(1, 4), candidate(2, 1), candidate(3, 1))
        world.admission.picture = Snapshot((host("a", 2), host("b", 4)), (), jobs, (QueueView("gpu", paused=False),))

        assert Refill(world.runtime, "a")(5) == 2
        assert world.admission.placements == [(2, "a"), (3, "a")]
        assert {entry.node for entry in world.streams.entries.values()} == {"a"}

    def test_it_is_cheap_when_nothing_waits(self, world: MemoryWorld) -> None:
        """One read, nothing else."""
        assert Refill(world.runtime, "a")(5) == 0
        assert Refill(world.runtime, "a")(0) == 0
        assert world.cluster.reads == 0
        assert world.admission.calls == []

    def test_only_the_keeper_keeps_gpus_for_a_gang(self, world: MemoryWorld) -> None:
        """Other hosts that could take the gang let smaller jobs pass."""
        names = ["a", "b", "c"]
        world.cluster.hosts = [node(name, *[1000] * 4) for name in names]
        kept = keeper(1, names)
        for name in names:
            jobs = (candidate(1, 4), candidate(2), candidate(3))
            world.admission.picture = Snapshot((host(name, 4, busy=2),), (), jobs, (QueueView("gpu", paused=False),))
            assert Refill(world.runtime, name)(4) == (0 if name == kept else 2)  # 2 GPUs and 2 CPU slots are idle


class TestWhy:
    def test_an_unknown_job_is_an_error(self, world: MemoryWorld) -> None:
        with pytest.raises(UnknownJob):
            explain(world.runtime, "x")

    def test_a_waiting_job_is_explained_by_the_plan(self, world: MemoryWorld) -> None:
        world.jobs.window = 0
        (job,) = SubmitService(world.runtime).submit([CommandRequest(argv=("true",), gpus=2)])
        jobs = (candidate(job.seq, 2),)
        world.admission.picture = Snapshot((host("a", 2, busy=1),), (), jobs, (QueueView("gpu", paused=False),))
        first, *rest = explain(world.runtime, job.id)

        assert first.code == "gpus_busy"
        assert "1 of 2 on a" in first.words
        assert [reason.code for reason in rest] == ["no_leader"]

    def test_a_job_that_fits_is_about_to_be_placed(self, world: MemoryWorld) -> None:
        world.jobs.window = 0
        world.leadership.campaign("one", ttl=timedelta(seconds=9))
        (job,) = SubmitService(world.runtime).submit([COMMAND])
        jobs = (candidate(job.seq, 0),)
        world.admission.picture = Snapshot((host("a", 2),), (), jobs, (QueueView("gpu", paused=False),))

        assert [reason.code for reason in explain(world.runtime, job.id)] == ["next"]

    @pytest.mark.parametrize(
        ("changes", "code", "words"),
        [
            ({"state": JobState.RUNNING, "node": "a", "attempt": 2}, "running", "on a, attempt 2"),
            ({"state": JobState.FAILED, "reason": "exit code 3"}, "failed", "exit code 3"),
            ({"state": JobState.QUEUED, "node": "a"}, "host_silent", "not heard of"),
            ({"state": JobState.QUEUED}, "no_consumer", "no live worker"),
            ({"state": JobState.SCHEDULED, "attempt": 1, "reason": "it was lost"}, "scheduled", "it was lost"),
        ],
    )
    def test_every_state_has_its_words(
        self, world: MemoryWorld, changes: dict[str, object], code: str, words: str
    ) -> None:
        (job,) = SubmitService(world.runtime).submit([COMMAND])
        world.jobs.change(job.id, **changes)
        reason = explain(world.runtime, job.id)[0]

        assert reason.code == code
        assert words in reason.words
