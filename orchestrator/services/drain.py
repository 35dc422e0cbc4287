"""Take a host out of service, and back."""

import logging

from orchestrator.domain.cluster import DrainOutcome
from orchestrator.errors import StreamUnavailable
from orchestrator.runtime import Runtime

logger = logging.getLogger(__name__)


def set_drain(runtime: Runtime, node: str, *, drain: bool, by: str) -> DrainOutcome:
    """Have a host take nothing new and let what runs end, or take jobs again; repeating it changes nothing.

    Its worker is told at once, and hears it from the database with its next heartbeat if that message is lost. What was
    placed on the host and has not started goes elsewhere.

    Raises:
        UnknownNode: If no such host has ever registered.
        StoreUnavailable: If the database does not answer.
    """
    outcome = runtime.cluster.set_drain(node, drain=drain, by=by)
    try:
        runtime.wake.publish("drain", node=node)
        runtime.wake.publish("place")
    except StreamUnavailable as error:
        logger.info("host %s hears of its drain with its next heartbeat: %s", node, error)
    return outcome
