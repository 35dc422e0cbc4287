"""Bad GPUs under real workers: only what they hold suffers."""

import sys
from dataclasses import replace
from pathlib import Path

from orchestrator.domain.cluster import GpuAction, GpuHealth, GpuSample, GpuStanding
from orchestrator.domain.job import JobState
from orchestrator.gpus.simulated import make_gpus, write_gpus
from tests.support.cluster import Cluster
from tests.support.waiting import wait_for

HERE = Path(__file__).parent
WAIT = (
    "import time, pathlib, sys; print('up', flush=True)\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)"
)


def cards(cluster: Cluster, count: int = 2) -> list[GpuSample]:
    """Describe the GPUs of host ``a``, so that they can be described otherwise later."""
    made = list(make_gpus(count, owner=f"{cluster.home}-a"))
    write_gpus(cluster.home / "a.toml", made)
    return made


def health(cluster: Cluster) -> dict[str, str]:
    return {gpu.gpu.uuid: gpu.health.value for node in cluster.runtime.cluster.nodes() for gpu in node.gpus}


def standing(cluster: Cluster, gpu: GpuSample) -> GpuStanding:
    return cluster.runtime.cluster.gpu_standings("a")[gpu.gpu.uuid]


def wait_for_health(cluster: Cluster, gpu: GpuSample, wanted: GpuHealth, strikes: int) -> None:
    wait_for(
        lambda: (standing(cluster, gpu).health, standing(cluster, gpu).strikes) == (wanted, strikes),
        within_seconds=20,
        describe=lambda: f"{standing(cluster, gpu)}\n{cluster.logs()}",
    )


def test_a_gpu_that_falls_off_the_bus_costs_its_own_job_an_attempt_and_nobody_else_anything(cluster: Cluster) -> None:
    """The one that is lost runs again on the GPU that is left, once its neighbour has ended."""
    first, second = cards(cluster)
    cluster.worker("a", lost_delay=0.1)
    cluster.beat()
    done = cluster.home / "done"
    ids = [cluster.command(sys.executable, "-c", WAIT, str(done), gpus=1) for _ in range(2)]
    for job_id in ids:
        cluster.wait_for_state(job_id, JobState.RUNNING)
    held = {cluster.runtime.jobs.attempts(job_id)[0].gpus[0]: job_id for job_id in ids}

    write_gpus(cluster.home / "a.toml", [second])
    victim, neighbour = held[first.gpu.uuid], held[second.gpu.uuid]
    wait_for(lambda: cluster.job(victim).lost_count == 1, within_seconds=20, describe=cluster.logs)
    assert cluster.job(neighbour).state is JobState.RUNNING
    done.touch()

    ended = {job.id: job for job in cluster.wait_for_end(ids)}
    assert {job.state for job in ended.values()} == {JobState.SUCCEEDED}
    assert (ended[victim].attempt, ended[neighbour].attempt) == (2, 1)
    assert "failed" in cluster.output(victim)
    wait_for(lambda: health(cluster)[first.gpu.uuid] == "lost", within_seconds=20, describe=cluster.logs)


def test_a_gpu_with_leftover_memory_is_quarantined_and_its_job_starts_on_another(cluster: Cluster) -> None:
    """F35: no attempt is counted, and the GPU comes back when its memory does."""
    first, second = cards(cluster)
    cluster.worker("a", gpu_clean_wait=0.3, gpu_quarantine=1)
    cluster.beat()
    write_gpus(cluster.home / "a.toml", [replace(first, used_mib=9000), second])
    wait_for(
        lambda: cluster.runtime.cluster.nodes()[0].gpus[0].used_mib == 9000, within_seconds=20, describe=cluster.logs
    )
    job = cluster.wait_for_state(cluster.command("true", gpus=1), JobState.SUCCEEDED)

    (attempt,) = cluster.runtime.jobs.attempts(job.id)
    assert (attempt.gpus, job.attempt, job.lost_count) == ((second.gpu.uuid,), 1, 0)

    def quarantined() -> bool:
        standing = cluster.runtime.cluster.gpu_standings("a")[first.gpu.uuid]
        told = "9000 MiB in use that no lease explains" in str(standing.reason)
        return told and (standing.health, standing.strikes) == (GpuHealth.QUARANTINED, 1)

    wait_for(quarantined, within_seconds=20, describe=cluster.logs)
    write_gpus(cluster.home / "a.toml", [first, second])
    wait_for(lambda: health(cluster)[first.gpu.uuid] == "healthy", within_seconds=20, describe=cluster.logs)


