"""Ad hoc leases: GPUs without a job, as long as their holder renews them."""

import hashlib
import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.domain.adhoc import RENEWALS_PER_TTL, AdHocLease, LeaseRequest, lease_digest, lease_resources
from orchestrator.domain.cluster import NodeState
from orchestrator.domain.job import Resources
from orchestrator.domain.lease import LeaseGrant
from orchestrator.errors import LeaseLost, NoGpuFree, StreamUnavailable
from orchestrator.lease_ports import Holder
from orchestrator.ports import NodeRecord
from orchestrator.runtime import Runtime
from orchestrator.scheduling.hosts import Host
from orchestrator.services.feasibility import require_satisfiable
from orchestrator.services.host_views import host_view
from orchestrator.services.job_control import tell_placers

logger = logging.getLogger(__name__)

#: A host may wait so long for the device locks, beside ``gpu_clean_wait`` for the memory, and has so long to answer.
LOCK_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 5.0
TOKEN_PREFIX: Final = "lease_"  # noqa: S105 - no secret


@dataclass(frozen=True, slots=True)
class Granted:
    """A lease, and the token that proves who holds it; it is told this once."""

    lease: AdHocLease
    token: str
    created: bool = True  # False: it was granted before, under the same key


@dataclass(slots=True)
class Handover:
    """GPUs that were taken for somebody, who may use them once their host has confirmed that nothing else is on them.

    Instants are monotonic.
    """

    lease: AdHocLease
    token: str
    renewed_at: float
    deadline: float
    created: bool = True  # False: it was granted before, under the same key


class LeaseService:
    """Grants, renews and ends leases; safe to share between threads."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def take(self, request: LeaseRequest) -> Handover:
        """Take the GPUs that are asked for on the first host where they are free, and have it clear them.

        Nobody may use them before ``settle`` has returned the lease; a caller that gives up has to ``release`` it.

        As long as a lease lives, its key names it: the same request again is given it, under a new token, since the
        old one is stored as a hash alone and cannot be told again.

        Raises:
            IdempotencyConflict: If the key was used with another request.
            InvalidRequest: If the request makes no sense.
            UnsatisfiableRequest: If no registered host could ever grant it.
            NoGpuFree: If none can now, with what each lacks.
            StoreUnavailable: If the database does not answer.
        """
        resources = lease_resources(request)
        token = TOKEN_PREFIX + secrets.token_urlsafe(24)
        name, digest = request.name or request.holder, lease_digest(request)
        holder = Holder(name, request.tenant, request.holder, token_hash(token), request.key, digest)
        if (lease := self._runtime.leases.again(holder)) is not None:
            return self._begin(lease, token, created=False)
        nodes = self._runtime.cluster.nodes()
        if not nodes:
            raise NoGpuFree(("no host is registered",))
        require_satisfiable(resources, nodes)
        if not self._runtime.policy.get().values.safe_mode:
            for node, grant in _candidates(nodes, resources):
                lease = self._runtime.leases.grant(node, grant, holder, ttl=timedelta(seconds=request.ttl_seconds))
                if lease is not None:
                    return self._begin(lease, token)
            raise NoGpuFree(tuple(_lacking(node, resources) for node in nodes))
        raise NoGpuFree(("safe mode: no lease is granted",))

    def settle(self, handover: Handover) -> Granted | None:
        """Return the lease once its host has confirmed it; None while it has not said anything.

        Raises:
            NoGpuFree: If it cannot, or has not in time, with the reason; the lease is released.
            LeaseLost: If the lease was ended meanwhile.
            StoreUnavailable: If the database does not answer.
        """
        lease, now = self._runtime.leases.find(token_hash(handover.token)), self._runtime.clock.monotonic()
        if lease.state != "active":
            raise LeaseLost(lease.id)
        if lease.ready_at is not None:
            return Granted(self.renew(handover.token), handover.token, handover.created)
        if lease.refusal is None and now < handover.deadline:
            if now - handover.renewed_at > lease.ttl_seconds / RENEWALS_PER_TTL:
                self.renew(handover.token)
                handover.renewed_at = now
            return None
        self.release(handover.token, by=lease.node)
        silent = f"its worker did not confirm in {self._longest_wait():g} s that {', '.join(lease.gpus)} is free"
        raise NoGpuFree((f"{lease.node}: {lease.refusal or silent}",))

    def renew(self, token: str, *, tenant: str | None = None) -> AdHocLease:
        """Extend a lease, with a tenant one of that tenant alone; raises ``UnknownLease`` or ``LeaseLost``."""
        return self._runtime.leases.renew(token_hash(token), tenant=tenant)

    def release(self, token: str, *, tenant: str | None = None, by: str) -> AdHocLease:
        """End a lease, named by its token, with a tenant one of that tenant alone; raises ``UnknownLease``."""
        lease = self._runtime.leases.release(token_hash(token), tenant=tenant, by=by)
        tell_placers(self._runtime)
        return lease

    def end(self, lease_id: int, *, by: str) -> AdHocLease:
        """End somebody's lease, named by its number: its holder finds out when it next renews."""
        lease = self._runtime.leases.release(None, lease_id=lease_id, by=by)
        tell_placers(self._runtime)
        return lease

    def _begin(self, lease: AdHocLease, token: str, *, created: bool = True) -> Handover:
        try:
            self._runtime.wake.publish("lend", node=lease.node)
        except StreamUnavailable as error:
            logger.info("host %s hears of lease %d with its next heartbeat: %s", lease.node, lease.id, error)
        now = self._runtime.clock.monotonic()
        return Handover(lease, token, now, now + self._longest_wait(), created)

    def _longest_wait(self) -> float:
        return LOCK_SECONDS + self._runtime.settings.gpu_clean_wait + ANSWER_SECONDS


def token_hash(token: str) -> str:
    """Return what is stored of a token; it is random and long, so a plain hash does."""
    return hashlib.sha256(token.encode()).hexdigest()


def _candidates(nodes: Sequence[NodeRecord], resources: Resources) -> list[tuple[str, LeaseGrant]]:
    """Return where the GPUs would be free now, by option and then by host."""
    found = []
    for option in resources.options:
        for number, node in enumerate(nodes):
            if not (node.live and node.state is NodeState.UP and not node.drain):
                continue
            slots = Host(host_view(node, idle=False), number).take(option)
            if slots:
                uuids = tuple(slot.uuid for slot in slots)
                found.append((node.name, LeaseGrant(uuids, option.mode, option.gpu_memory_mib)))
    return found


def _lacking(node: NodeRecord, resources: Resources) -> str:
    if not node.live:
        return f"{node.name} has no live worker"
    if node.state is not NodeState.UP or node.drain:
        return f"{node.name} is {node.state.value}"
    if not any(Host(host_view(node, idle=False), 0).could_ever(option) for option in resources.options):
        return f"{node.name} has no such GPUs"
    host = Host(host_view(node, idle=False), 0)
    if resources.gpu_memory_mib is not None:
        largest = max((slot.free_mib for slot in host.suiting(resources.wants)), default=0)
        return f"{node.name} has {largest} MiB free on one GPU"
    free = sum(slot.whole for slot in host.suiting(resources.wants))
    return f"{node.name} has {free} of {resources.gpus} such GPUs free"
