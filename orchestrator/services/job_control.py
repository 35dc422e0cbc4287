"""Orders about jobs, given singly or many at once: priority, hold, release, retry."""

import logging
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from orchestrator.control_ports import JobChange
from orchestrator.errors import InvalidRequest, StreamUnavailable
from orchestrator.runtime import Runtime

logger = logging.getLogger(__name__)


class Order(StrEnum):
    """What can be asked of a job that does not run."""

    PRIORITY = "priority"
    HOLD = "hold"
    RELEASE = "release"
    RETRY = "retry"


@dataclass(frozen=True, slots=True)
class JobOrder:
    """An order, and the priority if it is about that."""

    order: Order
    priority: int | None = None

    def __post_init__(self) -> None:
        if (self.order is Order.PRIORITY) != (self.priority is not None):
            raise InvalidRequest("give a priority to change the priority, and else none")


def give(runtime: Runtime, order: JobOrder, job_id: str, *, by: str) -> JobChange:
    """Carry an order out; who places jobs is told when one may start now.

    Raises:
        UnknownJob: If there is no such job.
        Conflict: If the job's state does not allow it.
        StoreUnavailable: If the database does not answer.
    """
    change = _carry_out(runtime, order, job_id, by)
    if change.changed and order.order is not Order.HOLD:
        tell_placers(runtime)
    return change


def tell_placers(runtime: Runtime) -> None:
    """Have the leader make a pass now rather than with its next round."""
    try:
        runtime.wake.publish("place")
    except StreamUnavailable as error:
        logger.info("the next scheduling pass comes by itself: %s", error)


def _carry_out(runtime: Runtime, order: JobOrder, job_id: str, by: str) -> JobChange:
    control = runtime.control
    match order.order:
        case Order.PRIORITY:
            assert order.priority is not None
            return control.set_priority(job_id, order.priority, by=by)
        case Order.HOLD:
            return control.hold(job_id, by=by)
        case Order.RELEASE:
            return control.unhold(job_id, by=by)
        case Order.RETRY:
            return control.retry(job_id, by=by)
        case _:
            assert_never(order.order)
