"""Firings of beat's schedule: kept in the database, written under the leader's epoch."""

from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.errors import NotLeading
from orchestrator.schedule_ports import Firing
from orchestrator.storage.firings import SqlFirings
from tests.contract.conftest import Stores

AT = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=UTC)
LATER = AT + timedelta(minutes=1)


def test_a_firing_is_noted_before_and_after_it_is_sent(stores: Stores) -> None:
    firings, epoch = SqlFirings(stores.database), stores.lead()
    firings.begin({"a": AT, "b": AT}, epoch=epoch)
    firings.fire("a", LATER, "first", epoch=epoch)
    assert firings.load() == {"a": Firing(LATER, "first", is_sent=False), "b": Firing(AT, None, is_sent=True)}
    firings.sent("a", "another")
    assert not firings.load()["a"].is_sent
    firings.sent("a", "first")

    assert firings.load()["a"] == Firing(LATER, "first", is_sent=True)
    firings.begin({"a": AT}, epoch=epoch)
    assert firings.load()["a"].fired_at == LATER, "what is known stays"


def test_a_leader_that_was_replaced_notes_nothing(stores: Stores) -> None:
    firings = SqlFirings(stores.database)
    old = stores.leadership.campaign("old", ttl=timedelta(seconds=-1)).epoch
    new = stores.leadership.campaign("new", ttl=timedelta(seconds=30)).epoch
    firings.begin({"a": AT}, epoch=new)
    for attempt in (
        lambda: firings.fire("a", LATER, "x", epoch=old),
        lambda: firings.begin({"b": AT}, epoch=old),
    ):
        with pytest.raises(NotLeading):
            attempt()

    assert firings.load() == {"a": Firing(AT, None, is_sent=True)}
