"""What a leader's lock tells the standbys: each candidate here is a process of its own, as far as the database sees."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from orchestrator.errors import NotLeading
from orchestrator.storage.engine import open_database
from orchestrator.storage.leadership import SqlLeadership
from orchestrator.storage.session_lock import NoLock
from tests.contract.conftest import TTL, Stores
from tests.support.waiting import wait_for


class Candidate:
    """A process that may lead."""

    def __init__(self, url: str, name: str, *, without_lock: bool = False) -> None:
        self.name, self._database = name, open_database(url)
        self.leadership = SqlLeadership(self._database, lock=NoLock() if without_lock else None)

    def campaign(self) -> int | None:
        """Campaign; return the epoch of the term if it is ours."""
        term = self.leadership.campaign(self.name, ttl=TTL)
        return term.epoch if term.mine else None

    def die(self) -> None:
        """End as a killed process does: every connection and file is closed, and nothing is written."""
        self.leadership.close()
        self._database.close()


@pytest.fixture
def candidate(stores: Stores) -> Iterator[Callable[..., Candidate]]:
    with ExitStack() as ends:

        def make(name: str, *, without_lock: bool = False) -> Candidate:
            made = Candidate(stores.url, name, without_lock=without_lock)
            ends.callback(made.die)
            return made

        yield make


def test_a_standby_takes_over_at_once_when_the_leader_dies(candidate: Callable[..., Candidate]) -> None:
    """Long before the row expires, and with the next epoch."""
    one, two = candidate("one"), candidate("two")
    assert one.campaign() == 1
    term = two.leadership.current()
    assert term is not None
    assert (term.holder, term.guarded) == ("one", True)
    assert term.since is not None
    assert not two.leadership.is_deserted("two")
    assert two.campaign() is None

    one.die()

    wait_for(lambda: two.leadership.is_deserted("two"), within_seconds=10, describe="the leader's session to end")
    assert two.campaign() == 2


def test_a_leader_without_the_lock_is_waited_for(candidate: Callable[..., Candidate]) -> None:
    """The lock proves nothing about a leader that never said that it holds it."""
    one, two = candidate("one", without_lock=True), candidate("two")
    assert one.campaign() == 1

    assert two.leadership.is_deserted("two")
    assert two.campaign() is None
    assert not one.leadership.is_shaken("one")


def test_a_leader_that_resigns_leaves_nothing_to_wait_for(candidate: Callable[..., Candidate]) -> None:
    one, two = candidate("one"), candidate("two")
    assert one.campaign() == 1
    one.leadership.resign("one", 1)

    assert two.campaign() == 2
    assert two.campaign() == 2
    assert one.campaign() is None


def test_a_standby_does_not_keep_the_lock_from_the_leader(candidate: Callable[..., Candidate]) -> None:
    """One that took it in vain gives it back, so the leader's next renewal is guarded."""
    one, two = candidate("one"), candidate("two")
    assert two.leadership.is_deserted("two")
    assert one.campaign() == 1
    term = one.leadership.current()
    assert term is not None
    assert not term.guarded
    assert two.campaign() is None

    assert one.campaign() == 1
    term = one.leadership.current()
    assert term is not None
    assert term.guarded


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)  # SQLite's ends with the process alone
def test_a_leader_whose_session_the_server_ends_knows_at_once(
    stores: Stores, candidate: Callable[..., Candidate]
) -> None:
    """It leads no longer of its own accord; what it still sends is refused once another leads."""
    one, two = candidate("one"), candidate("two")
    assert one.campaign() == 1
    assert not one.leadership.is_shaken("one")
    _kill_lock_holder(stores)

    wait_for(lambda: one.leadership.is_shaken("one"), within_seconds=10, describe="the closed connection")
    wait_for(lambda: two.leadership.is_deserted("two"), within_seconds=10, describe="the lock")
    assert two.campaign() == 2
    with pytest.raises(NotLeading):
        stores.admission.release_due(limit=1, epoch=1)
    assert one.campaign() is None
    assert not one.leadership.is_shaken("one")


@pytest.mark.parametrize("database_url", ["mariadb"], indirect=True)
def test_a_leader_that_gets_its_lock_back_stays(stores: Stores, candidate: Callable[..., Candidate]) -> None:
    one = candidate("one")
    assert one.campaign() == 1
    _kill_lock_holder(stores)
    wait_for(lambda: one.leadership.is_shaken("one"), within_seconds=10, describe="the closed connection")

    assert one.campaign() == 1
    assert not one.leadership.is_shaken("one")
    term = one.leadership.current()
    assert term is not None
    assert term.guarded


def _kill_lock_holder(stores: Stores) -> None:
    lock = stores.leadership._lock  # the same name in each process
    name = lock._name  # type: ignore[attr-defined]
    with stores.database.engine.connect() as connection:
        holder = connection.exec_driver_sql("SELECT IS_USED_LOCK(%s)", (name,)).scalar_one()
        connection.exec_driver_sql(f"KILL {holder}")
