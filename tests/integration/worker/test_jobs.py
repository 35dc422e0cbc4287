"""The way of a job through a real worker."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis

from orchestrator.domain.job import FailureClass, JobState
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.services.cancel import CancelService
from tests.support.cluster import Cluster, read_dumps
from tests.support.servers import MariaDBServer
from tests.support.waiting import wait_for

SLEEP = (sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)")


def running_pid(cluster: Cluster, job_id: str) -> int:
    """Return the process id that the job printed."""
    wait_for(lambda: cluster.output(job_id), within_seconds=20, describe=cluster.logs)
    return int(cluster.output(job_id).split()[0])


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


PRINT_PID = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")


def test_a_command_sees_its_gpus_and_its_lease_and_nothing_of_the_workers_secrets(cluster: Cluster) -> None:
    cluster.worker("a", gpus=2)
    job_id = cluster.command("env", gpus=2, environment={"MINE": "yes"})
    job = cluster.wait_for_state(job_id, JobState.SUCCEEDED)
    seen = dict(line.split("=", 1) for line in cluster.output(job_id).splitlines() if "=" in line)
    (attempt,) = cluster.runtime.jobs.attempts(job_id)

    assert set(seen["CUDA_VISIBLE_DEVICES"].split(",")) == set(attempt.gpus)
    assert len(attempt.gpus) == 2
    assert seen["ORCHESTRATOR_FENCING_TOKEN"] == str(attempt.lease_id)
    assert seen["MINE"] == "yes"
    assert "ORCHESTRATOR_DATABASE_URL" not in seen
    assert (job.exit_code, job.attempt) == (0, 1)
    assert [event.kind for event in cluster.runtime.jobs.history(job_id)] == ["submit", "admit", "claim", "succeed"]


def test_exit_codes_output_and_retries_are_recorded(cluster: Cluster) -> None:
    cluster.worker("a")
    cluster.beat()
    program = "import os, sys; print('try', os.environ['ORCHESTRATOR_ATTEMPT']); sys.exit(3)"
    job_id = cluster.command(sys.executable, "-c", program, gpus=1, max_attempts=2)
    other = cluster.command(sys.executable, "-c", program, gpus=1, max_attempts=9, retry_on={"timeout": None})
    job = cluster.wait_for_state(job_id, JobState.FAILED)
    assert cluster.wait_for_state(other, JobState.FAILED).attempt == 1, "only what was named is tried again"
    attempts = cluster.runtime.jobs.attempts(job_id)

    assert (job.exit_code, job.failure_class, job.attempt) == (3, FailureClass.EXIT, 2)
    assert [(one.outcome, one.exit_code) for one in attempts] == [("retry", 3), ("fail", 3)]
    assert cluster.output(job_id) == "try 1\ntry 2\n"


def test_what_cannot_be_started_fails_with_the_reason(cluster: Cluster) -> None:
    cluster.worker("a")
    job = cluster.wait_for_state(cluster.command("no-such-program", gpus=1), JobState.FAILED)

    assert job.exit_code == 127
    assert "no-such-program" in (job.error or "")


def test_a_job_beyond_its_time_limit_is_ended_with_all_that_it_started(cluster: Cluster) -> None:
    cluster.worker("a")
    program = "import os, subprocess, time; subprocess.Popen(['sleep', '60']); print(os.getpid(), flush=True);"
    program += " time.sleep(60)"
    job_id = cluster.command(sys.executable, "-c", program, gpus=1, time_limit_seconds=1.5, grace_seconds=1)
    pid = running_pid(cluster, job_id)
    group = os.getpgid(pid)
    job = cluster.wait_for_state(job_id, JobState.FAILED)

    assert (job.failure_class, job.exit_code) == (FailureClass.TIMEOUT, 124)
    assert not [p for p in psutil.process_iter() if p.pid != os.getpid() and _group(p.pid) == group]


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def test_a_running_job_is_cancelled_at_once_and_a_waiting_one_never_starts(cluster: Cluster) -> None:
    cluster.worker("a", gpus=1)
    running = cluster.command(*PRINT_PID, gpus=1)
    pid = running_pid(cluster, running)
    waiting = cluster.command(*PRINT_PID, gpus=1)
    cancels = CancelService(cluster.runtime)
    asked_at = time.monotonic()

    assert cancels.cancel(waiting, by="test").cancelled
    assert cancels.cancel(running, by="test").stopping
    job = cluster.wait_for_state(running, JobState.CANCELLED)
    assert time.monotonic() - asked_at < 5, "the worker heard of it only with a renewal"
    assert not is_alive(pid)
    assert job.reason == "cancelled while it ran"
    assert cluster.runtime.jobs.attempts(waiting) == []
    assert not cancels.cancel(running, by="test").stopping


def test_small_and_cpu_jobs_pass_a_gang_that_waits(cluster: Cluster) -> None:
    cluster.worker("a", gpus=2)
    first = cluster.command(*SLEEP, gpus=1)
    cluster.wait_for_state(first, JobState.RUNNING)
    gang = cluster.command("true", gpus=2)
    cpu = cluster.command("true")

    cluster.wait_for_state(cpu, JobState.SUCCEEDED)
    assert cluster.job(gang).state in (JobState.QUEUED, JobState.PENDING)
    CancelService(cluster.runtime).cancel(first, by="test")
    cluster.wait_for_state(gang, JobState.SUCCEEDED)


def test_shared_jobs_meet_on_one_gpu_up_to_its_memory(cluster: Cluster) -> None:
    cluster.worker("a", gpus=1)
    memory = make_gpus(1, owner="x")[0].gpu.memory_mib
    both = [cluster.command(*SLEEP, gpus=1, gpu_memory_mib=memory // 2) for _ in range(2)]
    for job_id in both:
        cluster.wait_for_state(job_id, JobState.RUNNING)
    third = cluster.command("true", gpus=1, gpu_memory_mib=memory // 2)

    (card,) = cluster.runtime.cluster.nodes()[0].gpus
    assert card.reserved_mib == memory // 2 * 2
    assert cluster.job(third).state is not JobState.RUNNING
    CancelService(cluster.runtime).cancel(both[0], by="test")
    cluster.wait_for_state(third, JobState.SUCCEEDED)


def test_an_unhealthy_gpu_is_not_used_until_it_is_healthy_again(cluster: Cluster) -> None:
    cluster.worker("a", gpus=1, gpu_recover=0.2)
    healthy = make_gpus(1, owner=f"{cluster.home.name}-a")
    path = cluster.home / "a.toml"
    path.write_text(path.read_text().replace('"healthy"', '"suspect"'))
    wait_for(
        lambda: cluster.runtime.cluster.nodes()[0].gpus[0].health.value == "suspect",
        within_seconds=15,
        describe=cluster.logs,
    )
    job_id = cluster.command("true", gpus=1)
    assert cluster.job(job_id).state is not JobState.RUNNING
    write_gpus(path, healthy)

    cluster.wait_for_state(job_id, JobState.SUCCEEDED)


def test_a_killed_workers_job_dies_with_it_and_runs_again(cluster: Cluster) -> None:
    """Another worker starts under the same node's name: it gives back at once what its predecessor held."""
    cluster.beat()
    worker = cluster.worker("a", gpus=1)
    job_id = cluster.command(*PRINT_PID, gpus=1)
    pid = running_pid(cluster, job_id)
    worker.stop(signal.SIGKILL)
    wait_for(lambda: not is_alive(pid), within_seconds=5, describe="the runner outlives its worker")
    cluster.worker("a", gpus=1)

    wait_for(lambda: cluster.job(job_id).attempt == 2, within_seconds=30, describe=cluster.logs)
    job = cluster.wait_for_state(job_id, JobState.RUNNING)
    assert job.lost_count == 1
    assert [attempt.outcome for attempt in cluster.runtime.jobs.attempts(job_id)] == ["lose", None]


