"""What is repeated, lost or cancelled at an awkward moment ends as it should."""

from dataclasses import replace
from datetime import timedelta

from orchestrator.domain.cluster import NodeState
from orchestrator.domain.job import FailureClass, JobEvent, JobState
from orchestrator.domain.lease import LedgerBatch
from tests.contract.edges.conftest import TTL, Stores, host

TERM = timedelta(seconds=30)


def test_a_finish_that_is_repeated_is_not_stale(stores: Stores) -> None:
    """A worker whose commit took effect and whose answer was lost sends it again, and is told the truth."""
    job_id, finish = stores.running()
    assert stores.finish(finish) == ()

    assert stores.finish(finish) == ()

    assert stores.kinds(job_id).count("succeed") == 1


def test_a_finish_that_contradicts_the_recorded_end_is_stale(stores: Stores) -> None:
    """Only the very same end counts as a repeat."""
    job_id, finish = stores.running()
    stores.finish(finish)
    other = replace(finish, event=JobEvent.FAIL, failure_class=FailureClass.EXCEPTION)

    assert stores.finish(other) == (other,)

    job = stores.jobs.get(job_id)
    assert job is not None
    assert job.state is JobState.SUCCEEDED


def test_a_finish_from_another_host_is_stale(stores: Stores) -> None:
    """A token is worth nothing on a host that it was not granted to."""
    job_id, finish = stores.running()

    assert stores.finish(finish, node="host-b") == (finish,)

    job = stores.jobs.get(job_id)
    assert job is not None
    assert job.state is JobState.RUNNING


def test_a_job_that_is_to_be_cancelled_does_not_run_again(stores: Stores) -> None:
    """Once a cancel is acknowledged, no retry, loss or return of the attempt starts the job again."""
    for event in (JobEvent.RETRY, JobEvent.LOSE, JobEvent.GIVE_BACK):
        job_id, finish = stores.running()
        assert stores.jobs.request_cancel(job_id, by="ada", reason="wrong data").stopping

        assert stores.finish(replace(finish, event=event)) == ()

        job = stores.jobs.get(job_id)
        assert job is not None
        assert (event, job.state) == (event, JobState.CANCELLED)
        assert stores.jobs.attempts(job_id)[0].outcome == "cancel"
        stores.ledger.commit("host-a", LedgerBatch(releases=(finish.lease_id,)), ttl=TTL)


def test_a_cancelled_job_whose_worker_died_does_not_run_again(stores: Stores) -> None:
    """The host's next life takes the loss for the cancel it was asked for."""
    job_id, _ = stores.running()
    stores.jobs.request_cancel(job_id, by="ada", reason="wrong data")

    stores.cluster.register_node(host("host-a", pid=2))

    job = stores.jobs.get(job_id)
    assert job is not None
    assert job.state is JobState.CANCELLED
    assert stores.scalar("SELECT COUNT(*) FROM orchestrator_scheduled") == 0


def test_a_release_loses_what_still_runs_under_the_lease(stores: Stores) -> None:
    """A job claimed in a commit whose answer was lost is unknown to its worker, and must not stay running for ever."""
    job_id, finish = stores.running()

    stores.ledger.commit("host-a", LedgerBatch(releases=(finish.lease_id,)), ttl=TTL)

    job = stores.jobs.get(job_id)
    assert job is not None
    assert (job.state, job.lost_count) == (JobState.SCHEDULED, 1)
    assert stores.jobs.attempts(job_id)[0].outcome == "lose"


def test_a_lease_is_released_by_its_own_host_alone(stores: Stores) -> None:
    """A release that names another host's lease changes nothing."""
    job_id, finish = stores.running()

    stores.ledger.commit("host-b", LedgerBatch(releases=(finish.lease_id,)), ttl=TTL)

    job = stores.jobs.get(job_id)
    assert job is not None
    assert job.state is JobState.RUNNING
    assert stores.ledger.renew("host-a", [finish.lease_id], ttl=TTL).live == {finish.lease_id}


def test_a_host_withdraws_only_what_it_could_take(stores: Stores) -> None:
    """A stale entry on one host does not undo another host's admission."""
    seq, _ = stores.submit()
    stores.ledger.commit("host-b", LedgerBatch(withdrawals=(seq,)), ttl=TTL)
    assert stores.jobs.count_by_state()[JobState.PENDING] == 1
    assert len(stores.ledger.admit([(seq, "host-a")])) == 1

    stores.ledger.commit("host-b", LedgerBatch(withdrawals=(seq,)), ttl=TTL)

    assert stores.jobs.count_by_state()[JobState.QUEUED] == 1


def test_what_is_on_its_way_to_a_host_that_takes_nothing_goes_elsewhere(stores: Stores) -> None:
    """A host that ended in order, or drains, leaves no job stranded in its own stream."""
    term = stores.leadership.campaign("leader", ttl=TERM)
    seqs = [stores.submit()[0] for _ in range(3)]
    stores.ledger.commit("host-a", LedgerBatch(withdrawals=tuple(seqs)), ttl=TTL)
    stores.ledger.admit([(seqs[0], "host-a"), (seqs[1], "host-b")])
    stores.cluster.deregister_node("host-a", 1)
    stores.cluster.set_node_state("host-b", NodeState.DRAINING)

    assert stores.admission.lose_nodes(silent_for=TERM, epoch=term.epoch) == []

    assert stores.jobs.count_by_state()[JobState.PENDING] == 3
    assert stores.claim(seqs[0]).granted == ()


def test_the_history_names_the_host_of_each_admission(stores: Stores) -> None:
    """Jobs admitted together for different hosts are recorded each with its own."""
    jobs = [stores.submit() for _ in range(2)]
    seqs = tuple(seq for seq, _ in jobs)
    stores.ledger.commit("host-a", LedgerBatch(withdrawals=seqs), ttl=TTL)

    stores.ledger.admit([(seqs[0], "host-a"), (seqs[1], "host-b")])

    admitted = [
        [event.node for event in stores.jobs.history(job_id) if event.kind == "admit"][-1] for _, job_id in jobs
    ]
    assert admitted == ["host-a", "host-b"]


def test_leases_are_pruned_with_the_jobs_that_name_them(stores: Stores) -> None:
    """Nothing of a job stays when it is pruned, its lease included; a live lease stays."""
    term = stores.leadership.campaign("leader", ttl=TERM)
    _, done = stores.running()
    stores.ledger.commit("host-a", LedgerBatch(finishes=(done,), releases=(done.lease_id,)), ttl=TTL)
    _, running = stores.running()

    pruned = stores.admission.prune(older_than=timedelta(seconds=-60), limit=10, epoch=term.epoch)

    assert pruned == 2
    assert stores.scalar("SELECT COUNT(*) FROM orchestrator_jobs") == 1
    assert stores.scalar("SELECT MIN(id) FROM orchestrator_leases") == running.lease_id
    assert stores.scalar("SELECT COUNT(*) FROM orchestrator_lease_gpus") == 1
