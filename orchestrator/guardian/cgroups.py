"""Control groups around runners, where the host permits them: a bound on memory, GPUs that cannot be opened.

Each runner gets a group of its own, below one that this guardian makes, with everything that it starts. What a host
permits is found out by doing it. The first version of control groups has a list of devices; in the second the list is a
BPF program, ``device_filter``. Where neither can be had, a runner sees its GPUs by ``CUDA_VISIBLE_DEVICES`` alone.
"""

import logging
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from orchestrator.domain.cluster import GpuSample
from orchestrator.errors import InvalidSettings
from orchestrator.guardian import device_filter
from orchestrator.guardian.messages import RunnerSpec
from orchestrator.guardian.settings import GuardianSettings

logger = logging.getLogger(__name__)

ROOT: Final = Path("/sys/fs/cgroup")
OWN: Final = Path("/proc/self/cgroup")
#: The major number of the NVIDIA driver's device files.
NVIDIA_MAJOR: Final = 195
MIB: Final = 1 << 20
#: A group that is empty for so long has been left: a runner joins its own at once, or its start has failed by then.
LEFT_SECONDS: Final = 120.0
#: How a runner is isolated where there are no groups.
PROCESS: Final = "process"
_KILLS: Final = re.compile(r"^oom_kill (\d+)$", re.M)


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The groups of one guardian: of each controller a directory, in which each runner has one."""

    version: int
    directories: Mapping[str, Path]  # by controller; in the second version they are one

    @property
    def isolation(self) -> str:
        """What attempts record, as ``cgroup1:devices,memory``."""
        return f"cgroup{self.version}:{','.join(sorted(self.directories))}"

    def make(self, name: str, *, memory_mib: int, gpus: Iterable[str], minors: Mapping[str, int]) -> tuple[str, ...]:
        """Make the groups of a runner and return their directories, which its first process is to join.

        Args:
            name: Of the groups.
            memory_mib: What it may use of the host's memory; 0 for no limit.
            gpus: The cards that it may open.
            minors: The device files of all cards, by uuid.

        Raises:
            OSError: If the kernel does not let us.
        """
        groups = {controller: directory / name for controller, directory in self.directories.items()}
        made = tuple(dict.fromkeys(groups.values()))
        for group in made:
            group.mkdir()
        if "memory" in groups and memory_mib:
            self._bound_memory(groups["memory"], memory_mib * MIB)
        hidden = sorted(minors[uuid] for uuid in minors.keys() - set(gpus))
        if "devices" in groups and hidden:
            self._hide(groups["devices"], hidden)
        return tuple(str(group) for group in made)

    def kills(self, name: str) -> int:
        """Return how many processes of a runner the kernel has ended for want of memory."""
        memory = self.directories.get("memory")
        if memory is None:
            return 0
        events = "memory.oom_control" if self.version == 1 else "memory.events"
        try:
            found = _KILLS.search((memory / name / events).read_text())
        except OSError:
            return 0
        return int(found[1]) if found else 0

    def remove(self, name: str) -> None:
        """Remove a runner's groups, in which nothing lives any more."""
        for directory in self.directories.values():
            try:
                (directory / name).rmdir()
            except FileNotFoundError:
                continue
            except OSError as error:
                logger.warning("the group %s stays: %s", directory / name, error.strerror)

    def sweep(self) -> None:
        """Remove what earlier guardians left: groups in which nothing lives, and that nobody is about to join."""
        for directory in self.directories.values():
            for group in directory.iterdir():
                if group.is_dir() and time.time() - group.stat().st_mtime > LEFT_SECONDS:
                    with suppress(OSError):  # something lives in it: it is another guardian's
                        group.rmdir()

    def _bound_memory(self, group: Path, limit: int) -> None:
        """Bound memory, and swap too, where the kernel counts it: else a limit on memory only makes a job slow."""
        first = self.version == 1
        (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        name, value = ("memory.memsw.limit_in_bytes", limit) if first else ("memory.swap.max", 0)
        if (group / name).exists():
            (group / name).write_text(str(value))

    def _hide(self, group: Path, minors: Sequence[int]) -> None:
        """Have no process of the group open these device files, or make one like them."""
        if self.version == 2:
            device_filter.attach(group, major=NVIDIA_MAJOR, minors=minors)
            return
        for minor in minors:
            (group / "devices.deny").write_text(f"c {NVIDIA_MAJOR}:{minor} rwm")


def find_cgroups(mode: str, node: str, *, root: Path = ROOT, own: Path = OWN) -> Cgroups | None:
    """Return the groups that this process may make; None if it may make none, or is told not to.

    Args:
        mode: ``auto`` takes what there is, ``process`` never tries, ``cgroup`` insists.
        node: Names the group.
        root: Where control groups are mounted.
        own: Tells in which ones this process is.

    Raises:
        InvalidSettings: If groups are insisted on and cannot be had.
    """
    if mode == "process":
        return None
    faults: list[str] = []
    name = "orchestrator-" + re.sub(r"[^A-Za-z0-9._-]", "_", node)
    places = _places(root, own)
    found: dict[str, Path] = {}
    version = 2 if "unified" in places else 1
    wanted = ("memory", "pids") if version == 2 else ("memory", "devices")
    if version == 2:
        found = _try_unified(places["unified"], name, wanted, faults)
        if found and permits_filters(found["memory"], faults):
            found["devices"] = found["memory"]
    else:
        for controller in wanted:
            place = places.get(controller)
            if place is None:
                faults.append(f"the controller {controller} is not mounted")
            elif _try(place / name, faults):
                found[controller] = place / name
    if "memory" in found:
        return Cgroups(version, found)
    if mode == "cgroup":
        raise InvalidSettings([f"isolation: control groups cannot be had: {'; '.join(faults)}"])
    return None


def permits_filters(directory: Path, faults: list[str]) -> bool:
    """Tell whether a group of the second version can be given a filter of devices, by making one; appends why not."""
    probe = directory / f"probe-{os.getpid()}"
    try:
        probe.mkdir()
        try:
            device_filter.attach(probe, major=NVIDIA_MAJOR, minors=[0])  # nothing lives there
        finally:
            probe.rmdir()
    except OSError as error:
        faults.append(f"filter of devices: {error.filename}: {error.strerror}")
        return False
    return True


def cards_of(gpus: Iterable[str], samples: Iterable[GpuSample]) -> set[str]:
    """Return the cards that a runner opens to use these GPUs: those of instances are their cards, as of a reading."""
    cards = {sample.gpu.uuid: sample.gpu.parent_uuid for sample in samples}
    return {cards.get(gpu) or gpu for gpu in gpus}


def read_minors(gpus: Path) -> Mapping[str, int]:
    """Return the numbers of the device files of the host's GPUs, by uuid; none where there is no such driver."""
    found = {}
    for file in sorted(gpus.glob("*/information")):
        lines = dict(re.findall(r"^([^:\n]+):\s*(.*?)\s*$", file.read_text(), re.M))
        if lines.get("GPU UUID") and lines.get("Device Minor", "").isdecimal():
            found[lines["GPU UUID"]] = int(lines["Device Minor"])
    return found


def join(directories: Sequence[str]) -> None:
    """Put this process into groups; what it starts is in them too."""
    for directory in directories:
        Path(directory, "cgroup.procs").write_text("0")


def _places(root: Path, own: Path) -> dict[str, Path]:
    """Return the directory of this process's group by controller; ``unified`` if there is the second version alone."""
    places = {}
    for line in own.read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        if controllers:
            for controller in controllers.split(","):
                places[controller] = root / controller / path.lstrip("/")
        elif (root / "cgroup.controllers").exists():
            places["unified"] = root / path.lstrip("/")
    return {name: place for name, place in places.items() if name == "unified" or place.is_dir()}


def _try_unified(place: Path, name: str, wanted: Sequence[str], faults: list[str]) -> dict[str, Path]:
    """Make a group with the controllers beside ours: in one that has processes itself, none can be passed on."""
    for parent in (place, place.parent):
        group = parent / name
        try:
            _pass_on(parent, wanted)
            group.mkdir(exist_ok=True)
            _pass_on(group, wanted)
        except OSError as error:
            faults.append(f"{error.filename or group}: {error.strerror}")
            continue
        if _try(group, faults):
            return {"memory": group}
    return {}


def _pass_on(group: Path, controllers: Sequence[str]) -> None:
    control = group / "cgroup.subtree_control"
    missing = [name for name in controllers if name not in control.read_text().split()]
    if missing:
        control.write_text(" ".join(f"+{name}" for name in missing))


def _try(group: Path, faults: list[str]) -> bool:
    """Make a group and one in it, and remove that again."""
    probe = group / f"probe-{os.getpid()}"
    try:
        group.mkdir(exist_ok=True)
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        faults.append(f"{error.filename or group}: {error.strerror}")
        return False
    return True


class Isolation:
    """What stands around the runners of one guardian."""

    def __init__(self, cgroups: Cgroups | None, minors: Mapping[str, int]) -> None:
        """Use these groups, or none; ``minors`` are the device files of the host's cards."""
        self._cgroups, self._minors = cgroups, minors
        self.name = PROCESS if cgroups is None else cgroups.isolation

    @classmethod
    def of_host(cls, settings: GuardianSettings) -> "Isolation":
        """Find out what the host permits; raises ``InvalidSettings`` if that is less than is insisted on."""
        cgroups = find_cgroups(settings.isolation, settings.node)
        if cgroups is not None:
            cgroups.sweep()
        return cls(cgroups, read_minors(settings.driver_gpus))

    def enter(self, spec: RunnerSpec, mark: str, samples: Iterable[GpuSample]) -> RunnerSpec:
        """Return a runner's spec with the groups that it is to join; raises ``OSError`` if they cannot be made.

        ``samples`` are the latest reading of the GPUs: it tells the cards of instances.
        """
        if self._cgroups is None:
            return spec
        name = _group_name(mark)
        gpus = cards_of(spec.gpus, samples)
        groups = self._cgroups.make(name, memory_mib=spec.memory_mib, gpus=gpus, minors=self._minors)
        return replace(spec, cgroups=groups)

    def leave(self, mark: str) -> int:
        """Remove a runner's groups; return how many of its processes were ended for want of memory."""
        if self._cgroups is None:
            return 0
        kills = self._cgroups.kills(_group_name(mark))
        self._cgroups.remove(_group_name(mark))
        return kills


def _group_name(mark: str) -> str:
    return mark.replace(":", "-")