def test_a_killed_hosts_job_runs_on_another_host_after_the_lease_expired(cluster: Cluster) -> None:
    cluster.beat()
    worker = cluster.worker("a", gpus=1)
    job_id = cluster.command(*PRINT_PID, gpus=1)
    running_pid(cluster, job_id)
    cluster.worker("b", gpus=1)
    killed_at = time.monotonic()
    worker.stop(signal.SIGKILL)

    wait_for(lambda: cluster.job(job_id).node == "b", within_seconds=45, describe=cluster.logs)
    assert time.monotonic() - killed_at > 10, "the lease was taken before it could have expired"


def test_a_stopping_worker_lets_its_job_end_and_gives_back_the_rest(cluster: Cluster) -> None:
    worker = cluster.worker("a", gpus=1)
    first = cluster.command(sys.executable, "-c", "import time; print('up', flush=True); time.sleep(3)", gpus=1)
    wait_for(lambda: cluster.output(first), within_seconds=20, describe=cluster.logs)
    second = cluster.command("true", gpus=1)

    assert worker.stop(signal.SIGTERM) == 0
    assert cluster.job(first).state is JobState.SUCCEEDED
    assert cluster.job(second).state in (JobState.PENDING, JobState.QUEUED)
    assert cluster.job(second).attempt == 0
    assert all(card.exclusive_lease_id is None for card in cluster.runtime.cluster.nodes()[0].gpus)
    cluster.worker("a", gpus=1)
    cluster.wait_for_state(second, JobState.SUCCEEDED)


def test_a_worker_that_must_stop_at_once_leaves_no_process_and_no_lease(cluster: Cluster) -> None:
    worker = cluster.worker("a", gpus=1)
    job_id = cluster.command(*PRINT_PID, gpus=1)
    pid = running_pid(cluster, job_id)
    worker.stop(signal.SIGQUIT)

    assert not is_alive(pid)
    assert cluster.job(job_id).state in (JobState.SCHEDULED, JobState.PENDING)
    assert all(card.exclusive_lease_id is None for card in cluster.runtime.cluster.nodes()[0].gpus)


