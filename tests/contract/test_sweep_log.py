"""What is written down of sweeps, what they heal, and what they prune."""

from datetime import timedelta

import pytest
from sqlalchemy import text

from orchestrator.domain.job import JobState, Resources
from orchestrator.domain.sweep import SweepTally
from orchestrator.errors import NotLeading
from orchestrator.ports import LossPolicy
from orchestrator.storage.sweep_log import SqlSweepLog
from tests.contract.conftest import Stores
from tests.contract.test_ledger import held

POLICY = LossPolicy(max_lost=3, delay=timedelta(0), grace=timedelta(0))


def tally(*passes: tuple[int, float, str | None]) -> SweepTally:
    made = SweepTally()
    for did, seconds, error in passes:
        made.note(did, seconds=seconds, error=error)
    return made


def execute(stores: Stores, statement: str) -> None:
    stores.database.transaction(lambda connection: connection.execute(text(statement)).rowcount)


def heal(stores: Stores, epoch: int) -> int:
    return stores.admission.heal(policy=POLICY, limit=100, epoch=epoch)


def test_passes_add_up_and_the_last_one_is_told_of(stores: Stores) -> None:
    log = SqlSweepLog(stores.database)
    log.note({"admit": tally((2, 0.5, None), (0, 0.25, "down"))}, epoch=1)
    log.note({"admit": tally((3, 0.25, None)), "prune": SweepTally()}, epoch=2)

    (record,) = log.read()

    assert (record.name, record.passes, record.did, record.failures) == ("admit", 3, 5, 1)
    assert (record.seconds, record.last_did, record.last_seconds) == (1.0, 3, 0.25)
    assert (record.last_error, record.epoch) == (None, 2)
    assert record.last_at.tzinfo is not None


def test_an_error_is_cut_to_what_fits(stores: Stores) -> None:
    log = SqlSweepLog(stores.database)
    log.note({"admit": tally((0, 0.1, "é" * 2000))}, epoch=None)

    assert log.read()[0].last_error == "é" * 512


def test_sound_rows_are_left_alone(stores: Stores) -> None:
    """Exclusive and shared leases, and GPUs that nobody holds."""
    epoch = stores.lead()
    stores.register("a", 3)
    stores.running("a-0")
    shared = stores.submit(resources=_share(300))
    assert stores.claim(shared.seq, "a-1", mib=300).lease_id is not None

    assert heal(stores, epoch) == 0


def test_a_job_that_runs_under_no_lease_is_lost_and_its_gpu_is_free_again(stores: Stores) -> None:
    epoch = stores.lead()
    stores.register("a", 1)
    job, lease = stores.start("a-0")
    execute(stores, f"UPDATE orchestrator_leases SET state = 'expired', ended_at = expires_at WHERE id = {lease}")

    with pytest.raises(NotLeading):
        heal(stores, epoch + 1)
    assert heal(stores, epoch) == 2
    assert heal(stores, epoch) == 0
    assert stores.job(job.id).state is JobState.SCHEDULED
    assert held(stores)["a-0"] == (None, 0)
    stores.admission.release_due(limit=9, epoch=epoch)
    assert stores.count_events("heal_gpu") == 1
    stores.ledger.admit([(job.seq, "a")])
    assert stores.claim(job.seq, "a-0").granted, "the GPU can be granted again"


def test_a_gpu_that_says_something_else_than_its_leases_is_set_right(stores: Stores) -> None:
    epoch = stores.lead()
    stores.register("a", 3)
    _, finish = stores.running("a-0")
    shared = stores.submit(resources=_share(300))
    assert stores.claim(shared.seq, "a-1", mib=300).lease_id is not None
    execute(stores, "UPDATE orchestrator_gpus SET exclusive_lease_id = NULL WHERE uuid = 'a-0'")
    execute(stores, "UPDATE orchestrator_gpus SET reserved_mib = 900 WHERE uuid = 'a-1'")
    execute(stores, "UPDATE orchestrator_gpus SET exclusive_lease_id = 4711 WHERE uuid = 'a-2'")

    assert heal(stores, epoch) == 3
    assert heal(stores, epoch) == 0
    assert held(stores) == {"a-0": (finish.lease_id, 0), "a-1": (None, 300), "a-2": (None, 0)}


def test_events_of_hosts_are_pruned_but_not_those_that_begin_a_term(stores: Stores) -> None:
    epoch = stores.lead()
    stores.register("a", 1)
    job = stores.submit()
    before = stores.count("events")

    assert stores.admission.prune(older_than=timedelta(hours=1), limit=9, epoch=epoch) == 0
    assert stores.admission.prune(older_than=timedelta(seconds=-60), limit=9, epoch=epoch) == 1
    assert stores.count("events") == before - 1
    assert stores.count_events("leader") == 1
    assert stores.count_events("node_up") == 0
    assert stores.kinds(job.id)


def _share(mib: int) -> Resources:
    return Resources(1, mib)