def test_a_job_that_leaves_memory_behind_is_named_and_the_next_one_starts_elsewhere(cluster: Cluster) -> None:
    """F35: by id and pid, in the quarantine's reason and in its event."""
    both = cards(cluster)
    for card in both:
        leaked = [replace(one, used_mib=9000) if one is card else one for one in both]
        write_gpus(cluster.home / f"{card.gpu.uuid}.toml", leaked)
    cluster.worker("a", gpu_clean_wait=0.3, gpu_quarantine=600)
    leak = 'cp "$CUDA_VISIBLE_DEVICES.toml" a.toml'
    leaker = cluster.wait_for_state(cluster.command("sh", "-c", leak, gpus=1), JobState.SUCCEEDED)
    (left,) = cluster.runtime.jobs.attempts(leaker.id)
    (gpu,) = left.gpus

    def is_named() -> bool:
        cluster.wait_for_state(cluster.command("true", gpus=1), JobState.SUCCEEDED)
        return cluster.runtime.cluster.gpu_standings("a")[gpu].health is GpuHealth.QUARANTINED

    wait_for(is_named, within_seconds=30, describe=cluster.logs)
    events = cluster.runtime.events.page(after=0, upto=None, job_seq=None, tenant=None, limit=1000)
    (told,) = [event.data for event in events if event.kind == "gpu_quarantined"]
    assert told["gpu"] == gpu
    assert told["reason"].startswith(f"last used by job {leaker.id} (pid {left.pid}): {gpu} has 9000 MiB in use")
    assert cluster.runtime.cluster.gpu_standings("a")[gpu].reason == told["reason"]
    both_ends = {cluster.runtime.jobs.attempts(event.job_id)[0].gpus for event in events if event.job_id}
    assert both_ends >= {(one.gpu.uuid,) for one in both}


def test_an_operator_keeps_a_gpu_out_and_lets_it_in_again(cluster: Cluster) -> None:
    """A job that needs both waits; what needs one goes on."""
    first, _second = cards(cluster)
    cluster.worker("a")
    cluster.beat()
    cluster.runtime.cluster.order_gpu(first.gpu.uuid, GpuAction.QUARANTINE, by="test")
    both = cluster.command("true", gpus=2)
    cluster.wait_for_state(cluster.command("true", gpus=1), JobState.SUCCEEDED)
    assert cluster.job(both).state is not JobState.SUCCEEDED

    cluster.runtime.cluster.order_gpu(first.gpu.uuid, GpuAction.RELEASE, by="test")
    cluster.wait_for_state(both, JobState.SUCCEEDED)


def test_a_gpu_that_appears_is_used_without_a_restart(cluster: Cluster) -> None:
    cards(cluster, 1)
    cluster.worker("a")
    cluster.beat()
    grown = list(make_gpus(3, owner=f"{cluster.home}-a"))
    write_gpus(cluster.home / "a.toml", grown)
    wait_for(lambda: len(health(cluster)) == 3, within_seconds=20, describe=cluster.logs)

    cluster.wait_for_state(cluster.command("true", gpus=3), JobState.SUCCEEDED)


def test_a_gpu_that_has_become_another_is_told_as_it_is_now(cluster: Cluster) -> None:
    """Its memory, its model and what it is near to, under the same uuid: a job that fits only now is taken and runs."""
    first, second = cards(cluster)
    cluster.worker("a")
    cluster.beat()
    larger = replace(first.gpu, memory_mib=2 * first.gpu.memory_mib, model="Simulated XL", numa=1)
    write_gpus(cluster.home / "a.toml", [replace(first, gpu=larger), second])
    wait_for(
        lambda: [gpu.gpu for gpu in cluster.runtime.cluster.nodes()[0].gpus] == [larger, second.gpu],
        within_seconds=20,
        describe=cluster.logs,
    )
    job = cluster.command("true", gpu_memory_mib=first.gpu.memory_mib + 1024)
    cluster.wait_for_state(job, JobState.SUCCEEDED)


def test_a_gpu_in_the_place_of_another_is_used_and_the_other_is_lost(cluster: Cluster) -> None:
    """A card was replaced, or split into instances, while the worker ran."""
    first, second = cards(cluster)
    cluster.worker("a")
    cluster.beat()
    parts = [
        replace(
            first,
            gpu=replace(first.gpu, uuid=f"MIG-{n}", index=n, memory_mib=10240, mig_profile="1g.10gb", parent_uuid=uuid),
        )
        for n, uuid in ((2, first.gpu.uuid), (3, first.gpu.uuid))
    ]
    write_gpus(cluster.home / "a.toml", [second, *parts])
    expected = {first.gpu.uuid: "lost", second.gpu.uuid: "healthy", "MIG-2": "healthy", "MIG-3": "healthy"}
    wait_for(lambda: health(cluster) == expected, within_seconds=20, describe=cluster.logs)
    job = cluster.command("true", gpus=2, mig="1g.10gb")
    cluster.wait_for_state(job, JobState.SUCCEEDED)
    assert set(cluster.runtime.jobs.attempts(job)[0].gpus) == {"MIG-2", "MIG-3"}


