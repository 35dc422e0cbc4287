"""Units of work: rolled back whole and run again, and the rule that they exist for."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text

from orchestrator.domain.job import LeaseMode, Resources
from orchestrator.domain.lease import Claim, LeaseGrant
from orchestrator.errors import StoreUnavailable
from orchestrator.storage.engine import MOST_TRIES, open_database
from tests.contract.conftest import MEMORY_MIB, Stores

WINDOW = text("UPDATE orchestrator_queues SET `window` = `window` + 1 WHERE name = :name")


def test_units_that_deadlock_both_take_effect_once(stores: Stores) -> None:
    """The database ends one of them; it is run again from its start."""
    stores.cluster.ensure_queues(["left", "right"])
    both_hold_one = threading.Barrier(2)
    tries: list[str] = []

    def unit(first: str, second: str) -> None:
        def work(connection: Connection) -> None:
            tries.append(first)
            connection.execute(WINDOW, {"name": first})
            if stores.database.dialect == "mysql" and len(tries) <= 2:  # SQLite lets in one writer at a time
                both_hold_one.wait(10)
            connection.execute(WINDOW, {"name": second})

        stores.database.transaction(work)

    threads = [threading.Thread(target=unit, args=pair) for pair in (("left", "right"), ("right", "left"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    snapshot = text("SELECT SUM(`window`) FROM orchestrator_queues WHERE name IN ('left', 'right')")
    assert stores.database.read(lambda c: int(c.execute(snapshot).scalar_one())) == 2 * 16 + 4
    assert len(tries) == (3 if stores.database.dialect == "mysql" else 2)


def test_a_unit_whose_connection_is_lost_is_run_again(mariadb_url: str) -> None:
    """Nothing of the first try stays."""
    database = open_database(mariadb_url)
    database.transaction(lambda c: c.execute(text("CREATE TABLE counts (n INT)")).rowcount)
    tries: list[int] = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("INSERT INTO counts VALUES (1)"))
        if len(tries) < 3:
            connection.execute(text("KILL CONNECTION_ID()"))

    database.transaction(work)

    assert database.read(lambda c: c.execute(text("SELECT COUNT(*) FROM counts")).scalar()) == 1
    assert len(tries) == 3
    database.close()


def test_a_unit_that_never_succeeds_is_given_up(mariadb_url: str) -> None:
    """After a bounded number of tries the caller hears that the store is unavailable."""
    database = open_database(mariadb_url)
    tries: list[int] = []

    def work(connection: Connection) -> None:
        tries.append(1)
        connection.execute(text("KILL CONNECTION_ID()"))

    with pytest.raises(StoreUnavailable):
        database.transaction(work)

    assert len(tries) == MOST_TRIES
    database.close()


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("whole"), st.sets(st.sampled_from(["a-0", "a-1", "a-2"]), min_size=1)),
        st.tuples(
            st.just("share"), st.tuples(st.sampled_from(["a-0", "a-1", "a-2"]), st.sampled_from([300, 600, 1000]))
        ),
        st.tuples(st.just("release"), st.integers(0, 20)),
    ),
    min_size=1,
    max_size=20,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS)
def test_no_gpu_is_ever_granted_beyond_what_it_has(stores: Stores, steps: list[tuple[str, object]]) -> None:
    """Whatever is claimed and released in whatever order, live leases fit their GPUs and the rows agree."""
    stores.register("a", 3)
    live: list[int] = []
    for kind, value in steps:
        if kind == "release" and live:
            assert isinstance(value, int)
            stores.commit(releases=(live.pop(value % len(live)),))
        elif kind in ("whole", "share"):
            lease = _claim(stores, kind, value)
            live += [] if lease is None else [lease]
        _check(stores, live)
    stores.commit(releases=tuple(live))
    _check(stores, [])


def _claim(stores: Stores, kind: str, value: object) -> int | None:
    if kind == "whole":
        assert isinstance(value, set)
        resources, grant = Resources(len(value)), LeaseGrant(tuple(sorted(value)), LeaseMode.EXCLUSIVE, None)
    else:
        assert isinstance(value, tuple)
        resources, grant = Resources(1, value[1]), LeaseGrant((value[0],), LeaseMode.SHARED, value[1])
    job = stores.submit(resources=resources)
    outcome = stores.commit(claims=(Claim(1, (job.seq,), resources, grant=grant),)).claims[0]
    if outcome.lease_id is None:  # it would fill the queue's window
        stores.jobs.request_cancel(job.id, by="test", reason="not now")
    return outcome.lease_id


def _check(stores: Stores, live: list[int]) -> None:
    leased = text(
        "SELECT g.gpu_uuid, l.id, l.mode, l.memory_mib FROM orchestrator_leases l"
        " JOIN orchestrator_lease_gpus g ON g.lease_id = l.id WHERE l.state = 'active'"
    )
    rows = stores.database.read(lambda c: c.execute(leased).all())
    assert {row.id for row in rows} == set(live)
    for card in stores.cluster.nodes()[0].gpus:
        mine = [row for row in rows if row.gpu_uuid == card.gpu.uuid]
        owners = [row.id for row in mine if row.mode == "exclusive"]
        shared = sum(row.memory_mib for row in mine if row.mode == "shared")
        assert owners in ([], [card.exclusive_lease_id])
        assert (card.exclusive_lease_id is None) == (not owners)
        assert card.reserved_mib == shared <= MEMORY_MIB
        assert not (owners and shared)
