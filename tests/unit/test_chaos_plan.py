"""The plan of a randomized run is a pure function of its seed."""

import itertools

from tests.chaos.random.plan import (
    KINDS,
    MARIADB_FAULTS,
    PROCESS_FAULTS,
    REDIS_FAULTS,
    SQLITE_FAULTS,
    plan_faults,
    plan_load,
)


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    """So that what a seed found can be found again."""
    assert plan_faults(7, 300, database="mariadb") == plan_faults(7, 300, database="mariadb")
    assert plan_load(7, 60, per_second=2) == plan_load(7, 60, per_second=2)
    assert plan_faults(7, 300, database="mariadb") != plan_faults(8, 300, database="mariadb")
    assert plan_load(7, 60, per_second=2) != plan_load(8, 60, per_second=2)


def test_a_long_run_has_faults_and_jobs_of_every_kind() -> None:
    """Nothing that is written down here is never drawn, and a database has only faults of its own."""
    kinds = {fault.kind for fault in plan_faults(1, 600, database="mariadb")}
    assert kinds == {*PROCESS_FAULTS, *REDIS_FAULTS, *MARIADB_FAULTS}
    kinds = {fault.kind for fault in plan_faults(1, 600, database="sqlite")}
    assert kinds == {*PROCESS_FAULTS, *REDIS_FAULTS, *SQLITE_FAULTS}
    assert {wish.kind for wish in plan_load(1, 600, per_second=2)} == set(KINDS)


def test_faults_of_one_lane_do_not_overlap_and_begin_within_the_run() -> None:
    """Two of the processes at once could stop every host, and show nothing."""
    for seed in range(20):
        faults = plan_faults(seed, 120, database="mariadb")
        assert all(0 < fault.at < 120 for fault in faults)
        lane = [fault for fault in faults if fault.kind in PROCESS_FAULTS]
        assert all(before.at + before.seconds < after.at for before, after in itertools.pairwise(lane))


def test_keys_are_unique_and_only_what_is_to_be_cancelled_is_cancelled() -> None:
    """A key names one job."""
    wishes = plan_load(3, 200, per_second=3)
    assert len({wish.key for wish in wishes}) == len(wishes)
    assert all((wish.cancel_after is not None) == (wish.kind == "cancelled") for wish in wishes)
