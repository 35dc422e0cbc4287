"""Jobs with conditions on two hosts of different cards."""

from dataclasses import replace

import pytest

from orchestrator.domain.job import JobState
from orchestrator.domain.request_wants import AlternativeRequest
from orchestrator.errors import UnsatisfiableRequest
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.services.why import explain
from tests.support.cluster import Cluster
from tests.support.waiting import wait_for


@pytest.fixture
def two_kinds(cluster: Cluster) -> Cluster:
    """Host ``old`` has two A100s in zone x; host ``new`` an H100 and one that is split."""
    write_gpus(cluster.home / "old.toml", make_gpus(2, owner=f"{cluster.home}-old", model="NVIDIA A100-SXM4-40GB"))
    whole, split = make_gpus(2, owner=f"{cluster.home}-new", model="NVIDIA H100 80GB HBM3")
    halves = [
        replace(
            split, gpu=replace(split.gpu, uuid=f"MIG-{n}", index=n, mig_profile="3g.40gb", parent_uuid=split.gpu.uuid)
        )
        for n in (1, 2)
    ]
    write_gpus(cluster.home / "new.toml", [whole, *halves])
    cluster.worker("old", labels='{"zone": "x"}', cpus=4, memory_mib=1000)
    cluster.worker("new", labels='{"zone": "y"}', cpus=8, memory_mib=2000)
    cluster.beat()
    return cluster


def test_jobs_run_where_their_conditions_hold(two_kinds: Cluster) -> None:
    """Type, label, instance and alternative; with what the job itself sees."""
    ids = {
        "type": two_kinds.command("env", gpu_type="H100"),
        "label": two_kinds.command("env", gpus=1, constraints={"zone": "x"}),
        "instance": two_kinds.command("env", mig="3g.40gb", gpus=2),
        "alternative": two_kinds.command(
            "env", gpus=2, gpu_type="H100", alternatives=(AlternativeRequest(gpus=2, gpu_type="A100"),)
        ),
        "cpus": two_kinds.command("env", cpus=6),
    }
    jobs = {name: two_kinds.wait_for_state(job_id, JobState.SUCCEEDED) for name, job_id in ids.items()}
    attempts = {name: two_kinds.runtime.jobs.attempts(job_id)[0] for name, job_id in ids.items()}
    gpus = {name: attempt.gpus for name, attempt in attempts.items()}

    assert {name: job.node for name, job in jobs.items()} == {
        "type": "new",
        "label": "old",
        "instance": "new",
        "alternative": "old",
        "cpus": "new",
    }
    assert sorted(gpus["instance"]) == ["MIG-1", "MIG-2"]
    assert len(gpus["alternative"]) == 2
    assert (attempts["alternative"].choice, attempts["type"].choice) == (2, None)
    assert "CUDA_VISIBLE_DEVICES=MIG-" in two_kinds.output(ids["instance"])


def test_what_no_host_has_is_refused_at_submit_and_what_is_taken_waits(two_kinds: Cluster) -> None:
    with pytest.raises(UnsatisfiableRequest, match=r"no host has 2 GPUs of type H100; the closest, new, has 1$"):
        two_kinds.command("env", gpus=2, gpu_type="H100")
    with pytest.raises(UnsatisfiableRequest, match=r"room for a job with 9 CPUs; the closest, new, offers 8 CPUs$"):
        two_kinds.command("env", cpus=9)
    holder = two_kinds.command("sleep", "60", gpus=1, cpus=4, constraints={"node": "old"})
    two_kinds.wait_for_state(holder, JobState.RUNNING)
    waiting = two_kinds.command("env", gpus=1, cpus=2, constraints={"zone": "x"})

    def reason() -> str:
        return explain(two_kinds.runtime, waiting)[0].words

    wait_for(lambda: "free: 0 CPUs and 1000 MiB on old" in reason(), within_seconds=20, describe=reason)
    assert two_kinds.job(waiting).state is JobState.PENDING
    two_kinds.runtime.jobs.request_cancel(holder, by="test", reason="done")
    assert two_kinds.wait_for_state(waiting, JobState.SUCCEEDED).node == "old"
