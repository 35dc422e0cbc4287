"""The checker is checked: each seeded bug is caught by the invariant that names it, and its script alone is clean.

A checker that never failed proves nothing. No flag of production code arms a bug: the tests replace statements and
functions of the real storage and transport in their own process, or give processes what keeps them apart.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.testing.history import INVARIANTS
from tests.contract.conftest import Stores
from tests.contract.seeded import bugs_of_jobs, bugs_of_leases
from tests.contract.seeded.world import BUGS, Bug, World
from tests.support import scripted_clock
from tests.support.servers import RedisServer

assert bugs_of_jobs, bugs_of_leases  # they register what they define

PLAYED = [(name, database) for name, bug in BUGS.items() for database in bug.databases]
#: Invariants that the scripts do not reach: pure tests in tests/unit/test_history.py show that they can fail.
BY_UNIT_TESTS = {"lease-consistent", "settled", "no-overdue"}


@pytest.fixture
def world(stores: Stores, clock: scripted_clock.ScriptedClock, request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """Real stores on a scripted clock; a Redis of the script's own for those that need one."""
    name = request.node.callspec.params["name"]
    if name != "ack_early":
        return World(stores, clock, tmp_path)
    server: RedisServer = request.getfixturevalue("embedded_redis_server")
    server.clear()
    return World(stores, clock, tmp_path, redis_url=server.url)


@pytest.fixture
def clock(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[scripted_clock.ScriptedClock]:
    """The database's clock in the script's hands."""
    made = scripted_clock.ScriptedClock(stores.database)
    scripted_clock.script_clocks(monkeypatch)
    yield made
    monkeypatch.undo()
    scripted_clock.forget()


@pytest.mark.parametrize(
    ("name", "database_url"), PLAYED, indirect=["database_url"], ids=[f"{n}-{d}" for n, d in PLAYED]
)
def test_a_seeded_bug_is_caught_by_its_invariant(name: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = BUGS[name]
    bug.plant(monkeypatch)
    bug.script(world)
    report = world.check()

    assert bug.caught_by in report.counts, f"not caught: {bug.script.__doc__}\n{report}"


@pytest.mark.parametrize(
    ("name", "database_url"), PLAYED, indirect=["database_url"], ids=[f"{n}-{d}" for n, d in PLAYED]
)
def test_the_same_script_without_the_bug_is_clean(name: str, world: World) -> None:
    BUGS[name].script(world)
    report = world.check()

    assert report.is_clean, f"{BUGS[name].script.__doc__}\n{report}"


def test_every_invariant_has_a_bug_that_it_catches() -> None:
    caught = {bug.caught_by for bug in BUGS.values()}

    assert sorted(set(INVARIANTS) - caught - BY_UNIT_TESTS) == []
    assert len(BUGS) >= 15
    assert all(isinstance(bug, Bug) and bug.script.__doc__ for bug in BUGS.values())
