"""What must hold of leases, of the GPUs that they hold, and of the leaders that end them."""

from collections.abc import Iterable, Iterator

from orchestrator.domain.history import Event, GpuRow, Hold, LeaseRow
from orchestrator.domain.job import LeaseMode
from orchestrator.testing.invariants import Violation

#: The event that begins a term.
TERM = "leader"


def check_lease(lease: LeaseRow) -> Iterator[Violation]:
    """Yield what does not hold of one lease."""
    subject = f"lease {lease.id}"
    if (lease.ended_at is None) != (lease.state == "active"):
        yield Violation("lease-consistent", subject, f"is {lease.state} and ended at {lease.ended_at}")
    if lease.ended_at is not None and lease.heartbeat_at > lease.ended_at:
        seen = f"ended at {lease.ended_at.isoformat()} and was renewed at {lease.heartbeat_at.isoformat()}"
        yield Violation("ended-lease-rests", subject, seen)
    if lease.state == "expired" and lease.ended_at is not None and lease.ended_at < lease.expires_at:
        seen = f"expired at {lease.ended_at.isoformat()}, though live until {lease.expires_at.isoformat()}"
        yield Violation("expired-past-end", subject, seen)


def check_gpu(gpu: GpuRow, holds: Iterable[Hold]) -> Iterator[Violation]:
    """Yield what does not hold of one GPU; ``holds`` are all of them by turn and lease.

    A turn is counted under the GPU's row lock, so the order is the one in which the grants took effect, whatever any
    clock said.
    """
    subject = f"gpu {gpu.uuid}"
    live: list[Hold] = []  # held at the turn that is looked at
    last_token = 0
    for hold in holds:
        live = [one for one in live if one.freed_turn is None or one.freed_turn > hold.taken_turn]
        yield from _check_overlap(subject, gpu, live, hold)
        if hold.lease_id <= last_token:
            seen = f"lease {hold.lease_id} at turn {hold.taken_turn}, after lease {last_token}"
            yield Violation("gpu-tokens-grow", subject, seen)
        last_token = max(last_token, hold.lease_id)
        yield from _check_hold(subject, hold)
        live.append(hold)
    yield from _check_gpu_row(subject, gpu, [hold for hold in live if hold.freed_turn is None], last_token)


def _check_overlap(subject: str, gpu: GpuRow, live: list[Hold], hold: Hold) -> Iterator[Violation]:
    for other in live:
        if LeaseMode.EXCLUSIVE in (hold.mode, other.mode):
            seen = (
                f"lease {hold.lease_id} ({hold.mode.value}) while lease {other.lease_id} ({other.mode.value}) held it"
            )
            yield Violation("gpu-exclusive", subject, seen, f"turn {hold.taken_turn}")
    reserved = sum(one.memory_mib or 0 for one in (*live, hold) if one.mode is LeaseMode.SHARED)
    if reserved > gpu.memory_mib:
        seen = f"{reserved} MiB reserved of {gpu.memory_mib}, the last of it by lease {hold.lease_id}"
        yield Violation("gpu-capacity", subject, seen, f"turn {hold.taken_turn}")


def _check_hold(subject: str, hold: Hold) -> Iterator[Violation]:
    is_active = hold.lease_state == "active"
    if (hold.freed_turn is None) != is_active:
        seen = f"lease {hold.lease_id} is {hold.lease_state}, and it was {'not ' if is_active is False else ''}freed"
        yield Violation("lease-consistent", subject, seen, f"turn {hold.taken_turn}")
    if hold.is_marked != (is_active and hold.mode is LeaseMode.EXCLUSIVE):
        marked = "is marked as its live holder" if hold.is_marked else "is not marked as its live holder"
        seen = f"lease {hold.lease_id} ({hold.mode.value}, {hold.lease_state}) {marked}"
        yield Violation("lease-consistent", subject, seen, f"turn {hold.taken_turn}")


def _check_gpu_row(subject: str, gpu: GpuRow, held: list[Hold], last_token: int) -> Iterator[Violation]:
    exclusive = [hold.lease_id for hold in held if hold.mode is LeaseMode.EXCLUSIVE]
    reserved = sum(hold.memory_mib or 0 for hold in held if hold.mode is LeaseMode.SHARED)
    named = [] if gpu.exclusive_lease_id is None else [gpu.exclusive_lease_id]
    if named != exclusive:
        yield Violation("gpu-row-agrees", subject, f"its row names lease {gpu.exclusive_lease_id}, held by {exclusive}")
    if gpu.reserved_mib != reserved:
        yield Violation("gpu-row-agrees", subject, f"its row reserves {gpu.reserved_mib} MiB, its leases {reserved}")
    if gpu.last_lease_id < last_token:
        seen = f"its row remembers lease {gpu.last_lease_id}, it was held by lease {last_token}"
        yield Violation("gpu-tokens-grow", subject, seen)


def check_leaders(events: Iterable[Event]) -> Iterator[Violation]:
    """Yield what does not hold of the terms; ``events`` are those with an epoch, in the order of writing.

    A term begins and a sweep writes under a lock of the same row, so the order of writing is that of their commits.
    """
    current: int | None = None
    for event in events:
        if event.kind == TERM:
            if current is not None and event.epoch != current + 1:
                seen = f"a term begins after epoch {current}: {event.data}"
                yield Violation("one-leader", f"epoch {event.epoch}", seen, f"event {event.seq}")
            current = event.epoch
        elif event.epoch != current:
            subject = f"job seq {event.job_seq}" if event.job_seq else f"lease {event.lease_id} of {event.node}"
            seen = f"wrote {event.kind} of {subject} in the term of epoch {current}"
            yield Violation("fenced-sweeps", f"epoch {event.epoch}", seen, f"event {event.seq}")
