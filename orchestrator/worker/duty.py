"""Whether this host takes new jobs."""

import logging

from orchestrator.domain.cluster import NodeState

logger = logging.getLogger(__name__)


class Duty:
    """A host takes jobs from its registration until it is told to drain, or ends; a drain can be taken back."""

    def __init__(self) -> None:
        self.registered = False
        self.draining = False
        self.ending = False

    @property
    def accepting(self) -> bool:
        """New jobs may be claimed and delivered."""
        return self.registered and not (self.draining or self.ending)

    def heed(self, state: NodeState) -> bool:
        """Take in what the database says of the host; return whether a drain begins or ends with it.

        A host that is called lost is only late: what it may take does not change.
        """
        if state is NodeState.LOST:
            return False
        draining = state in (NodeState.DRAINING, NodeState.DRAINED)
        if draining == self.draining:
            return False
        self.draining = draining
        logger.warning("this host drains: it takes no new job" if draining else "this host takes jobs again")
        return True
