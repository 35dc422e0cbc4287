"""Refilling a host that has room from the jobs that wait, in policy order."""

from orchestrator.errors import StreamUnavailable
from orchestrator.runtime import Runtime


def refill(runtime: Runtime, node: str, *, limit: int) -> int:
    """Admit up to ``limit`` waiting jobs for this host and publish their entries; return how many."""
    snapshot = runtime.ledger.host_snapshot(node, limit=limit)
    if not snapshot.candidates:
        return 0
    entries = runtime.ledger.admit([(candidate.seq, node) for candidate in snapshot.candidates[:limit]])
    try:
        runtime.publisher.publish(entries)
    except StreamUnavailable:
        return 0  # admitted all the same: the leader publishes them
    return len(entries)
