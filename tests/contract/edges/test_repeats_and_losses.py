"""What is repeated, lost or cancelled at an awkward moment ends as it should."""

from dataclasses import replace
from datetime import timedelta

import pytest

from orchestrator.domain.job import FailureClass, JobEvent, JobState
from tests.contract.conftest import TTL, Stores


@pytest.fixture(autouse=True)
def _hosts(stores: Stores) -> None:
    stores.register("a", 2)
    stores.register("b", 2)


def test_a_finish_that_is_repeated_is_not_stale(stores: Stores) -> None:
    """A worker whose commit took effect and whose answer was lost sends it again, and is told the truth."""
    job_id, finish = stores.running()
    assert stores.commit(finishes=(finish,)).stale == ()

    assert stores.commit(finishes=(finish,)).stale == ()

    assert stores.kinds(job_id).count("succeed") == 1


def test_a_finish_that_contradicts_the_recorded_end_is_stale(stores: Stores) -> None:
    """Only the very same end counts as a repeat."""
    job_id, finish = stores.running()
    stores.commit(finishes=(finish,))
    other = replace(finish, event=JobEvent.FAIL, failure_class=FailureClass.EXCEPTION)

    assert stores.commit(finishes=(other,)).stale == (other,)

    job = stores.job(job_id)
    assert job.state is JobState.SUCCEEDED


def test_a_finish_from_another_host_is_stale(stores: Stores) -> None:
    """A token is worth nothing on a host that it was not granted to."""
    job_id, finish = stores.running()

    assert stores.commit("b", finishes=(finish,)).stale == (finish,)

    job = stores.job(job_id)
    assert job.state is JobState.RUNNING


def test_a_job_that_is_to_be_cancelled_does_not_run_again(stores: Stores) -> None:
    """Once a cancel is acknowledged, no retry, loss or return of the attempt starts the job again."""
    for event in (JobEvent.RETRY, JobEvent.LOSE, JobEvent.GIVE_BACK, JobEvent.REQUEUE):
        job_id, finish = stores.running()
        assert stores.jobs.request_cancel(job_id, by="ada", reason="wrong data").stopping

        assert stores.commit(finishes=(replace(finish, event=event),)).stale == ()

        job = stores.job(job_id)
        assert (event, job.state) == (event, JobState.CANCELLED)
        assert stores.jobs.attempts(job_id)[0].outcome == "cancel"
        stores.commit("a", releases=(finish.lease_id,))


def test_a_cancelled_job_whose_worker_died_does_not_run_again(stores: Stores) -> None:
    """The host's next life takes the loss for the cancel it was asked for."""
    job_id, _ = stores.running()
    stores.jobs.request_cancel(job_id, by="ada", reason="wrong data")

    stores.register("a", 2, pid=2)

    job = stores.job(job_id)
    assert job.state is JobState.CANCELLED
    assert stores.count("scheduled") == 0


def test_a_release_loses_what_still_runs_under_the_lease(stores: Stores) -> None:
    """A job claimed in a commit whose answer was lost is unknown to its worker, and must not stay running for ever.

    It never ran, so the loss is not charged to it.
    """
    job_id, finish = stores.running()

    stores.commit("a", releases=(finish.lease_id,))

    job = stores.job(job_id)
    assert (job.state, job.lost_count) == (JobState.SCHEDULED, 0)
    assert stores.jobs.attempts(job_id)[0].outcome == "lose"


def test_a_lease_is_released_by_its_own_host_alone(stores: Stores) -> None:
    """A release that names another host's lease changes nothing."""
    job_id, finish = stores.running()

    stores.commit("b", releases=(finish.lease_id,))

    job = stores.job(job_id)
    assert job.state is JobState.RUNNING
    assert stores.ledger.renew("a", [finish.lease_id], ttl=TTL).live == {finish.lease_id}


def test_a_host_withdraws_only_what_it_could_take(stores: Stores) -> None:
    """A stale entry on one host does not undo another host's admission."""
    seq = stores.submit().seq
    stores.commit("b", withdrawals=(seq,))
    assert stores.jobs.count_by_state()[JobState.PENDING] == 1
    assert len(stores.ledger.admit([(seq, "a")])) == 1

    stores.commit("b", withdrawals=(seq,))

    assert stores.jobs.count_by_state()[JobState.QUEUED] == 1


def test_what_is_on_its_way_to_a_host_that_takes_nothing_goes_elsewhere(stores: Stores) -> None:
    """A host that ended in order, or drains, leaves no job stranded in its own stream."""
    epoch = stores.lead()
    seqs = [stores.submit().seq for _ in range(3)]
    stores.commit("a", withdrawals=tuple(seqs))
    stores.ledger.admit([(seqs[0], "a"), (seqs[1], "b")])
    stores.cluster.deregister_node("a", 1)
    stores.cluster.set_drain("b", drain=True, by="me")

    assert stores.admission.lose_nodes(silent_for=TTL, epoch=epoch) == []

    assert stores.jobs.count_by_state()[JobState.PENDING] == 3
    assert stores.claim(seqs[0], "a-0").granted == ()


def test_the_history_names_the_host_of_each_admission(stores: Stores) -> None:
    """Jobs admitted together for different hosts are recorded each with its own."""
    jobs = [stores.submit() for _ in range(2)]
    seqs = tuple(job.seq for job in jobs)
    stores.commit("a", withdrawals=seqs)

    stores.ledger.admit([(seqs[0], "a"), (seqs[1], "b")])

    admitted = [[event.node for event in stores.jobs.history(job.id) if event.kind == "admit"][-1] for job in jobs]
    assert admitted == ["a", "b"]


def test_leases_are_pruned_with_the_jobs_that_name_them(stores: Stores) -> None:
    """Nothing of a job stays when it is pruned, its lease included; a live lease stays."""
    epoch = stores.lead()
    _, done = stores.running()
    stores.commit("a", finishes=(done,), releases=(done.lease_id,))
    _, running = stores.running()

    pruned = stores.admission.prune(older_than=timedelta(seconds=-60), limit=10, epoch=epoch)

    assert pruned == 4, "a job, its lease, and that two hosts came up"
    assert stores.count("jobs") == 1
    assert stores.ledger.renew("a", [running.lease_id], ttl=TTL).live == {running.lease_id}
    assert stores.count("lease_gpus") == 1
