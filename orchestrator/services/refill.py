"""Refilling a host that has room from the jobs that wait, in policy order."""

from dataclasses import replace

from orchestrator.errors import StreamUnavailable
from orchestrator.runtime import Runtime
from orchestrator.scheduling.plan import Policy, plan


def refill(runtime: Runtime, node: str, *, limit: int) -> int:
    """Admit up to ``limit`` waiting jobs for this host and publish their entries; return how many.

    ``limit`` is what the host's own worker says that it can use now, which is fresher than the look-ahead of its last
    heartbeat. Cheap when nothing waits.
    """
    snapshot = runtime.ledger.host_snapshot(node, limit=limit)
    if not snapshot.candidates:
        return 0
    hosts = tuple(replace(host, look_ahead=limit) for host in snapshot.hosts)
    decided = plan(replace(snapshot, hosts=hosts), runtime.clock.now(), Policy(most_admissions=limit))
    entries = runtime.ledger.admit([(admission.seq, admission.node) for admission in decided.admissions])
    try:
        runtime.publisher.publish(entries)
    except StreamUnavailable:
        return 0  # admitted all the same: the leader publishes what nobody has claimed
    return len(entries)
