"""LedgerStore: claims, finishes, leases."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from orchestrator.domain.job import FailureClass, JobEvent, JobState, Resources
from orchestrator.domain.lease import Claim, Finish, LedgerBatch, LogChunk, ProgressReport, Refusal
from tests.contract.conftest import MEMORY_MIB, TTL, Stores
from tests.support.waiting import wait_for

SHORT = timedelta(seconds=0.2)


def held(stores: Stores) -> dict[str, tuple[int | None, int]]:
    """Return each GPU's exclusive lease and reserved MiB."""
    cards = [card for node in stores.cluster.nodes() for card in node.gpus]
    return {card.gpu.uuid: (card.exclusive_lease_id, card.reserved_mib) for card in cards}


def wait_for_expiry(stores: Stores, lease: int) -> None:
    wait_for(
        lambda: (
            lease not in stores.ledger.renew("nobody", [lease], ttl=TTL).live
            and [one for one, _ in stores.admission.expired_leases(limit=9, grace=timedelta(0))] == [lease]
        ),
        within_seconds=5,
        describe="the lease to expire",
    )


def test_a_claim_starts_the_job_takes_its_gpus_and_is_written_down(stores: Stores) -> None:
    stores.register("a", 2)
    job, lease = stores.start("a-0", "a-1")
    stored = stores.jobs.get(job.id)

    assert stored is not None
    assert (stored.state, stored.attempt, stored.lease_id, stored.node) == (JobState.RUNNING, 1, lease, "a")
    assert job.payload == {"args": [1]}
    assert held(stores) == {"a-0": (lease, 0), "a-1": (lease, 0)}
    (attempt,) = stores.jobs.attempts(job.id)
    assert (attempt.number, attempt.lease_id, set(attempt.gpus)) == (1, lease, {"a-0", "a-1"})
    assert stores.kinds(job.id) == ["submit", "admit", "claim"]


def test_a_gang_takes_every_gpu_or_none(stores: Stores) -> None:
    stores.register("a", 3)
    _, lease = stores.start("a-1")
    gang = stores.submit(resources=Resources(3))
    outcome = stores.claim(gang.seq, "a-0", "a-1", "a-2")

    assert outcome.refused == ((gang.seq, Refusal.GPUS_TAKEN),)
    assert held(stores) == {"a-0": (None, 0), "a-1": (lease, 0), "a-2": (None, 0)}
    stored = stores.jobs.get(gang.id)
    assert stored is not None
    assert stored.state is JobState.QUEUED


def test_shares_fill_a_gpu_up_to_its_memory_and_exclude_whole_leases(stores: Stores) -> None:
    stores.register("a", 1)
    half = MEMORY_MIB // 2
    jobs = [stores.submit(resources=Resources(1, half)) for _ in range(3)]
    outcomes = [stores.claim(job.seq, "a-0", mib=half) for job in jobs]
    whole = stores.submit()

    assert [outcome.lease_id is not None for outcome in outcomes] == [True, True, False]
    assert held(stores) == {"a-0": (None, 2 * half)}
    assert stores.claim(whole.seq, "a-0").refused == ((whole.seq, Refusal.GPUS_TAKEN),)
    leases = [outcome.lease_id for outcome in outcomes if outcome.lease_id is not None]
    stores.ledger.commit("a", LedgerBatch(releases=tuple(leases)), ttl=TTL)
    assert held(stores) == {"a-0": (None, 0)}


def test_what_may_not_start_is_refused_with_the_reason(stores: Stores) -> None:
    stores.register("a", 2)
    running, lease = stores.start("a-0")
    ended, other = stores.start("a-1")
    stores.finish(ended, other, JobEvent.SUCCEED)
    stores.ledger.commit("a", LedgerBatch(releases=(other,)), ttl=TTL)
    cancelled = stores.submit()
    stores.jobs.request_cancel(cancelled.id, by="me", reason="x")
    late = stores.submit(deadline=datetime.now(UTC) - timedelta(seconds=1))
    misdescribed = stores.submit(resources=Resources(2))

    def why(seq: int) -> Refusal:
        outcome = stores.claim(seq, "a-1")
        assert outcome.lease_id is None
        return outcome.refused[0][1]

    assert why(running.seq) is Refusal.RUNNING
    assert why(ended.seq) is Refusal.ENDED
    assert why(cancelled.seq) is Refusal.CANCELLED
    assert why(late.seq) is Refusal.EXPIRED
    assert why(misdescribed.seq) is Refusal.SUPERSEDED
    assert why(999_999) is Refusal.UNKNOWN
    assert held(stores)["a-1"] == (None, 0), "a lease without a job must not stay"
    assert held(stores)["a-0"] == (lease, 0)


def test_a_job_placed_on_another_host_is_not_claimed_here(stores: Stores) -> None:
    for node in ("a", "b"):
        stores.register(node, 1)
    stores.jobs.submit([])
    waiting = [stores.submit() for _ in range(17)][-1]
    (entry,) = stores.ledger.admit([(waiting.seq, "b")])

    assert entry.node == "b"
    assert stores.claim(waiting.seq, "a-0", node="a").refused == ((waiting.seq, Refusal.SUPERSEDED),)
    assert stores.claim(waiting.seq, "b-0", node="b").granted[0].seq == waiting.seq


