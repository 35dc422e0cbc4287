"""Registered hosts as a plan sees them."""

from orchestrator.domain.cluster import GpuHealth, GpuRecord
from orchestrator.ports import NodeRecord
from orchestrator.scheduling.snapshot import GpuView, HostView


def host_view(node: NodeRecord, *, idle: bool) -> HostView:
    """Return a host that takes jobs; ``idle``: as if nobody had any of it."""
    return HostView(
        node=node.name,
        accepts=True,
        gpus=tuple(_gpu_view(record, idle=idle) for record in node.gpus),
        queues=frozenset(node.queues),
        cpu_slots=node.cpu_slots,
        cpu_jobs=0,
        look_ahead=0,
        labels=tuple(sorted(node.labels.items())),
        cpus=node.cpus,
        memory_mib=node.memory_mib,
    )


def _gpu_view(record: GpuRecord, *, idle: bool) -> GpuView:
    return GpuView(
        uuid=record.gpu.uuid,
        index=record.gpu.index,
        model=record.gpu.model,
        memory_mib=record.gpu.memory_mib,
        reserved_mib=0 if idle else record.reserved_mib,
        exclusive=not idle and record.exclusive_lease_id is not None,
        healthy=record.health is GpuHealth.HEALTHY,
        mig_profile=record.gpu.mig_profile,
        foreign_mib=record.foreign.used_mib,
        clean=record.foreign.clean,
        headroom_mib=record.headroom_mib,
        numa=record.gpu.numa,
        links=record.gpu.links,
    )