def test_a_critical_error_takes_one_gpu_out_and_a_self_test_lets_it_in(cluster: Cluster) -> None:
    """F34: its job runs again elsewhere, the neighbour goes on; after three of them only a person lets it in."""
    first, second, third = cards(cluster, 3)
    worker = cluster.worker("a", gpu_quarantine=0.5, lost_delay=0.1)
    cluster.beat()
    done = cluster.home / "done"
    ids = [cluster.command(sys.executable, "-c", WAIT, str(done), gpus=1) for _ in range(2)]
    for job_id in ids:
        cluster.wait_for_state(job_id, JobState.RUNNING)
    held = {cluster.runtime.jobs.attempts(job_id)[0].gpus[0]: job_id for job_id in ids}
    (victim, neighbour) = held.values()
    sick = next(gpu for gpu in (first, second, third) if held.get(gpu.gpu.uuid) == victim)
    healthy = [gpu for gpu in (first, second, third) if gpu is not sick]

    def report(count: int, used_mib: int = 0) -> None:
        write_gpus(cluster.home / "a.toml", [replace(sick, xid=79, xid_count=count, used_mib=used_mib), *healthy])

    report(1, used_mib=9000)  # not clean, so that it is out for as long as its job needs to find another one
    wait_for(lambda: cluster.job(victim).attempt == 2, within_seconds=20, describe=cluster.logs)
    report(1)
    wait_for_health(cluster, sick, GpuHealth.HEALTHY, 1)
    assert cluster.job(neighbour).attempt == 1
    done.touch()
    assert {job.state for job in cluster.wait_for_end(ids)} == {JobState.SUCCEEDED}
    lost, won = cluster.runtime.jobs.attempts(victim)
    assert (lost.gpus, lost.outcome) == ((sick.gpu.uuid,), "lose")
    assert won.gpus not in [(sick.gpu.uuid,), cluster.runtime.jobs.attempts(neighbour)[0].gpus]
    assert "XID 79" in cluster.output(victim)

    report(2)
    wait_for_health(cluster, sick, GpuHealth.HEALTHY, 2)
    report(3)
    wait_for_health(cluster, sick, GpuHealth.QUARANTINED, 3)
    # Longer than its third quarantine: that it stays out cannot be waited for otherwise.
    cluster.wait_for_state(cluster.command("sleep", "4", gpus=1), JobState.SUCCEEDED)
    assert (standing(cluster, sick).health, standing(cluster, sick).reason) == (GpuHealth.QUARANTINED, "XID 79")
    cluster.runtime.cluster.order_gpu(sick.gpu.uuid, GpuAction.RELEASE, by="test")
    cluster.wait_for_state(cluster.command("true", gpus=3), JobState.SUCCEEDED)
    events = cluster.runtime.events.page(after=0, upto=None, job_seq=None, tenant=None, limit=1000)
    assert [event.kind for event in events].count("gpu_quarantined") == 3
    assert "was not tested" not in worker.log.read_text()


def test_a_gpu_that_fails_its_self_test_is_struck_until_it_is_out(cluster: Cluster) -> None:
    """And used again when it was repaired and a person says so."""
    first, second = cards(cluster)
    cluster.worker("a", gpu_quarantine=0.2)
    cluster.beat()
    broken = replace(first, xid=79, xid_count=1)
    write_gpus(cluster.home / "a.toml", [broken, second], self_tests={first.gpu.uuid: "fails"})
    wait_for_health(cluster, first, GpuHealth.QUARANTINED, 3)
    assert standing(cluster, first).reason == "it failed its self-test: it is simulated to"

    write_gpus(cluster.home / "a.toml", [broken, second])
    cluster.runtime.cluster.order_gpu(first.gpu.uuid, GpuAction.RESET, by="test")
    cluster.wait_for_state(cluster.command("true", gpus=2), JobState.SUCCEEDED)
    assert standing(cluster, first).strikes == 0


def test_a_gpu_on_which_runners_do_not_start_is_quarantined(cluster: Cluster) -> None:
    """While the same app starts on the other: all tasks run there in the end."""
    first, second = cards(cluster)
    (cluster.home / "sick").write_text(first.gpu.uuid)
    cluster.worker("a", app="sick_app", path=HERE, runner_max_jobs=1, max_lost=100, lost_delay=0.1)
    cluster.beat()
    tasks = [cluster.task("t.where", gpus=1) for _ in range(8)]

    ended = cluster.wait_for_end(tasks)

    assert {job.result for job in ended} == {second.gpu.uuid}
    wait_for_health(cluster, first, GpuHealth.QUARANTINED, 1)
    told = f"3 runners in a row did not start on it, while others started on {second.gpu.uuid}"
    assert str(standing(cluster, first).reason).startswith(told)
    assert standing(cluster, second).health is GpuHealth.HEALTHY


def test_an_app_that_starts_nowhere_costs_no_gpu(cluster: Cluster) -> None:
    first, second = cards(cluster)
    (cluster.home / "sick").write_text(f"{first.gpu.uuid} {second.gpu.uuid}")
    cluster.worker("a", app="sick_app", path=HERE, max_lost=4, lost_delay=0.1)
    cluster.beat()
    tasks = [cluster.task("t.where", gpus=1) for _ in range(3)]
    assert {job.state for job in cluster.wait_for_end(tasks)} == {JobState.DEAD_LETTER}
    assert [standing(cluster, gpu) for gpu in (first, second)] == [GpuStanding()] * 2
