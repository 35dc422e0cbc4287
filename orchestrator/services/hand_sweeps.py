"""Run a sweep by hand: one pass, now, in the name of whoever leads.

Every sweep may run twice at once, and its writes carry the leader's epoch: one pass more beside the leader's own
changes nothing that it would not have changed itself. Without a leader the pass is run under a term of its own.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from orchestrator.domain.sweep import SweepTally
from orchestrator.errors import NotLeading, Unavailable, UnknownSweep
from orchestrator.runtime import Runtime
from orchestrator.services.lead import holder_name
from orchestrator.services.sweeps import Sweep, Sweeps

#: What ``reclaim`` runs: whatever gives work back that somebody took and does not do.
RECLAIM: Final = ("expire_leases", "lose_nodes", "heal_rows", "heal_streams", "release_due", "publish_due", "admit")


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass that ended well."""

    name: str
    did: int
    seconds: float
    more: bool  # it used up its bound: there may be more to do
    epoch: int


def sweep_table(runtime: Runtime) -> tuple[Sweep, ...]:
    """Return every sweep, most urgent first."""
    return Sweeps(runtime, by_hand=True).table()


def sweep_by_hand(runtime: Runtime, *names: str) -> list[Pass]:
    """Run one pass of each sweep, in order.

    Raises:
        UnknownSweep: If there is no sweep of one of the names; then none has run.
        NotLeading: If leaders changed during each of two tries.
        Unavailable: If the database or Redis does not answer.
    """
    table = {sweep.name: sweep for sweep in sweep_table(runtime)}
    unknown = [name for name in names if name not in table]
    if unknown:
        raise UnknownSweep(unknown[0], tuple(table))
    try:
        return _run(runtime, [table[name] for name in names])
    except NotLeading:  # somebody took over meanwhile; what ran may run again
        return _run(runtime, [table[name] for name in names])


def _run(runtime: Runtime, sweeps: list[Sweep]) -> list[Pass]:
    with _epoch(runtime) as epoch:
        return [_pass(runtime, sweep, epoch) for sweep in sweeps]


def _pass(runtime: Runtime, sweep: Sweep, epoch: int) -> Pass:
    tally, began = SweepTally(), runtime.clock.monotonic()
    try:
        did = sweep.run(epoch)
    except Unavailable as error:
        tally.note(0, seconds=runtime.clock.monotonic() - began, error=str(error))
        runtime.sweep_log.note({sweep.name: tally}, epoch=epoch)
        raise
    seconds = runtime.clock.monotonic() - began
    tally.note(did, seconds=seconds)
    runtime.sweep_log.note({sweep.name: tally}, epoch=epoch)
    return Pass(sweep.name, did, seconds, did >= sweep.batch, epoch)


@contextmanager
def _epoch(runtime: Runtime) -> Iterator[int]:
    """Give the epoch of the current leader, or of a term of our own for as long as it takes."""
    term = runtime.leadership.current()
    if term is not None:
        yield term.epoch
        return
    holder = holder_name()
    term = runtime.leadership.campaign(holder, ttl=timedelta(seconds=runtime.settings.leader_ttl))
    try:
        yield term.epoch
    finally:
        if term.mine:
            runtime.leadership.resign(holder, term.epoch)
