"""Worker pools with real workers: models that stay loaded, and jobs that run where they are."""

import os
import signal
from datetime import timedelta
from itertools import count

from orchestrator.domain.ids import uuid7
from orchestrator.domain.job import JobState
from orchestrator.domain.pool import Leave, PoolState
from orchestrator.domain.request import TaskRequest, new_job
from orchestrator.ports import JobFilter, SubmitOutcome
from orchestrator.scheduling.pools import PATIENCE
from orchestrator.services.submit import limits_of
from orchestrator.services.why import explain
from tests.integration.pools.conftest import QUEUES, Pools, serving
from tests.support.waiting import wait_for


def test_jobs_run_in_the_runner_that_has_their_model_under_its_lease(mariadb_pools: Pools) -> None:
    """By the pool's name and by the model's; the load is a job of its own, and no job loads the model again."""
    pools = mariadb_pools
    pools.worker("a")
    pools.cluster.beat()
    pools.start("chat", model="llama:7b")
    standing = pools.wait_for_runners("chat", 1)
    (lease,) = serving(standing)
    asked = [pools.ask("chat"), pools.ask("llama:7b"), *(pools.ask("chat") for _ in range(20))]
    results = [job.result for job in pools.cluster.wait_for_end(asked)]

    assert {(one["model"], one["was_loaded"], one["token"]) for one in results} == {("llama:7b", True, lease)}
    assert len({one["pid"] for one in results}) == 1
    standing = pools.wait("chat", lambda seen: seen.runners[0].jobs_done == len(asked))
    assert standing.runners[0].running == 0
    pools.wait("chat", lambda seen: seen.pool.state is PoolState.READY)
    (load,) = [job for job in pools.cluster.runtime.jobs.list_jobs(JobFilter()) if job.task == "p.load"]
    assert (load.state, load.queue, load.name) == (JobState.SUCCEEDED, "preloads", "pool:chat")


def test_a_swap_under_load_loses_no_request(pools: Pools) -> None:
    """Every request is answered once, by the old model or the new one; the GPU is held by one runner at a time."""
    pools.worker("a", gpus=2)
    pools.cluster.beat()
    pools.start("chat", model="old", least=2, arguments={"seconds": 0.3})
    pools.wait_for_runners("chat", 2)
    asked = []
    swapped = False
    for number in count():
        asked.append(pools.ask("chat", 0.02))
        pools.cluster.wait_for_end(asked[-20:-19])  # no more than about twenty wait at once
        standing = pools.standing("chat")
        models = {runner.model for runner in standing.runners if runner.ended_at is None}
        if number == 20:
            pools.change("chat", model="new")
            swapped = True
        if swapped and models == {"new"} and len(serving(standing)) == 2:
            break
        assert number < 3000
    asked += [pools.ask("chat") for _ in range(5)]
    ended = pools.cluster.wait_for_end(asked)

    assert {(job.state, job.attempt) for job in ended} == {(JobState.SUCCEEDED, 1)}
    assert {job.result["model"] for job in ended} == {"old", "new"}
    assert {job.result["model"] for job in ended[-5:]} == {"new"}
    assert pools.standing("chat").pool.generation == 2


def test_a_model_that_does_not_load_leaves_the_old_one_serving(pools: Pools) -> None:
    """The pool says why, and tries again after a pause; as soon as it can be loaded, the swap goes on."""
    broken = pools.cluster.home / "broken"
    pools.worker("a", gpus=2)
    pools.cluster.beat()
    pools.start("chat", model="old", least=2)
    old = serving(pools.wait_for_runners("chat", 2))
    broken.touch()
    pools.change("chat", model="new", arguments={"broken": str(broken)})
    standing = pools.wait("chat", lambda seen: seen.pool.failures > 0)

    assert standing.pool.reason is not None
    assert "the weights of new cannot be read" in standing.pool.reason
    (left,) = set(serving(standing)) & set(old)
    asked = [pools.ask("chat") for _ in range(3)]
    assert {(job.result["model"], job.result["token"]) for job in pools.cluster.wait_for_end(asked)} == {("old", left)}
    broken.unlink()
    pools.wait("chat", lambda seen: {one.model for one in seen.runners} == {"new"} and len(serving(seen)) == 2)


