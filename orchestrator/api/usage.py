"""The endpoint of accounting."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from orchestrator.api import answers
from orchestrator.api.dependencies import Given
from orchestrator.api.guard import Caller
from orchestrator.api.instants import Instant
from orchestrator.domain.usage import Usage, UsageKey, fold_usage
from orchestrator.errors import InvalidRequest

#: What is told when no window is named.
DEFAULT_WINDOW: Final = timedelta(days=7)
#: No lease is older; and there is an instant a week before.
EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)

routes = APIRouter(tags=["usage"])


@routes.get("/usage", responses=answers.answers(answers.Usage))
def usage(
    given: Given,
    caller: Caller,
    by: UsageKey = UsageKey.TENANT,
    since: Annotated[Instant | None, Query(description="Default: seven days before `until`.")] = None,
    until: Annotated[Instant | None, Query(description="Default: now.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> Any:
    """Sum up the GPU-seconds that leases held, that their GPUs were busy, and that did not lead to a success."""
    store = given.runtime.usage
    now = store.now()
    end = max(EARLIEST, min(until or now, now))
    begin = max(EARLIEST, since or end - DEFAULT_WINDOW)
    if begin >= end:
        raise InvalidRequest("since must be before until, and in the past")
    leases = store.leases(since=begin, until=end)
    rows, total = fold_usage(leases, by=by, since=begin, until=end, tenant=caller.tenant)
    return {
        "by": by.value,
        "since": begin.isoformat(),
        "until": end.isoformat(),
        "usage": [usage_document(row) for row in rows[:limit]],
        "left_out": max(0, len(rows) - limit),
        "total": usage_document(total),
    }


def usage_document(row: Usage) -> dict[str, Any]:
    """Return the sums of one key."""
    return {
        "key": row.key,
        "jobs": len(row.jobs),
        "attempts": row.attempts,
        "gpu_seconds": round(row.leased, 3),
        "busy_gpu_seconds": round(row.busy, 3),
        "wasted_gpu_seconds": round(row.wasted, 3),
    }
