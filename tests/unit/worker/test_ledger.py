"""The thread that commits, over a store that fails as a test says."""

from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest

from orchestrator.domain.cluster import NodeState
from orchestrator.domain.lease import LedgerBatch, LedgerOutcome
from orchestrator.errors import StoreUnavailable
from orchestrator.testing.clock import FakeClock
from orchestrator.worker.ledger import Ledger
from tests.support.waiting import wait_for


class Store:
    """Takes batches, but for as many times as it is told to fail."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.failures = 0
        self.released: list[int] = []
        self.troubles: list[float | None] = []

    def commit(self, node: str, batch: LedgerBatch, *, ttl: timedelta) -> LedgerOutcome:
        """Take the releases."""
        if self.failures:
            self.failures -= 1
            raise StoreUnavailable("down")
        self._clock.advance(7)
        self.released += batch.releases
        return LedgerOutcome()

    def heartbeat(self, node: str, samples: Sequence[Any], *, trouble_seconds: float | None, **_: Any) -> NodeState:
        """Remember what it says of trouble."""
        self.troubles.append(trouble_seconds)
        return NodeState.UP

    def note_gpu_standings(self, *_: Any) -> dict[str, Any]:
        """Nobody has ordered anything."""
        return {}


@pytest.fixture
def store() -> Store:
    return Store(FakeClock())


@pytest.fixture
def ledger(store: Store) -> Iterator[Ledger]:
    made = Ledger(
        store=cast("Any", store),
        cluster=cast("Any", store),
        node="alpha",
        ttl=timedelta(seconds=15),
        clock=store._clock,
        listener=cast("Any", None),
        post=lambda _: None,
        before_outcome=lambda *_: None,
    )
    made.start()
    yield made
    assert made.stop(10)


def test_trouble_is_told_once_with_the_heartbeat_that_gets_through(ledger: Ledger, store: Store) -> None:
    """Not by the one that fails with it: as long as the database does not answer, nothing can be told."""
    store.failures = 2
    ledger.add(releases=(1,))
    wait_for(lambda: store.released, within_seconds=10, describe="the release to be committed")

    for count in (1, 2):
        ledger.heartbeat((), look_ahead=0, standings={})
        wait_for(lambda count=count: len(store.troubles) == count, within_seconds=10, describe="a heartbeat")
    assert store.troubles == [7.0, None]
    assert not ledger.degraded