def test_two_hundred_jobs_of_mixed_sizes_never_share_a_gpu_on_two_hosts(
    mariadb_cluster: Cluster, tmp_path: Path
) -> None:
    """Checked from what the jobs themselves saw, and from the history of the leases."""
    cluster = mariadb_cluster
    cluster.beat()
    for node in ("a", "b"):
        cluster.worker(node, gpus=4, slots=4)
    dumps = tmp_path / "dumps.jsonl"
    sizes = [1, 2, 4, 0] * 50
    ids = cluster.submit(*(cluster.dump_job(dumps, 0.05, gpus=size) for size in sizes))
    jobs = cluster.wait_for_end(ids, within_seconds=100)

    assert {job.state for job in jobs} == {JobState.SUCCEEDED}, cluster.logs()
    lines = read_dumps(dumps)
    assert len(lines) == 2 * len(sizes)
    assert {line["job"]: len(line["gpus"]) for line in lines} == dict(zip(ids, sizes, strict=True))
    report = cluster.verify(dumps, acknowledged=ids)
    assert report.is_clean, str(report)
    assert report.checked["runners"] >= len(ids)
    assert {job.node for job in jobs} == {"a", "b"}


@pytest.mark.parametrize("pool", ["processes", "threads", "solo"])
def test_a_worker_with_another_pool_takes_no_gpu_queue_and_says_why(cluster: Cluster, pool: str) -> None:
    cluster.runtime.cluster.ensure_queues(["gpu"])
    command = ["celery", "-A", "orchestrator_tasks.app", "worker", "-Q", "gpu", "-P", pool, "-c", "1", "-l", "INFO"]
    worker = cluster.spawn("other", command, node="other")
    wait_for(lambda: "ready." in worker.tail(), within_seconds=30, describe=worker.tail)
    job_id = cluster.command("true", gpus=0)

    assert "takes nothing from gpu" in worker.tail()
    wait_for(lambda: cluster.job(job_id).state is JobState.QUEUED, within_seconds=5, describe=worker.tail)
    assert worker.stop() == 0
    assert cluster.job(job_id).state is JobState.QUEUED


def test_a_runner_ends_before_a_lease_that_cannot_be_renewed(
    tmp_path: Path, mariadb_server: MariaDBServer, mariadb_url: str, redis_url: str
) -> None:
    """While the database is silent the job is ended before its lease could expire, and runs again afterwards."""
    times = {"lease_ttl": 4, "lease_margin": 1.5, "expiry_grace": 1, "lost_delay": 0}
    with Cluster(tmp_path, mariadb_url, redis_url, settings=times) as cluster:
        cluster.beat()
        cluster.worker("a", gpus=1)
        job_id = cluster.command(*PRINT_PID, gpus=1)
        pid = running_pid(cluster, job_id)
        mariadb_server.pause()
        paused_at = time.monotonic()
        try:
            wait_for(lambda: not is_alive(pid), within_seconds=times["lease_ttl"], describe=lambda: "the runner lives")
        finally:
            mariadb_server.resume()

        assert time.monotonic() - paused_at < times["lease_ttl"]
        wait_for(lambda: cluster.job(job_id).attempt == 2, within_seconds=30, describe=cluster.logs)
        assert cluster.runtime.jobs.attempts(job_id)[0].outcome == "lose"


def test_an_entry_that_names_no_job_becomes_a_dead_letter(cluster: Cluster) -> None:
    """Whoever can write to Redis cannot forge work: without a row nothing runs, and the reason is kept."""
    cluster.worker("a", gpus=1)
    with redis.Redis.from_url(cluster.redis_url) as client:
        stream = "stream:orchestrator:inference_jobs"
        forged = {"id": "01a20827-c0a4-705c-8ff1-b018f68306ab", "task": "orchestrator.command", "queue": "gpu"}
        header = {"gpus": 1, "gpu_memory_mib": None, "tenant": "a", "kind": "command", "priority": 5}
        client.xadd(stream, {"j": json.dumps(forged | {"seq": 999_999, "headers": {"orchestrator": header}})})
        client.xadd(stream, {"j": "not JSON"})
        client.xadd(stream, {"j": json.dumps(forged | {"seq": 999_998, "headers": {}})})

        wait_for(lambda: client.xlen(f"{stream}:dlq") == 2, within_seconds=15, describe=cluster.logs)
        wait_for(lambda: client.xlen(stream) == 0, within_seconds=15, describe=cluster.logs)
    assert cluster.wait_for_state(cluster.command("true", gpus=1), JobState.SUCCEEDED).attempt == 1


def test_a_job_of_a_task_that_the_worker_does_not_know_does_not_wait_for_ever(cluster: Cluster) -> None:
    cluster.worker("a", gpus=1)
    job = cluster.wait_for_state(cluster.task("no.such.task", gpus=1), JobState.DEAD_LETTER)

    assert "has no task 'no.such.task'" in (job.reason or "")
    assert cluster.runtime.letters.get(job.id).reason == job.reason