def test_a_pool_outlives_its_runner_its_worker_beat_and_redis(pools: Pools) -> None:
    """Whatever dies, as many runners are there again; the jobs that ran are run again."""
    worker = pools.worker("a")
    beat = pools.cluster.beat()
    pools.start("chat", model="m")
    (lease,) = serving(pools.wait_for_runners("chat", 1))

    def another() -> int:
        nonlocal lease
        standing = pools.wait("chat", lambda seen: bool(serving(seen)) and serving(seen) != [lease])
        (lease,) = serving(standing)
        return lease

    (pid,) = {job.result["pid"] for job in pools.cluster.wait_for_end([pools.ask("chat")])}
    begun = pools.cluster.home / "begun"
    again = pools.cluster.task("p.ask", 1.0, str(begun), model="chat")
    wait_for(begun.exists, within_seconds=20, describe=pools.cluster.logs)
    os.kill(pid, signal.SIGKILL)
    assert another() not in (None, 0)
    (job,) = pools.cluster.wait_for_end([again])
    assert (job.state, job.attempt, job.result["pid"] != pid) == (JobState.SUCCEEDED, 2, True)

    pools.cluster.runtime.publisher._client.flushall()  # type: ignore[attr-defined]
    assert pools.cluster.wait_for_end([pools.ask("chat")])[0].result["token"] == lease

    beat.stop(signal.SIGKILL)
    worker.stop(signal.SIGKILL)
    pools.worker("a")
    pools.cluster.beat("another")
    another()
    assert pools.cluster.wait_for_end([pools.ask("chat")])[0].result["token"] == lease


def test_a_pool_grows_with_what_waits_and_shrinks_when_idle_or_when_others_wait(pools: Pools) -> None:
    """Up to its most; beyond its least, runners go when nothing is asked, at once if somebody waits for their GPUs."""
    pools.worker("a", gpus=3)
    pools.cluster.beat()
    pools.start("chat", model="m", least=1, most=3, idle_seconds=600.0, arguments={"seconds": 2.0})
    pools.wait_for_runners("chat", 1)
    asked = [pools.ask("chat", 0.4) for _ in range(30)]
    pools.wait_for_runners("chat", 3)
    ended = pools.cluster.wait_for_end(asked)
    assert len({job.result["pid"] for job in ended}) == 3

    other = pools.cluster.command("true", gpus=2)
    assert pools.cluster.wait_for_end([other])[0].state is JobState.SUCCEEDED
    assert len(serving(pools.standing("chat"))) == 1

    pools.change("chat", wanted=2, idle_seconds=1.0)
    pools.wait_for_runners("chat", 2)
    pools.wait_for_runners("chat", 1)


def test_of_two_pools_the_runner_that_is_loaded_again_fastest_makes_room(pools: Pools) -> None:
    """One job waits, so one leaves, on a GPU that the job can use; the other pool keeps its runner."""
    pools.worker("a", gpus=2)
    pools.cluster.beat()
    for name, seconds in (("cheap", 0.1), ("dear", 4.0)):
        pools.start(name, least=0, most=1, idle_seconds=600.0, arguments={"seconds": seconds})
        pools.change(name, wanted=1)
    for name in ("dear", "cheap"):
        pools.wait_for_runners(name, 1)
    pools.cluster.wait_for_end([pools.ask(name) for name in ("dear", "cheap") for _ in range(3)])

    def quiet() -> bool:
        now, standings = pools.cluster.runtime.pools.standings()
        used = [runner.used_at for standing in standings for runner in standing.runners if runner.jobs_done]
        return len(used) == 2 and now - max(used) > timedelta(seconds=PATIENCE)

    wait_for(quiet, within_seconds=20, describe=pools.cluster.logs)
    other = pools.cluster.command("true", gpus=1)
    assert pools.cluster.wait_for_end([other])[0].state is JobState.SUCCEEDED
    assert serving(pools.standing("cheap")) == []
    assert len(serving(pools.standing("dear"))) == 1


def test_runners_leave_when_their_jobs_are_done_or_at_once(pools: Pools) -> None:
    """A drained pool ends what it runs and gives its GPUs back; a stopped one gives its jobs to others."""
    pools.worker("a", gpus=2)
    pools.cluster.beat()
    pools.start("chat", model="m")
    (lease,) = serving(pools.wait_for_runners("chat", 1))
    job = pools.ask("chat", 8.0)
    pools.cluster.wait_for_state(job, JobState.RUNNING)
    pools.change("chat", leave=Leave.DRAIN)
    pools.wait("chat", lambda seen: all(one.leave is Leave.DRAIN for one in seen.runners))
    (ended,) = pools.cluster.wait_for_end([job])
    assert (ended.state, ended.attempt, ended.result["token"]) == (JobState.SUCCEEDED, 1, lease)
    pools.wait("chat", lambda seen: seen.pool.state is PoolState.STOPPED)
    whole = pools.cluster.command("true", gpus=2)
    assert pools.cluster.wait_for_end([whole])[0].state is JobState.SUCCEEDED

    pools.start("chat", model="m")
    (lease,) = serving(pools.wait_for_runners("chat", 1))
    job = pools.ask("chat", 3.0)
    pools.cluster.wait_for_state(job, JobState.RUNNING)
    pools.change("chat", leave=Leave.NOW)
    (ended,) = pools.cluster.wait_for_end([job])
    assert (ended.state, ended.max_attempts, ended.lost_count) == (JobState.SUCCEEDED, 1, 0)
    assert not ended.result["was_loaded"]
    assert ended.result["token"] > lease
    pools.wait("chat", lambda seen: seen.pool.state is PoolState.STOPPED)


