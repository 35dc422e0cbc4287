"""Real control groups, where this host permits them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.domain.job import FailureClass, JobState
from orchestrator.guardian.cgroups import PROCESS, Cgroups, find_cgroups
from orchestrator.guardian.messages import Spawned
from tests.support.cluster import Cluster
from tests.support.guardian import StartHost, python

#: Uses so many MiB, and then ends well.
USE = "import sys; data = bytearray(int(sys.argv[1]) << 20); print(len(data))"


@pytest.fixture(scope="module")
def groups() -> Iterator[Cgroups]:
    """The groups that this process may make."""
    found = find_cgroups("auto", "probe-of-tests")
    if found is None:
        pytest.skip("this host permits no control groups: the guardian's tests of them need memory cgroups to write")
    yield found
    for directory in found.directories.values():
        directory.rmdir()


def members(groups: Cgroups, node: str) -> list[list[int]]:
    """Return the processes in each group of a guardian."""
    directory = groups.directories["memory"].with_name(f"orchestrator-{node}")
    found = [group for group in directory.iterdir() if group.is_dir()]
    return [[int(pid) for pid in (group / "cgroup.procs").read_text().split()] for group in found]


def test_what_a_runner_starts_is_in_its_group_which_goes_with_it(groups: Cgroups, start_host: StartHost) -> None:
    host = start_host("cgroups-tree")
    host.spawn(argv=python("import os, time; os.fork(); print(os.getpid()); time.sleep(600)"), memory_mib=256)
    begun = host.expect(Spawned)
    assert begun.isolation == groups.isolation
    host.wait_printed(b"\n")
    (inside,) = members(groups, "cgroups-tree")
    assert begun.pid in inside
    host.guardian.kill("r1", grace_seconds=0)
    assert host.expect_end().memory_kills == 0
    assert members(groups, "cgroups-tree") == []


def test_who_uses_more_memory_than_it_may_is_ended_and_that_is_told(groups: Cgroups, start_host: StartHost) -> None:
    host = start_host("cgroups-memory")
    modest = host.run("modest", argv=python(USE, "20"), memory_mib=128)
    greedy = host.run("greedy", argv=python(USE, "300"), memory_mib=128)
    free = host.run("free", argv=python(USE, "300"))

    assert (modest.exit_code, modest.memory_kills) == (0, 0)
    assert (greedy.exit_code, greedy.signal, greedy.memory_kills) == (None, 9, 1)
    assert (free.exit_code, free.memory_kills) == (0, 0)


def test_a_host_may_be_told_to_do_without(start_host: StartHost) -> None:
    host = start_host("cgroups-none", isolation="process")
    host.spawn(argv=python(USE, "300"), memory_mib=128)
    assert host.expect(Spawned).isolation == PROCESS
    assert host.expect_end().exit_code == 0


def test_a_job_that_outgrows_its_mem_fails_as_oom_and_its_attempt_says_so(
    groups: Cgroups, tmp_path: Path, sqlite_url: str, redis_url: str
) -> None:
    """And is tried again only if it asked for that; a neighbour goes on."""
    with Cluster(tmp_path, sqlite_url, redis_url, settings={"memory_mib": 4096}) as cluster:
        cluster.worker("cgroups-job", gpus=2)
        cluster.beat()
        greedy = cluster.command(sys.executable, "-c", USE, "400", memory_mib=128, gpus=1)
        modest = cluster.command(sys.executable, "-c", USE, "20", memory_mib=128, gpus=1)
        again = cluster.command(sys.executable, "-c", USE, "400", memory_mib=128, retry_on={"oom": 1}, max_attempts=9)
        ended = {job.id: job for job in cluster.wait_for_end([greedy, modest, again])}

        assert (ended[greedy].state, ended[greedy].failure_class) == (JobState.FAILED, FailureClass.OOM)
        words = (
            "it used more of the host's memory than the 128 MiB that it asked for: the kernel ended it (exit code 137)"
        )
        assert ended[greedy].reason == words
        assert (ended[modest].state, ended[again].attempt) == (JobState.SUCCEEDED, 2)
        told = {attempt.isolation for job in ended for attempt in cluster.runtime.jobs.attempts(job)}
        assert told == {groups.isolation}
