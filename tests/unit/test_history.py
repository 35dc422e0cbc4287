"""The checker's rules on rows that were made up: what no script of the real storage can bring about."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator.domain.history import AttemptRow, Event, GpuRow, Hold, JobHistory, JobRow, LeaseRow, ReadyPlace
from orchestrator.domain.job import JobState, LeaseMode, Resources
from orchestrator.testing.history import MOST_KEPT, Expectations, History, Report, verify
from orchestrator.testing.invariants import Violation
from orchestrator.testing.job_invariants import check_job
from orchestrator.testing.lease_invariants import check_gpu, check_leaders, check_lease

AT = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
LEASE = LeaseRow(7, "a", LeaseMode.EXCLUSIVE, None, "active", AT, AT, AT + 30 * SECOND, None, ("g",))
JOB = JobRow(1, "j", "gpu", JobState.RUNNING, Resources(1), 1, 1, 0, 7, None, None)
ATTEMPT = AttemptRow(1, 7, "a", False, None, None)
GPU = GpuRow("g", "a", 1000, 0, 7, 7, 1)
HOLD = Hold(7, LeaseMode.EXCLUSIVE, None, "active", 1, None, True)


def events(*kinds: str) -> tuple[Event, ...]:
    """Return a job's events, a second apart; those from the claim on name the lease."""
    named = False
    told = []
    for number, kind in enumerate(kinds):
        named = named or kind == "claim"
        lease, node = (7, "a") if named and kind != "ask_cancel" else (None, None)
        told.append(Event(number + 1, AT + number * SECOND, kind, 1, node, lease))
    return tuple(told)


RUNNING = JobHistory(JOB, events("submit", "admit", "claim"), (ATTEMPT,), {7: LEASE})


def names(history: JobHistory) -> set[str]:
    return {one.invariant for one in check_job(history)}


def test_a_running_job_is_clean() -> None:
    assert names(RUNNING) == set()


@pytest.mark.parametrize(
    ("kinds", "invariant"),
    [
        (("admit", "claim"), "legal-path"),
        (("submit", "submit", "admit", "claim"), "legal-path"),
        (("submit", "claim"), "legal-path"),
        (("submit", "ask_cancel", "admit", "claim"), "legal-path"),
        (("submit", "admit", "claim", "claim"), "one-attempt"),
        (("submit", "admit", "claim", "succeed", "claim"), "one-end"),
        ((), "legal-path"),
    ],
)
def test_an_illegal_way_is_named(kinds: tuple[str, ...], invariant: str) -> None:
    assert invariant in names(replace(RUNNING, events=events(*kinds)))


def test_a_way_that_went_wrong_once_is_not_reported_at_every_step() -> None:
    history = replace(RUNNING, events=events("submit", "claim", "retry", "release", "admit", "claim"))

    assert [one.where for one in check_job(history) if one.invariant == "legal-path"] == ["event 2"]


def test_words_that_are_no_moves_of_a_job_are_passed_over() -> None:
    assert names(replace(RUNNING, events=events("submit", "admit", "noted", "claim"))) == set()


def test_a_row_that_disagrees_with_its_events_is_told() -> None:
    assert names(replace(RUNNING, job=replace(JOB, state=JobState.SUCCEEDED, lease_id=None))) == {"legal-path"}
    assert names(replace(RUNNING, job=replace(JOB, lease_id=8))) == {"running-under-lease"}
    assert names(replace(RUNNING, leases={})) == {"claim-under-live-lease", "running-under-lease"}
    ended = replace(LEASE, state="expired", ended_at=AT + 40 * SECOND)
    assert names(replace(RUNNING, leases={7: ended})) == {"running-under-lease"}


def test_a_claim_is_made_under_a_lease_of_its_host_that_holds_what_was_asked_for() -> None:
    assert names(replace(RUNNING, leases={7: replace(LEASE, node="b")})) == {"claim-under-live-lease"}
    assert names(replace(RUNNING, leases={7: replace(LEASE, gpus=("g", "h"))})) == {"gang-whole"}
    shared = replace(LEASE, mode=LeaseMode.SHARED, memory_mib=400)
    assert names(replace(RUNNING, leases={7: shared})) == {"gang-whole"}
    of_share = replace(RUNNING, job=replace(JOB, resources=Resources(1, 400)), leases={7: shared})
    assert names(of_share) == set()
    assert names(replace(of_share, leases={7: replace(shared, memory_mib=399)})) == {"gang-whole"}