def test_without_a_runner_a_job_loads_its_model_itself(pools: Pools) -> None:
    """So it does for a tenant that the pool does not serve; it waits when that takes less, and is told so."""
    pools.worker("a", gpus=2)
    pools.cluster.beat()
    (cold,) = pools.cluster.wait_for_end([pools.ask("m")])
    assert (cold.result["model"], cold.result["was_loaded"]) == ("m", False)
    pools.start("chat", model="m", tenant="blue", arguments={"seconds": 4.0})
    (lease,) = serving(pools.wait_for_runners("chat", 1))
    (stranger,) = pools.cluster.wait_for_end([pools.ask("chat", tenant="red")])
    assert stranger.result["token"] != lease

    def blue(seconds: float = 0.0) -> str:
        return pools.ask("chat", seconds, tenant="blue")

    first = [blue(0.6) for _ in range(2)]
    assert {job.result["token"] for job in pools.cluster.wait_for_end(first)} == {lease}
    many = [blue(0.6) for _ in range(5)]

    def words() -> str:
        return " ".join(str(explain(pools.cluster.runtime, job)) for job in many)

    wait_for(lambda: "a load takes" in words(), within_seconds=20, describe=pools.cluster.logs)
    assert {job.result["token"] for job in pools.cluster.wait_for_end(many)} == {lease}


def test_a_worker_that_stops_in_order_gives_its_runners_up(pools: Pools) -> None:
    """It does not wait for them, and another host has them at once."""
    first = pools.worker("a")
    pools.cluster.beat()
    pools.start("chat", model="m")
    pools.wait_for_runners("chat", 1)
    pools.worker("b")
    assert first.stop() == 0
    standing = pools.wait("chat", lambda seen: [one.node for one in seen.runners if one.ended_at is None] == ["b"])
    assert pools.cluster.wait_for_end([pools.ask("chat")])[0].result["token"] == standing.runners[-1].lease_id


def test_the_example_pool_answers(pools: Pools) -> None:
    """As docs/pools.md shows it: the loader and the task that come with the product."""
    pools.cluster.worker("a", gpus=1, queues=QUEUES)
    pools.cluster.beat()
    pools.start("sentiment", task="orchestrator.preload")
    (lease,) = serving(pools.wait_for_runners("sentiment", 1))
    texts = ("what a wonderful day", "a terrible, boring film")
    asked = [pools.cluster.task("examples.classify", text, model="sentiment", gpus=1) for text in texts]
    answers = [job.result for job in pools.cluster.wait_for_end(asked)]

    assert [answer["label"] for answer in answers] == ["positive", "negative"]
    assert {answer["was_loaded"] for answer in answers} == {True}
    assert {pools.cluster.runtime.jobs.attempts(job)[0].lease_id for job in asked} == {lease}


def test_a_job_granted_at_its_submit_runs_once_whatever_becomes_of_its_entry(pools: Pools) -> None:
    """Delivered twice it runs once; lost, it is given back by the host that never saw it, and runs after that."""
    pools.worker("a", lease_ttl=3, lease_margin=1)
    pools.cluster.beat()
    pools.start("chat", model="m")
    (lease,) = serving(pools.wait_for_runners("chat", 1))
    runtime = pools.cluster.runtime

    def store() -> SubmitOutcome:
        request = TaskRequest(task="p.ask", args=(0.0,), gpus=1, model="chat")
        made = new_job(request, id=uuid7(runtime.clock.now()), limits=limits_of(runtime.settings))
        outcome = runtime.jobs.submit([made])
        assert [job.state for job in outcome.jobs] == [JobState.RUNNING]
        assert [entry.headers["orchestrator"]["token"] for entry in outcome.entries] == [lease]
        return outcome

    twice = store()
    runtime.publisher.publish([*twice.entries, *twice.entries])
    (job,) = pools.cluster.wait_for_end([twice.jobs[0].id])
    assert (job.state, job.result["was_loaded"]) == (JobState.SUCCEEDED, True)

    lost = store()
    (job,) = pools.cluster.wait_for_end([lost.jobs[0].id], within_seconds=30)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 1)
    for submitted, told in ((twice, []), (lost, ["give_back", "admit", "claim"])):
        kinds = [event.kind for event in runtime.jobs.history(submitted.jobs[0].id)]
        assert kinds == ["submit", "admit", "claim", *told, "succeed"]
