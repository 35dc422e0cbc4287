"""Random sequences of everything that changes a job, a lease or a leader, on both databases.

In the suite always the same ones; ``make explore`` plays others, for as long as it is given.
"""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy.exc import IntegrityError

from tests.contract.conftest import Stores
from tests.contract.interleavings.machine import Interleavings
from tests.contract.seeded import bugs_of_jobs, bugs_of_leases
from tests.contract.seeded.world import BUGS
from tests.support import scripted_clock

#: Sequences on each database; set by ``make explore``, which draws new ones each time.
EXAMPLES = int(os.environ.get("EXPLORE", "0"))
IN_SUITE = {"sqlite": 200, "mysql": 80}
STEPS = 50
#: Seeded bugs that the suite's own sequences come upon soon.
FOUND = (
    "drop_the_token_check",
    "trust_a_lease_past_its_end",
    "renew_an_ended_lease",
    "rescue_by_age_alone",
    "expire_by_the_leaders_own_clock",
    "lose_a_job_and_keep_its_lease",
    "forget_the_gpu_row",
    "start_with_half_a_gang",
    "two_leaders_of_one_epoch",
    "sweep_after_the_term",
    "admit_twice",
    "lose_an_attempt_without_counting",
    "release_and_forget_the_job",
)
assert bugs_of_jobs, bugs_of_leases  # they register what they define


@pytest.fixture
def clock(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Iterator[scripted_clock.ScriptedClock]:
    """The database's clock in the machine's hands."""
    made = scripted_clock.ScriptedClock(stores.database)
    scripted_clock.script_clocks(monkeypatch)
    yield made
    monkeypatch.undo()
    scripted_clock.forget()


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 120)
def test_no_sequence_of_steps_leaves_the_model_or_violates_an_invariant(
    stores: Stores, clock: scripted_clock.ScriptedClock
) -> None:
    examples = EXAMPLES or IN_SUITE[stores.database.dialect]
    play(stores, clock, examples, Phase.generate, Phase.shrink, always_the_same=not EXAMPLES)


@pytest.mark.parametrize("name", FOUND)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_sequences_find_what_is_wrong(
    name: str, stores: Stores, clock: scripted_clock.ScriptedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random steps find seeded bugs that nobody scripted for them."""
    BUGS[name].plant(monkeypatch)

    with pytest.raises((AssertionError, IntegrityError)):
        play(stores, clock, IN_SUITE["sqlite"], Phase.generate, always_the_same=True)


def play(
    stores: Stores, clock: scripted_clock.ScriptedClock, examples: int, *phases: Phase, always_the_same: bool
) -> None:
    """Play sequences of random steps."""
    explored = settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        derandomize=always_the_same,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )
    run_state_machine_as_test(lambda: Interleavings(stores, clock), settings=explored)
