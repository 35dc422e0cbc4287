"""Random sequences of everything that changes a job, a lease or a leader, on both databases.

In the suite always the same ones; ``make explore`` plays others, for as long as it is given.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.contract.conftest import Stores
from tests.contract.interleavings.machine import Interleavings
from tests.support import scripted_clock

#: Sequences on each database; set by ``make explore``, which draws new ones each time.
EXAMPLES = int(os.environ.get("EXPLORE", "0"))
IN_SUITE = {"sqlite": 200, "mariadb": 80}
STEPS = 50


@pytest.fixture
def clock(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[scripted_clock.ScriptedClock]:
    """The database's clock in the machine's hands."""
    made = scripted_clock.ScriptedClock(stores.database)
    scripted_clock.script_clocks(monkeypatch)
    yield made
    monkeypatch.undo()
    scripted_clock.forget()


@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_no_sequence_of_steps_leaves_the_model_or_violates_an_invariant(
    stores: Stores, clock: scripted_clock.ScriptedClock
) -> None:
    suite = IN_SUITE["sqlite" if stores.database.dialect == "sqlite" else "mariadb"]
    explored = settings(
        max_examples=EXAMPLES or suite,
        stateful_step_count=STEPS,
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    run_state_machine_as_test(lambda: Interleavings(stores, clock), settings=explored)
