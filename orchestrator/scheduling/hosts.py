"""Hosts as a plan draws on them: what each has, what is left of it, and what would suit a request."""

from collections.abc import Iterator
from typing import Final, NamedTuple

from orchestrator.domain.job import Resources
from orchestrator.domain.wants import NODE_LABEL, Wants
from orchestrator.scheduling.snapshot import GpuView, HostView
from orchestrator.scheduling.topology import Bond, Place, choose, closest_bond

_NO_WANTS: Final = Wants()


class Lack(NamedTuple):
    """Something that a host has not: what part of what was asked for is missing, and in words."""

    part: float
    words: str


class Slot:
    """One healthy GPU of a host, as far as the plan has used it up."""

    __slots__ = (
        "clean",
        "exclusive",
        "foreign_mib",
        "free_mib",
        "kept",
        "memory_mib",
        "mig_profile",
        "model",
        "place",
        "share_mib",
        "taken",
        "uuid",
    )

    def __init__(self, view: GpuView) -> None:
        self.uuid, self.memory_mib, self.exclusive = view.uuid, view.memory_mib, view.exclusive
        self.model, self.mig_profile = view.model, view.mig_profile
        self.place = Place(view.uuid, view.numa, frozenset(view.links))
        self.clean, self.foreign_mib = view.clean, view.foreign_mib
        self.share_mib = max(0, view.memory_mib - view.headroom_mib)  # that shares can have when nobody uses it
        self.taken = view.exclusive or view.reserved_mib > 0
        self.free_mib = 0 if view.exclusive else max(0, self.share_mib - view.reserved_mib - view.foreign_mib)
        self.kept = False  # kept for a job ahead

    @property
    def unused(self) -> bool:
        """It can be granted as a whole, but for what it is kept for."""
        return self.clean and not self.taken

    @property
    def whole(self) -> bool:
        """Nothing uses it, and it is kept for nobody."""
        return self.unused and not self.kept

    def may_come_free(self, mib: int | None) -> bool:
        """The leases on it are all that is in the way of a share, or for None of a lease on the whole."""
        return self.clean if mib is None else self.share_mib - self.foreign_mib >= mib

    def take_share(self, mib: int) -> None:
        """Use up a part of its memory."""
        self.free_mib -= mib
        self.taken = True

    def take_whole(self) -> None:
        """Use it up."""
        self.free_mib, self.taken, self.exclusive = 0, True, True


