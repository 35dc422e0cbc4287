"""Refill a host that has room from the jobs that wait, in policy order."""

from dataclasses import replace
from typing import Final

from orchestrator.domain.cluster import NodeState
from orchestrator.ports import NodeRecord
from orchestrator.runtime import Runtime
from orchestrator.scheduling.plan import Policy, plan
from orchestrator.scheduling.snapshot import HostView
from orchestrator.services.feasibility import KnownHosts
from orchestrator.services.host_views import host_view
from orchestrator.services.publish import publish_admitted

#: Candidates looked at beyond the room there is, so that a job that does not fit hides none that does.
LOOKED_AT: Final = 32


class Refill:
    """Refills one host; called by its worker's ledger thread after it freed something, and cheap when nothing waits."""

    def __init__(self, runtime: Runtime, node: str) -> None:
        self._runtime, self._node = runtime, node
        self._hosts = KnownHosts(runtime.cluster.nodes, runtime.clock)

    def __call__(self, limit: int) -> int:
        """Admit up to ``limit`` waiting jobs for the host, publish their entries, and return how many were admitted.

        Raises:
            StoreUnavailable: If the database does not answer.
        """
        if limit <= 0:
            return 0
        runtime = self._runtime
        snapshot = runtime.ledger.host_snapshot(self._node, limit=limit + LOOKED_AT)
        if not snapshot.candidates:
            return 0
        others = (node for node in self._hosts.nodes() if node.name != self._node and _takes_jobs(node))
        peers = tuple(host_view(node, idle=True) for node in others)
        snapshot = replace(snapshot, hosts=tuple(_with_fresh_look_ahead(host, limit) for host in snapshot.hosts))
        made = plan(snapshot, runtime.clock.now(), Policy(most_admissions=limit, peers=peers))
        if not made.admissions:
            return 0
        entries = runtime.ledger.admit([(admission.seq, admission.node) for admission in made.admissions])
        publish_admitted(runtime.publisher, entries)
        return len(entries)


def _with_fresh_look_ahead(host: HostView, limit: int) -> HostView:
    """Take what the worker wants beyond its idle capacity for look-ahead, if it is more than its last heartbeat said.

    The idle capacity itself is no look-ahead: a gang must not be admitted onto GPUs of which some are still busy.
    """
    return replace(host, look_ahead=max(host.look_ahead, limit - host.idle))


def _takes_jobs(node: NodeRecord) -> bool:
    return node.live and node.state is NodeState.UP
