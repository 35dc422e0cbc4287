"""Real control groups, where this host permits them."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.cluster import GpuSample
from orchestrator.domain.job import FailureClass, JobState
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.guardian.cgroups import NVIDIA_MAJOR, PROCESS, Cgroups, find_cgroups, permits_filters
from orchestrator.guardian.messages import GpuReport, Spawned
from tests.support.cluster import Cluster
from tests.support.guardian import StartHost, python

#: Uses so many MiB, and then ends well.
USE = "import sys; data = bytearray(int(sys.argv[1]) << 20); print(len(data))"

#: Joins groups, opens device files, and makes a file for the device of the first; prints what came of each.
TOUCH = """
import errno, os, stat, sys
from orchestrator.guardian.cgroups import join
def told(act, *arguments):
    try: act(*arguments)
    except OSError as error: return errno.errorcode[error.errno]
    return "done"
groups, *files = sys.argv[1:]
join(groups.split())
print(*[told(os.open, file, os.O_RDWR) for file in files])
print(told(os.mknod, files[0] + "-again", stat.S_IFCHR | 0o600, os.stat(files[0]).st_rdev))
"""
#: Numbers that no card has, so that nothing answers to their device files.
FOREIGN, OWN = 200, 201


@pytest.fixture(params=[1, 2])
def filtering(request: pytest.FixtureRequest) -> Iterator[Cgroups]:
    """Groups of either version that keep devices from a process."""
    name = f"filter-of-tests-{os.getpid()}"
    found = first_version(name) if request.param == 1 else second_version(name)
    yield found
    for directory in found.directories.values():
        directory.rmdir()


def first_version(name: str) -> Cgroups:
    """Return groups whose list of devices can be written."""
    found = find_cgroups("auto", name)
    if found is None or found.version != 1 or "devices" not in found.directories:
        pytest.skip("this host has no list of devices to write: it needs the first version's controller, and root")
    return found


def second_version(name: str) -> Cgroups:
    """Return groups that can be given a filter, wherever the second version is mounted, alone or beside the first."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    place = next((Path(where) for _what, where, kind, *_ in mounts if kind == "cgroup2"), None)
    if place is None or not os.access(place, os.W_OK):
        pytest.skip("this host has no group of the second version to write to")
    directory, faults = place / name, list[str]()
    directory.mkdir()
    if not permits_filters(directory, faults):
        directory.rmdir()
        pytest.skip(f"this host lets no filter of devices be made: {faults[0]}")
    return Cgroups(2, {"devices": directory})


@pytest.fixture
def cards(tmp_path: Path) -> tuple[Path, Path]:
    """Device files of two cards: somebody else's, and one's own."""
    files = tmp_path / "foreign", tmp_path / "own"
    for file, minor in zip(files, (FOREIGN, OWN), strict=True):
        try:
            os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(NVIDIA_MAJOR, minor))
        except OSError as error:
            pytest.skip(f"this host lets no device file be made: {error.strerror}")
    return files


def touch(groups: Sequence[str], *files: Path) -> list[str]:
    """Return what came of opening each file in a process that joined the groups, and of making the first again."""
    run = subprocess.run([*python(TOUCH), " ".join(groups), *map(str, files)], stdout=subprocess.PIPE, check=True)
    return run.stdout.decode().split()


def test_a_process_cannot_open_the_card_of_others_nor_make_a_file_for_it(
    filtering: Cgroups, cards: tuple[Path, Path]
) -> None:
    """By the kernel's word, whoever it runs as; its own card and all that is no card are as they were."""
    foreign, own = cards
    outside = touch((), foreign, own, Path("/dev/null"))
    assert "EPERM" not in outside, "the files are as good as others"
    Path(f"{foreign}-again").unlink()
    made = filtering.make("r1", memory_mib=0, gpus=["GPU-own"], minors={"GPU-own": OWN, "GPU-foreign": FOREIGN})
    try:
        assert touch(made, foreign, own, Path("/dev/null")) == ["EPERM", outside[1], "done", "EPERM"]
        assert touch((), foreign, own, Path("/dev/null")) == outside, "and nobody else notices"
    finally:
        filtering.remove("r1")


@pytest.mark.parametrize("gpu", ["GPU-own", "MIG-own"])
def test_a_job_cannot_open_the_cards_that_its_lease_does_not_name(
    groups: Cgroups, cards: tuple[Path, Path], start_host: StartHost, tmp_path: Path, gpu: str
) -> None:
    """Nor does it lose the card whose instance it has."""
    if "devices" not in groups.directories:
        pytest.skip("this host keeps no devices from a process")
    foreign, own = describe_gpu("GPU-foreign", 0), describe_gpu(gpu, 1)
    write_gpus(tmp_path / "gpus.toml", [foreign, own])
    for uuid, minor in (("GPU-foreign", FOREIGN), ("GPU-own", OWN)):
        (tmp_path / "driver" / uuid).mkdir(parents=True)
        (tmp_path / "driver" / uuid / "information").write_text(f"GPU UUID: {uuid}\nDevice Minor: {minor}\n")
    host = start_host("cgroups-gpus", simulated_gpus=tmp_path / "gpus.toml", driver_gpus=tmp_path / "driver")
    host.expect(GpuReport)

    host.run("without", argv=python(TOUCH, "", *map(str, cards)))
    host.run("with", argv=python(TOUCH, "", *map(str, cards)), gpus=(gpu,))

    assert host.printed["without"].split()[:2] == [b"EPERM", b"EPERM"]
    assert host.printed["with"].split() == [b"EPERM", touch((), *cards)[1].encode(), b"EPERM"]


def describe_gpu(uuid: str, index: int) -> GpuSample:
    """Return a reading of a simulated card, or of an instance of ``GPU-own``."""
    (sample,) = make_gpus(1, owner="cgroups")
    of = {"mig_profile": "1g.10gb", "parent_uuid": "GPU-own"} if uuid.startswith("MIG-") else {}
    return replace(sample, gpu=replace(sample.gpu, uuid=uuid, index=index, **of))


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


def test_an_attempt_says_that_only_its_environment_hid_the_other_gpus(
    tmp_path: Path, sqlite_url: str, redis_url: str
) -> None:
    with Cluster(tmp_path, sqlite_url, redis_url, settings={"isolation": "process"}) as cluster:
        cluster.worker("cgroups-env", gpus=2)
        job_id = cluster.command("true", gpus=1)
        cluster.wait_for_state(job_id, JobState.SUCCEEDED)
        assert [attempt.isolation for attempt in cluster.runtime.jobs.attempts(job_id)] == [PROCESS]