def test_further_jobs_start_under_a_lease_that_is_held_and_live(stores: Stores) -> None:
    stores.register("a", 1)
    _, lease = stores.start("a-0")
    second = stores.claim(stores.submit().seq, lease=lease)
    foreign = stores.submit()
    stores.register("b", 1)

    assert second.lease_id == lease
    assert second.granted[0].attempt == 1
    assert stores.claim(foreign.seq, node="b", lease=lease).granted == ()
    stores.ledger.commit("a", LedgerBatch(releases=(lease,)), ttl=TTL)
    assert stores.claim(foreign.seq, lease=lease).granted == ()


def test_of_racing_workers_one_wins_the_job_and_one_the_gpu(stores: Stores) -> None:
    stores.register("a", 1)
    jobs = [stores.submit().seq for _ in range(2)]
    barrier = threading.Barrier(8)

    def race(number: int) -> int:
        barrier.wait()
        return len(stores.claim(jobs[number % 2], "a-0").granted)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))

    assert sum(won) == 1
    assert sum(lease is not None for lease, _ in held(stores).values()) == 1


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (JobEvent.SUCCEED, JobState.SUCCEEDED),
        (JobEvent.FAIL, JobState.FAILED),
        (JobEvent.RETRY, JobState.SCHEDULED),
        (JobEvent.LOSE, JobState.SCHEDULED),
        (JobEvent.CANCEL, JobState.CANCELLED),
        (JobEvent.BURY, JobState.DEAD_LETTER),
        (JobEvent.GIVE_BACK, JobState.PENDING),
        (JobEvent.REQUEUE, JobState.PENDING),
    ],
)
def test_each_end_leads_where_the_table_says(stores: Stores, event: JobEvent, state: JobState) -> None:
    stores.register("a", 1)
    job, lease = stores.start("a-0")
    now = datetime.now(UTC)
    outcome = stores.finish(
        job, lease, event, error="why\nmore", failure_class=FailureClass.EXIT, started_at=now, ended_at=now, exit_code=3
    )
    stored = stores.jobs.get(job.id)

    assert outcome.stale == ()
    assert stored is not None
    assert (stored.state, stored.lease_id) == (state, None)
    assert (stored.finished_at is not None) == (state not in (JobState.SCHEDULED, JobState.PENDING))
    assert stored.attempt == (0 if event is JobEvent.GIVE_BACK else 1)
    assert stored.lost_count == int(event in (JobEvent.LOSE, JobEvent.BURY))
    assert stores.kinds(job.id)[-1] == event.value
    assert [one.outcome for one in stores.jobs.attempts(job.id)] == (
        [] if event is JobEvent.GIVE_BACK else [event.value]
    )


def test_a_batch_of_different_results_keeps_them_apart(stores: Stores) -> None:
    stores.register("a", 1)
    first, lease = stores.start("a-0")
    others = [stores.claim(stores.submit().seq, lease=lease).granted[0] for _ in range(4)]
    values = [None, 42, "text 'quoted'", {"ü": [1, None]}, [True]]
    finishes = tuple(
        Finish(job.seq, job.attempt, lease, JobEvent.SUCCEED, result=value, pid=7)
        for job, value in zip([first, *others], values, strict=True)
    )
    outcome = stores.ledger.commit("a", LedgerBatch(finishes=finishes), ttl=TTL)

    assert outcome.stale == ()
    stored = [stores.jobs.get(job.id) for job in [first, *others]]
    assert [job.result for job in stored if job is not None] == values


def test_a_finish_under_a_token_that_is_not_the_jobs_changes_nothing(stores: Stores) -> None:
    """By a wrong attempt, another lease, another host, or a lease that has expired."""
    stores.register("a", 2)
    job, lease = stores.start("a-0", ttl=SHORT)
    _, other = stores.start("a-1")
    before = stores.kinds(job.id)
    stale = [
        Finish(job.seq, job.attempt + 1, lease, JobEvent.SUCCEED),
        Finish(job.seq, job.attempt, other, JobEvent.SUCCEED),
    ]
    for finish in stale:
        assert stores.ledger.commit("a", LedgerBatch(finishes=(finish,)), ttl=TTL).stale == (finish,)
    good = Finish(job.seq, job.attempt, lease, JobEvent.SUCCEED, result="late")
    assert stores.ledger.commit("b", LedgerBatch(finishes=(good,)), ttl=TTL).stale == (good,)
    wait_for_expiry(stores, lease)
    assert stores.ledger.commit("a", LedgerBatch(finishes=(good,)), ttl=TTL).stale == (good,)

    stored = stores.jobs.get(job.id)
    assert stored is not None
    assert (stored.state, stored.result) == (JobState.RUNNING, None)
    assert stores.kinds(job.id) == before