def test_a_claim_that_was_given_back_was_no_attempt() -> None:
    twice = events("submit", "admit", "claim", "give_back", "admit", "claim")

    assert names(replace(RUNNING, events=twice)) == set()
    assert names(replace(RUNNING, events=twice, job=replace(JOB, attempt=2))) == {"attempts-counted"}


def test_a_job_waits_in_the_place_that_its_state_names() -> None:
    queued = replace(JOB, state=JobState.QUEUED, attempt=0, lease_id=None, ready=ReadyPlace(AT, None, None))
    history = JobHistory(queued, events("submit", "admit"))
    pending = replace(queued, state=JobState.PENDING)

    assert names(history) == set()
    assert names(replace(history, job=replace(queued, ready=None))) == {"waits-in-one-place"}
    assert names(replace(history, job=replace(queued, scheduled_at=AT))) == {"waits-in-one-place"}
    assert names(replace(history, job=replace(queued, ready=ReadyPlace(None, None, None)))) == {"outbox"}
    assert names(JobHistory(pending, events("submit", "admit", "withdraw"))) == {"outbox"}
    assert names(replace(RUNNING, job=replace(JOB, ready=queued.ready))) == {"waits-in-one-place", "outbox"}


def test_an_attempt_is_recorded_as_it_was() -> None:
    assert names(replace(RUNNING, attempts=())) == {"attempts-counted"}
    assert names(replace(RUNNING, attempts=(replace(ATTEMPT, number=2),))) == {"attempts-counted"}
    assert names(replace(RUNNING, attempts=(replace(ATTEMPT, node="b"),))) == {"attempts-counted"}
    assert names(replace(RUNNING, attempts=(replace(ATTEMPT, ended=True, outcome="fail"),))) == {"attempts-counted"}
    beyond = replace(ATTEMPT, number=2, last_output_at=AT)
    assert names(replace(RUNNING, attempts=(ATTEMPT, beyond))) == {"attempts-counted", "fenced-output"}


