"""Leadership, the leader's sweeps, and the schema."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text

from orchestrator.domain.job import JobState
from orchestrator.errors import NotLeading, SchemaMismatch
from orchestrator.ports import LossPolicy
from orchestrator.storage import schema
from orchestrator.testing.history import Expectations
from tests.contract.conftest import TTL, Stores
from tests.contract.test_ledger import SHORT, held, wait_for_expiry
from tests.support.cluster import verify_database
from tests.support.waiting import wait_for

POLICY = LossPolicy(max_lost=3, delay=timedelta(0), grace=timedelta(0))


def test_of_many_that_campaign_at_once_one_leads(stores: Stores) -> None:
    with ThreadPoolExecutor(6) as pool:
        terms = list(pool.map(lambda name: stores.leadership.campaign(name, ttl=TTL), "abcdef"))

    assert sum(term.mine for term in terms) == 1
    assert {term.epoch for term in terms} == {1}


def test_a_term_is_renewed_ends_and_is_followed_by_a_higher_epoch(stores: Stores) -> None:
    first = stores.leadership.campaign("a", ttl=SHORT)
    assert stores.leadership.campaign("a", ttl=SHORT).epoch == first.epoch
    assert not stores.leadership.campaign("b", ttl=TTL).mine
    wait_for(lambda: stores.leadership.campaign("b", ttl=TTL).mine, within_seconds=5, describe="the term to end")
    term = stores.leadership.current()

    assert term is not None
    assert (term.holder, term.epoch) == ("b", first.epoch + 1)
    stores.leadership.resign("b", term.epoch)
    assert stores.leadership.current() is None


def test_a_sweep_of_another_epoch_writes_nothing(stores: Stores) -> None:
    stores.register("a", 1)
    epoch = stores.lead()
    job, lease = stores.start("a-0", ttl=SHORT)
    wait_for_expiry(stores, lease)

    with pytest.raises(NotLeading):
        stores.admission.expire_leases([(lease, 0)], policy=POLICY, epoch=epoch + 1)
    assert held(stores)["a-0"][0] == lease
    stored = stores.jobs.get(job.id)
    assert stored is not None
    assert stored.state is JobState.RUNNING


def test_an_expired_lease_is_taken_only_if_it_was_not_renewed_meanwhile(stores: Stores) -> None:
    stores.register("a", 1)
    epoch = stores.lead()
    job, lease = stores.start("a-0", ttl=SHORT)
    wait_for_expiry(stores, lease)

    assert stores.admission.expire_leases([(lease, 1)], policy=POLICY, epoch=epoch) == 0
    long = LossPolicy(max_lost=3, delay=timedelta(0), grace=timedelta(hours=1))
    assert stores.admission.expire_leases([(lease, 0)], policy=long, epoch=epoch) == 0
    assert stores.admission.expire_leases([(lease, 0)], policy=POLICY, epoch=epoch) == 1
    assert stores.admission.expire_leases([(lease, 0)], policy=POLICY, epoch=epoch) == 0
    assert held(stores)["a-0"] == (None, 0)
    assert stores.kinds(job.id)[-1] == "lose"
    assert stores.count_events("lease_expired") == 1


def test_a_job_that_lost_its_worker_too_often_is_a_dead_letter(stores: Stores) -> None:
    stores.register("a", 1)
    epoch = stores.lead()
    job, lease = stores.start("a-0", ttl=SHORT)
    last = LossPolicy(max_lost=1, delay=timedelta(0), grace=timedelta(0))
    wait_for_expiry(stores, lease)
    stores.admission.expire_leases([(lease, 0)], policy=last, epoch=epoch)
    stored = stores.jobs.get(job.id)

    assert stored is not None
    assert (stored.state, stored.lost_count) == (JobState.DEAD_LETTER, 1)


def test_a_lost_line_counts_against_its_first_job(stores: Stores) -> None:
    """Those behind it never ran: however often their host is lost, they are no dead letters."""
    stores.register("a", 1)
    epoch = stores.lead()
    first, lease = stores.start("a-0", ttl=SHORT)
    behind = [stores.submit() for _ in range(2)]
    for job in behind:
        stores.claim(job.seq, lease=lease, ttl=SHORT)
    wait_for_expiry(stores, lease)
    last = LossPolicy(max_lost=1, delay=timedelta(0), grace=timedelta(0))
    stores.admission.expire_leases([(lease, 0)], policy=last, epoch=epoch)

    charged = stores.jobs.get(first.id)
    assert charged is not None
    assert (charged.state, charged.lost_count) == (JobState.DEAD_LETTER, 1)
    for job in behind:
        stored = stores.jobs.get(job.id)
        assert stored is not None
        assert (stored.state, stored.lost_count, stored.attempt) == (JobState.SCHEDULED, 0, 1)
    report = verify_database(stores.url, Expectations())
    assert report.is_clean, report


def test_the_outbox_brings_up_what_nobody_claimed(stores: Stores) -> None:
    epoch = stores.lead()
    job = stores.submit()
    assert stores.admission.due_entries(limit=9, epoch=epoch) == []
    assert stores.admission.make_entries_due(epoch=epoch) == 1
    (due,) = stores.admission.due_entries(limit=9, epoch=epoch)
    assert (due.entry.seq, due.entry_id) == (job.seq, None)
    stores.admission.note_entries([(job.seq, "1-1")], epoch=epoch)

    assert stores.admission.due_entries(limit=9, epoch=epoch) == []
    stores.jobs.request_cancel(job.id, by="me", reason="x")
    assert stores.admission.make_entries_due(epoch=epoch) == 0


def test_a_silent_host_is_lost_and_what_was_admitted_for_it_waits_again(stores: Stores) -> None:
    stores.register("a", 1)
    epoch = stores.lead()
    waiting = [stores.submit() for _ in range(17)][-1]
    stores.ledger.admit([(waiting.seq, "a")])

    assert stores.admission.lose_nodes(silent_for=timedelta(hours=1), epoch=epoch) == []
    assert stores.admission.lose_nodes(silent_for=timedelta(seconds=-1), epoch=epoch) == ["a"]
    stored = stores.jobs.get(waiting.id)
    assert stored is not None
    assert stored.state is JobState.PENDING
    assert stores.cluster.heartbeat("a", (), look_ahead=0).value == "up"


def test_ended_jobs_are_pruned_with_all_that_belongs_to_them(stores: Stores) -> None:
    epoch = stores.lead()
    ended, waiting = stores.submit(), stores.submit()
    stores.jobs.request_cancel(ended.id, by="me", reason="x")

    assert stores.admission.prune(older_than=timedelta(hours=1), limit=9, epoch=epoch) == 0
    assert stores.admission.prune(older_than=timedelta(seconds=-1), limit=9, epoch=epoch) == 1
    assert stores.jobs.get(ended.id) is None
    assert stores.jobs.get(waiting.id) is not None


def test_the_schema_is_upgraded_once_and_a_foreign_change_is_seen(stores: Stores) -> None:
    assert schema.upgrade(stores.url) == schema.check(stores.url) == schema.current(stores.url)
    with stores.database.engine.connect() as connection:
        connection.execute(text("ALTER TABLE orchestrator_nodes ADD COLUMN mine INTEGER"))
        connection.commit()
    with pytest.raises(SchemaMismatch, match="mine"):
        schema.check(stores.url)


def test_an_empty_database_is_not_taken_for_a_schema(database_url: str) -> None:
    assert schema.current(database_url) is None
    with pytest.raises(SchemaMismatch, match="orch db upgrade"):
        schema.check(database_url)