def test_a_retry_carries_its_new_arguments_and_waits_its_delay(stores: Stores) -> None:
    stores.register("a", 1)
    epoch = stores.lead()
    job, lease = stores.start("a-0")
    stores.finish(job, lease, JobEvent.RETRY, delay_seconds=0.3, payload={"args": [2]})
    assert stores.admission.release_due(limit=9, epoch=epoch) == 0
    wait_for(lambda: stores.admission.release_due(limit=9, epoch=epoch), within_seconds=5, describe="the delay")
    (entry,) = stores.ledger.admit([(job.seq, "a")])
    stores.ledger.commit("a", LedgerBatch(releases=(lease,)), ttl=TTL)
    again = stores.claim(entry.seq, "a-0").granted[0]

    assert (again.attempt, again.payload) == (2, {"args": [2]})


def test_output_and_progress_count_only_under_the_live_claim(stores: Stores) -> None:
    stores.register("a", 1)
    job, lease = stores.start("a-0")
    good = LogChunk(job.seq, 1, lease, 0, "hello ")
    batch = LedgerBatch(
        logs=(good, LogChunk(job.seq, 1, lease + 1, 1, "forged"), LogChunk(job.seq, 2, lease, 1, "early")),
        progress=(ProgressReport(job.seq, 1, lease, {"done": 1}), ProgressReport(job.seq, 1, lease + 1, {"done": 9})),
    )
    stores.ledger.commit("a", batch, ttl=TTL)
    stores.ledger.commit("a", LedgerBatch(logs=(good,)), ttl=TTL)  # a reply was lost: the same comes again
    stored = stores.jobs.get(job.id)

    assert stored is not None
    assert stored.progress == {"done": 1}
    page = stores.jobs.logs(job.id, after=None, limit=10)
    assert (page.chunks, page.ended) == (((1, 0, "hello "),), False)
    stores.finish(job, lease, JobEvent.SUCCEED)
    assert stores.jobs.logs(job.id, after=(1, 0), limit=10).ended


def test_a_renewal_extends_what_is_live_and_names_nothing_else(stores: Stores) -> None:
    stores.register("a", 2)
    _, short = stores.start("a-0", ttl=SHORT)
    _, lease = stores.start("a-1", ttl=timedelta(seconds=1))
    wait_for_expiry(stores, short)
    began = time.monotonic()

    assert stores.ledger.renew("a", [short, lease], ttl=TTL).live == {lease}
    assert stores.ledger.renew("b", [lease], ttl=TTL).live == frozenset()
    wait_for(lambda: time.monotonic() - began > 1.2, within_seconds=3, describe="the first TTL")
    assert stores.ledger.renew("a", [lease], ttl=TTL).live == {lease}


def test_a_withdrawn_job_waits_again_and_its_old_entry_is_stale(stores: Stores) -> None:
    stores.register("a", 1)
    job = stores.submit()
    stores.ledger.commit("a", LedgerBatch(withdrawals=(job.seq,)), ttl=TTL)
    stored = stores.jobs.get(job.id)

    assert stored is not None
    assert stored.state is JobState.PENDING
    assert stores.claim(job.seq, "a-0").refused == ((job.seq, Refusal.SUPERSEDED),)
    assert [candidate.seq for candidate in stores.ledger.host_snapshot("a", limit=5).candidates] == [job.seq]


def test_a_host_that_registers_again_gives_back_what_its_earlier_life_held(stores: Stores) -> None:
    stores.register("a", 2)
    job, _ = stores.start("a-0")
    stores.register("a", 2, pid=1)
    assert held(stores)["a-0"][0] is not None, "the same life keeps its leases"
    stores.register("a", 1, pid=2)
    stored = stores.jobs.get(job.id)

    assert stored is not None
    assert (stored.state, stored.lost_count) == (JobState.SCHEDULED, 1)
    assert held(stores)["a-0"] == (None, 0)
    (node,) = stores.cluster.nodes()
    assert {card.gpu.uuid: card.health.value for card in node.gpus} == {"a-0": "healthy", "a-1": "lost"}


def test_the_database_itself_refuses_two_exclusive_holders(stores: Stores) -> None:
    """The unique index stands behind the guarded updates."""
    stores.register("a", 1)
    _, lease = stores.start("a-0")
    insert = text(
        "INSERT INTO orchestrator_lease_gpus (lease_id, gpu_uuid, live_exclusive, taken_turn)"
        " VALUES (:lease, 'a-0', 1, 1)"
    )
    with stores.database.engine.connect() as connection, pytest.raises(Exception, match=r"(?i)unique|duplicate"):
        connection.execute(insert, {"lease": lease})


def test_claims_of_one_batch_are_granted_and_refused_on_their_own(stores: Stores) -> None:
    stores.register("a", 1)
    first, lease = stores.start("a-0")
    good, gone = stores.submit(), stores.submit()
    stores.jobs.request_cancel(gone.id, by="me", reason="x")
    outcome = stores.ledger.commit(
        "a", LedgerBatch(claims=(Claim(5, (good.seq, gone.seq), Resources(1), lease_id=lease),)), ttl=TTL
    ).claims[0]

    assert outcome.key == 5
    assert [job.seq for job in outcome.granted] == [good.seq]
    assert outcome.refused == ((gone.seq, Refusal.CANCELLED),)
    assert first.seq != good.seq
