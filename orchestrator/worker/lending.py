"""What this host lends to holders without a job: its idle runners make way, and the holder is told when they have."""

import logging
from collections.abc import Callable, Mapping, Sequence

from orchestrator.domain.cluster import GpuOrder
from orchestrator.guardian.messages import Cleared
from orchestrator.worker.runners import Runners

logger = logging.getLogger(__name__)


class Lending:
    """The leases that wait for this host's word, and the GPUs that are lent.

    Their GPUs are the holder's already by the database, so nothing new is started on them here.
    """

    def __init__(self) -> None:
        self.confirm: Callable[[int, str | None], None]  # set by the lease step: writes that word
        self._clearing: dict[int, list[str]] = {}  # by lease: its GPUs
        self._said: dict[int, str | None] = {}  # until the database shows that it has it
        self._lent: frozenset[str] = frozenset()

    def heed(self, orders: Mapping[str, GpuOrder], runners: Runners) -> None:
        """Begin to clear what is newly lent; have what was given back read anew before anybody else gets it."""
        lent = frozenset(uuid for uuid, order in orders.items() if order.lent or order.lent_mib)
        if returned := sorted(self._lent - lent):
            runners.guardian.note_use(returned)
        self._lent = lent
        waiting: dict[int, list[str]] = {}
        for uuid, order in sorted(orders.items()):
            for lease_id in order.unready:
                waiting.setdefault(lease_id, []).append(uuid)
        for lease_id in self._clearing.keys() - waiting.keys():
            del self._clearing[lease_id]
            runners.guardian.drop_clearance(lease_id)
        self._said = {lease_id: said for lease_id, said in self._said.items() if lease_id in waiting}
        for lease_id, gpus in waiting.items():
            if lease_id in self._said:
                self.confirm(lease_id, self._said[lease_id])  # the database was away, or this was read before it
            elif lease_id not in self._clearing:
                self._clearing[lease_id] = gpus
                evicted = runners.evict(tuple(gpus), keep=None)
                runners.guardian.clear(lease_id, gpus, exclusive=orders[gpus[0]].lent, after=evicted)

    def on_cleared(self, cleared: Cleared) -> Sequence[str]:
        """The guardian has made sure that nothing is left, or cannot; return the GPUs that were handed over."""
        gpus = self._clearing.pop(cleared.lease_id, None)
        if gpus is None:
            return ()
        self._said[cleared.lease_id] = cleared.refusal
        if cleared.refusal is not None:
            logger.warning("lease %d is refused: %s", cleared.lease_id, cleared.refusal)
        self.confirm(cleared.lease_id, cleared.refusal)
        return gpus if cleared.refusal is None else ()
