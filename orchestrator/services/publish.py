"""Publish entries of admitted jobs, which is a short cut: whatever does not get through, the leader publishes later."""

import logging
from collections.abc import Sequence

from orchestrator import failpoints
from orchestrator.domain.entry import JobEntry
from orchestrator.errors import StreamUnavailable
from orchestrator.stream_ports import StreamPublisher

logger = logging.getLogger(__name__)


def publish_admitted(publisher: StreamPublisher, entries: Sequence[JobEntry]) -> int:
    """Publish entries and return how many got into their streams: all of them or none."""
    if not entries:
        return 0
    failpoints.reach("publish.before")
    try:
        publisher.publish(entries)
    except StreamUnavailable as error:
        logger.warning("%d admitted jobs are left to the leader to publish: %s", len(entries), error)
        return 0
    failpoints.reach("publish.after")
    return len(entries)
