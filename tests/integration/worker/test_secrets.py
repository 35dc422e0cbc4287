"""A command's secrets, through a real worker."""

import hashlib
import subprocess
import sys

import redis

from orchestrator.domain.job import FailureClass, JobState
from tests.support.cluster import Cluster

CANARY = "canary-7d1f0a52c9"
PROGRAM = "import os, hashlib; v = os.environ['HF_TOKEN']; print('is', v, hashlib.sha256(v.encode()).hexdigest())"


def test_a_secret_reaches_the_job_and_nothing_else(cluster: Cluster, redis_url: str) -> None:
    """Not the database, Redis, the journals, the logs, the job's output, nor what ps shows."""
    keep = cluster.home / "secrets" / "default"
    keep.mkdir(parents=True)
    (keep / "HF_TOKEN").write_text(CANARY + "\n")
    (keep / "HF_TOKEN").chmod(0o600)
    cluster.worker("a")

    job_id = cluster.command(sys.executable, "-c", PROGRAM, secrets=("HF_TOKEN",))
    missing = cluster.command("true", secrets=("HF_TOKEN", "NOT_THERE"), max_attempts=3)
    cluster.wait_for_state(job_id, JobState.SUCCEEDED)
    failed = cluster.wait_for_state(missing, JobState.FAILED)

    assert cluster.output(job_id).split() == ["is", "***", hashlib.sha256(CANARY.encode()).hexdigest()]
    assert failed.failure_class is FailureClass.POISON
    assert failed.error == "secret NOT_THERE of tenant default is not on this host (No such file or directory)"
    assert cluster.runtime.jobs.get_payload(job_id) is not None
    assert (cluster.runtime.jobs.get_payload(job_id) or {})["secrets"] == ["HF_TOKEN"]
    client = redis.Redis.from_url(redis_url)
    assert not [key for key in client.scan_iter() if CANARY.encode() in (client.dump(key) or b"")]
    kept = [path for path in cluster.home.rglob("*") if path.is_file() and path.parent != keep]
    assert len(kept) >= 3
    assert [path for path in kept if CANARY.encode() in path.read_bytes()] == []
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, check=True, timeout=30).stdout
    assert CANARY.encode() not in shown