class Host:
    """One host that accepts jobs."""

    __slots__ = (
        "_suiting",
        "ahead_left",
        "cpu_free",
        "cpu_slots",
        "cpus",
        "cpus_free",
        "free",
        "labels",
        "largest_mib",
        "memory_free_mib",
        "memory_mib",
        "node",
        "number",
        "open_ahead",
        "slots",
    )

    def __init__(self, view: HostView, number: int) -> None:
        self.node, self.number = view.node, number
        healthy = sorted((gpu for gpu in view.gpus if gpu.healthy), key=lambda gpu: (gpu.index, gpu.uuid))
        every = [Slot(gpu) for gpu in healthy]
        self.slots = [slot for slot in every if slot.mig_profile is None]  # instances are asked for by profile
        self._suiting: dict[Wants | None, list[Slot]] = {None: self.slots}
        self._suiting |= {Wants(mig_profile=slot.mig_profile): [] for slot in every}
        for slot in every:
            self._suiting[Wants(mig_profile=slot.mig_profile)].append(slot)
        self.free = sum(slot.whole for slot in self.slots)
        self.largest_mib = max((slot.share_mib for slot in self.slots), default=0)
        self.cpu_slots, self.cpu_free = view.cpu_slots, max(0, view.cpu_slots - view.cpu_jobs)
        self.cpus, self.cpus_free = view.cpus, view.cpus - view.cpus_taken
        self.memory_mib, self.memory_free_mib = view.memory_mib, view.memory_mib - view.memory_taken_mib
        self.labels = dict(view.labels) | {NODE_LABEL: view.node}
        self.ahead_left = max(0, view.look_ahead)
        self.open_ahead = True  # GPU jobs may queue up behind running ones

    def suiting(self, wants: Wants | None) -> list[Slot]:
        """Return the GPUs that meet the conditions on GPUs."""
        found = self._suiting.get(wants)
        if found is None:
            assert wants is not None
            alike = self._suiting.get(Wants(mig_profile=wants.mig_profile), [])
            found = [slot for slot in alike if wants.accepts_gpu(slot.model, slot.memory_mib, slot.mig_profile)]
            self._suiting[wants] = found
        return found

    def could_ever(self, resources: Resources) -> bool:
        """The job would fit if the host were idle."""
        return any(next(self.lacking(option), None) is None for option in resources.options)

    def lacking(self, option: Resources) -> Iterator[Lack]:
        """Yield what keeps the host from ever granting one option of a job, however idle it is."""
        wants = option.wants or _NO_WANTS
        for name, value in wants.labels:
            if self.labels.get(name) != value:
                yield Lack(1.0, f"is not labelled {name}={value}")
        if wants.cpus > self.cpus:
            yield Lack(1 - self.cpus / wants.cpus, f"offers {self.cpus} CPUs")
        if wants.host_memory_mib > self.memory_mib:
            yield Lack(1 - self.memory_mib / wants.host_memory_mib, f"offers {self.memory_mib} MiB of memory")
        if not option.gpus:
            if not self.cpu_slots:
                yield Lack(1.0, "has no CPU slots")
            return
        such, kind = self.suiting(option.wants), "" if option.wants is None else " such"
        if option.gpu_memory_mib is None:
            if len(such) < option.gpus:
                yield Lack(1 - len(such) / option.gpus, f"has {len(such)}" if such else f"has no{kind} GPU")
            return
        largest = max((slot.share_mib for slot in such), default=0)
        if largest < option.gpu_memory_mib:
            words = f"has {largest} MiB on the largest{kind} GPU" if such else f"has no{kind} GPU"
            yield Lack(1 - largest / option.gpu_memory_mib, words)

    def has_room(self, wants: Wants | None) -> bool:
        """The host meets the conditions on hosts now."""
        return wants is None or (
            wants.cpus <= self.cpus_free
            and wants.host_memory_mib <= self.memory_free_mib
            and wants.accepts_labels(self.labels)
        )

    def take(self, resources: Resources, *, kept_too: bool = False) -> tuple[Slot, ...] | None:
        """Use up what the job needs, its best fit on this host, and return its GPUs; None when it does not fit.

        Args:
            resources: One option of a job's.
            kept_too: Take no notice of what is kept for jobs ahead; nothing is used up then.
        """
        chosen = self._choose(resources, kept_too=kept_too) if self.has_room(resources.wants) else None
        if chosen is None or kept_too:
            return chosen
        if resources.wants is not None:
            self.cpus_free -= resources.wants.cpus
            self.memory_free_mib -= resources.wants.host_memory_mib
        if not resources.gpus:
            self.cpu_free -= 1
        for slot in chosen:
            if resources.gpu_memory_mib is None:
                slot.take_whole()
            else:
                slot.take_share(resources.gpu_memory_mib)
        return chosen

    def _choose(self, resources: Resources, *, kept_too: bool) -> tuple[Slot, ...] | None:
        need = resources.gpu_memory_mib
        if not resources.gpus:
            return () if self.cpu_free > 0 else None
        usable = [slot for slot in self.suiting(resources.wants) if not slot.exclusive and (kept_too or not slot.kept)]
        if need is not None:
            fitting = [slot for slot in usable if slot.free_mib >= need]
            return (min(fitting, key=lambda slot: (slot.whole, slot.free_mib)),) if fitting else None
        unused = {slot.uuid: slot for slot in usable if slot.unused}
        if len(unused) < resources.gpus:
            return None
        return tuple(unused[uuid] for uuid in choose([slot.place for slot in unused.values()], resources.gpus))

    def best_bond(self, resources: Resources) -> Bond | None:
        """Return what would hold together the whole GPUs that ``take`` gave a job now; None if it does not fit."""
        if not self.has_room(resources.wants):
            return None
        free = [slot.place for slot in self.suiting(resources.wants) if slot.whole]
        return closest_bond(free, resources.gpus) if len(free) >= resources.gpus else None
