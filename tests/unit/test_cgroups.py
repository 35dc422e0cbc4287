"""Control groups, as far as they are files: what a host permits, what is written, what is read."""

import errno
from collections.abc import Collection
from pathlib import Path

import pytest

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuSample
from orchestrator.errors import InvalidSettings
from orchestrator.guardian import device_filter
from orchestrator.guardian.cgroups import Cgroups, Isolation, find_cgroups, read_minors
from tests.support.guardian import make_spec

INFORMATION = """Model:           NVIDIA H100 80GB HBM3
IRQ:             120
GPU UUID:        {uuid}
Video BIOS:      96.00
Bus Location:    0000:{bus}:00.0
Device Minor:    {minor}
GPU Excluded:    No
"""


def mounted(root: Path, own: str, *groups: str) -> tuple[Path, Path]:
    """Make a tree of groups, and say in which ones this process is; return both."""
    for group in groups:
        (root / group).mkdir(parents=True)
    file = root.parent / "own"
    file.write_text(own)
    return root, file


def devices_alone(path: Path) -> Cgroups:
    """Groups of the first version that filter devices and do nothing else."""
    (path / "devices").mkdir()
    return Cgroups(1, {"devices": path / "devices"})


def reading_of(uuid: str, *, parent: str | None = None) -> GpuSample:
    """Return a reading of an idle card, or of an instance of one."""
    gpu = Gpu(uuid, 0, "H100", 81920, "0", mig_profile=parent and "1g.10gb", parent_uuid=parent)
    return GpuSample(gpu, 0, GpuHealth.HEALTHY, (), 0, None, None)


def test_the_first_version_gives_a_group_a_controller_below_ours(tmp_path: Path) -> None:
    own = "5:devices:/\n4:memory:/service/x\n0::/\n"
    root, file = mounted(tmp_path / "cgroup", own, "devices", "memory/service/x")
    found = find_cgroups("auto", "a/b c", root=root, own=file)
    assert found is not None
    assert found.isolation == "cgroup1:devices,memory"
    assert found.directories == {
        "memory": root / "memory/service/x/orchestrator-a_b_c",
        "devices": root / "devices/orchestrator-a_b_c",
    }
    (root / "devices").rename(root / "elsewhere")
    found = find_cgroups("auto", "a", root=root, own=file)
    assert found is not None
    assert found.isolation == "cgroup1:memory", "without a filter of devices, memory is bounded all the same"


@pytest.mark.parametrize(("permitted", "isolation"), [(True, "cgroup2:devices,memory"), (False, "cgroup2:memory")])
def test_the_second_version_gives_one_group_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, permitted: bool, isolation: str
) -> None:
    """Controllers have to be passed on to it, by a group that has no processes of its own; devices need a program."""

    def attach(group: Path, *, major: int, minors: Collection[int]) -> None:
        if not permitted:
            raise PermissionError(errno.EPERM, "Operation not permitted", "bpf")

    monkeypatch.setattr(device_filter, "attach", attach)
    root, file = mounted(tmp_path / "cgroup", "0::/system.slice/worker\n", "system.slice/worker")
    (root / "cgroup.controllers").write_text("memory pids\n")
    for group in ("system.slice/worker", "system.slice", "system.slice/worker/orchestrator-a"):
        (root / group).mkdir(exist_ok=True)
        (root / group / "cgroup.subtree_control").write_text("memory pids\n")
    found = find_cgroups("auto", "a", root=root, own=file)
    assert found is not None
    assert (found.isolation, found.version) == (isolation, 2)
    assert set(found.directories.values()) == {root / "system.slice/worker/orchestrator-a"}
    assert not list(found.directories["memory"].glob("probe-*"))


def test_who_insists_is_told_why_there_are_none(tmp_path: Path) -> None:
    root, file = mounted(tmp_path / "cgroup", "4:cpu:/\n0::/\n", "cpu")
    assert find_cgroups("auto", "a", root=root, own=file) is None
    assert find_cgroups("process", "a", root=root, own=file) is None
    with pytest.raises(InvalidSettings, match="isolation: control groups cannot be had: the controller memory is not"):
        find_cgroups("cgroup", "a", root=root, own=file)


@pytest.mark.parametrize(("version", "limit"), [(1, "memory.limit_in_bytes"), (2, "memory.max")])
def test_a_runner_gets_its_memory(tmp_path: Path, version: int, limit: str) -> None:
    (tmp_path / "memory").mkdir()
    groups = Cgroups(version, {"memory": tmp_path / "memory"})
    made = groups.make("r1", memory_mib=64, gpus=(), minors={"GPU-a": 0})
    assert made == (str(tmp_path / "memory/r1"),)
    assert (tmp_path / "memory/r1" / limit).read_text() == str(64 << 20)
    assert groups.kills("r1") == 0
    events = "memory.oom_control" if version == 1 else "memory.events"
    (tmp_path / "memory/r1" / events).write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert (groups.kills("r1"), groups.kills("none")) == (2, 0)


def test_a_runner_of_the_first_version_is_denied_every_other_card(tmp_path: Path) -> None:
    groups = devices_alone(tmp_path)
    made = groups.make("r1", memory_mib=64, gpus=["GPU-b"], minors={"GPU-a": 0, "GPU-b": 1})
    assert made == (str(tmp_path / "devices/r1"),)
    assert (tmp_path / "devices/r1/devices.deny").read_text() == "c 195:0 rwm"


def test_a_runner_on_an_instance_may_open_the_card_that_it_is_part_of(tmp_path: Path) -> None:
    """An instance has no device file of its own beside its card's: without that one CUDA finds nothing."""
    isolation = Isolation(devices_alone(tmp_path), {"GPU-a": 1, "GPU-b": 0})
    reading = [reading_of("GPU-b"), reading_of("MIG-1", parent="GPU-a"), reading_of("MIG-2", parent="GPU-a")]
    spec = isolation.enter(make_spec(argv=("true",), gpus=("MIG-1",)), "guardian:r1", reading)
    assert spec.cgroups == (str(tmp_path / "devices/guardian-r1"),)
    assert (tmp_path / "devices/guardian-r1/devices.deny").read_text() == "c 195:0 rwm"


def test_a_runner_of_the_second_version_has_one_group(tmp_path: Path) -> None:
    groups = Cgroups(2, {"memory": tmp_path, "devices": tmp_path})
    assert groups.isolation == "cgroup2:devices,memory"
    assert groups.make("r1", memory_mib=0, gpus=["GPU-a"], minors={"GPU-a": 0}) == (str(tmp_path / "r1"),)
    groups.remove("r1")
    assert list(tmp_path.iterdir()) == []


def test_device_files_are_found_by_uuid(tmp_path: Path) -> None:
    for bus, minor in (("17", 0), ("65", 3)):
        (tmp_path / f"0000:{bus}:00.0").mkdir()
        text = INFORMATION.format(uuid=f"GPU-{minor}", bus=bus, minor=minor)
        (tmp_path / f"0000:{bus}:00.0" / "information").write_text(text)
    assert read_minors(tmp_path) == {"GPU-0": 0, "GPU-3": 3}
    assert read_minors(tmp_path / "none") == {}