def test_a_job_that_a_person_brought_back_has_new_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever event the transition table gives the way out of an end."""
    from orchestrator.domain.job import JobEvent
    from orchestrator.testing import job_invariants

    back = {(JobState.FAILED, JobEvent.RELEASE): JobState.PENDING}
    monkeypatch.setattr(job_invariants, "TRANSITIONS", job_invariants.TRANSITIONS | back)
    failed = replace(ATTEMPT, ended=True, outcome="fail", failure_class="exit")
    again = events("submit", "admit", "claim", "fail", "release", "admit", "claim", "fail")
    job = replace(JOB, state=JobState.FAILED, attempt=2, lease_id=None)
    history = JobHistory(job, again, (failed, replace(failed, number=2)), {7: LEASE})

    assert names(history) == set()


def test_a_lease_is_consistent_in_itself() -> None:
    ended = replace(LEASE, state="released", ended_at=AT + SECOND)

    assert list(check_lease(LEASE)) == list(check_lease(ended)) == []
    for wrong in (replace(LEASE, state="released"), replace(LEASE, ended_at=AT)):
        assert [one.invariant for one in check_lease(wrong)] == ["lease-consistent"]


def test_a_gpus_holds_follow_each_other() -> None:
    before = Hold(5, LeaseMode.EXCLUSIVE, None, "released", 1, 2, False)
    now = replace(HOLD, taken_turn=3)

    def told(*holds: Hold, gpu: GpuRow = GPU) -> list[str]:
        return [one.invariant for one in check_gpu(gpu, holds)]

    assert told(before, now) == []
    assert told(replace(before, freed_turn=4), now) == ["gpu-exclusive"]
    assert told(replace(before, lease_id=9), now, gpu=replace(GPU, last_lease_id=9)) == ["gpu-tokens-grow"]
    assert told(before, now, gpu=replace(GPU, last_lease_id=5)) == ["gpu-tokens-grow"]
    assert told(before, now, gpu=replace(GPU, exclusive_lease_id=None)) == ["gpu-row-agrees"]
    assert told(replace(before, lease_state="active"), now) == ["lease-consistent", "lease-consistent"]
    assert told(before, replace(now, is_marked=False)) == ["lease-consistent"]


def test_shares_fit_the_gpu_at_every_turn() -> None:
    gpu = replace(GPU, exclusive_lease_id=None, reserved_mib=600, last_lease_id=3)
    first = Hold(1, LeaseMode.SHARED, 400, "released", 1, 3, False)
    second = Hold(2, LeaseMode.SHARED, 600, "active", 2, None, False)

    assert list(check_gpu(gpu, [first, second])) == []
    crowded = replace(first, memory_mib=401)
    assert [one.invariant for one in check_gpu(gpu, [crowded, second])] == ["gpu-capacity"]


def test_terms_follow_each_other_and_what_is_written_lies_in_its_own() -> None:
    def told(*epochs: tuple[str, int]) -> list[str]:
        written = [Event(number, AT, kind, epoch=epoch) for number, (kind, epoch) in enumerate(epochs)]
        return [one.invariant for one in check_leaders(written)]

    assert told(("leader", 4), ("release", 4), ("leader", 5), ("release", 5)) == []
    assert told(("leader", 4), ("leader", 4)) == ["one-leader"]
    assert told(("leader", 4), ("leader", 6)) == ["one-leader"]
    assert told(("leader", 4), ("leader", 5), ("release", 4)) == ["fenced-sweeps"]
    assert told(("leader", 4), ("release", 5)) == ["fenced-sweeps"]


def test_what_should_be_over_is_asked_for_alone() -> None:
    history = History(at=AT + 60 * SECOND, of_jobs=[RUNNING], of_leases=[LEASE], of_gpus=[GPU], of_holds={"g": [HOLD]})

    assert verify(history).is_clean
    assert verify(history, Expectations(settled=True)).counts == {"settled": 1}
    assert verify(history, Expectations(overdue=31 * SECOND)).is_clean
    assert verify(history, Expectations(overdue=29 * SECOND)).counts == {"no-overdue": 1}
    assert verify(history, Expectations(acknowledged=["j", "other"])).counts == {"acknowledged-job-exists": 1}


def test_what_a_leader_has_to_act_on_is_not_overdue() -> None:
    place = ReadyPlace(AT + 10 * SECOND, None, None)
    waiting = replace(JOB, attempt=0, lease_id=None)
    queued = replace(waiting, state=JobState.QUEUED, ready=place, deadline=AT + 20 * SECOND)
    scheduled = replace(waiting, state=JobState.SCHEDULED, run_at=AT, scheduled_at=AT)
    told = {
        bound: verify(
            History(
                at=AT + 60 * SECOND,
                of_jobs=[JobHistory(queued, events("submit", "admit")), JobHistory(scheduled, events("submit"))],
            ),
            Expectations(overdue=bound * SECOND),
        )
        for bound in (60, 50, 45, 35)
    }

    assert [report.counts["no-overdue"] for report in told.values()] == [0, 1, 2, 3]


def test_an_entry_that_is_looked_for_later_is_there_now() -> None:
    place = ReadyPlace(AT + 70 * SECOND, "1-0", None)
    queued = replace(JOB, state=JobState.QUEUED, attempt=0, lease_id=None, ready=place)
    history = History(at=AT + 60 * SECOND, of_jobs=[JobHistory(queued, events("submit", "admit"))])

    assert verify(history, Expectations(exist=lambda entries: [True] * len(entries))).is_clean
    gone = verify(history, Expectations(exist=lambda entries: [False] * len(entries)))
    assert gone.counts == {"entry-reachable": 1}
    due = replace(queued, ready=replace(place, publish_at=AT))
    sought = replace(history, of_jobs=[JobHistory(due, events("submit", "admit"))])
    assert verify(sought, Expectations(exist=lambda entries: [False] * len(entries))).is_clean


def test_a_report_keeps_the_first_and_counts_the_rest() -> None:
    report = Report()
    for number in range(MOST_KEPT + 5):
        report.add(Violation("settled", f"job {number}", "is running"))

    assert (len(report.violations), report.counts) == (MOST_KEPT, {"settled": MOST_KEPT + 5})
    assert str(report).startswith("settled: job 0: is running\n")
