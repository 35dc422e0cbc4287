"""What goes wrong with worker pools: three more leaves of the tree in ``errors``."""

from orchestrator.errors import Conflict, FaultyRequest, UnknownThing


class InvalidPool(FaultyRequest):
    """A pool, or a change of one, is wrong in one or more ways; all faults are reported together."""

    code = "invalid-pool"


class UnknownPool(UnknownThing):
    """There is no pool of this name."""

    code = "unknown-pool"
    kind = "pool"


class PoolExists(Conflict):
    """A pool of this name serves, and is another one than was asked for."""

    code = "pool-exists"
    says = "pool {0!r} exists and differs: {1}; scale it, swap its model, or stop it first"
