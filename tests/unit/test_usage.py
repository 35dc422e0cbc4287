"""Accounting: every second of every lease is somebody's, once."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.job import TRANSITIONS, JobEvent, JobState
from orchestrator.domain.usage import NOBODY, AttemptUse, HolderUse, LeaseUse, Usage, UsageKey, fold_usage

T0 = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def attempt(
    job: str, begun: float, ended: float | None, *, outcome: str | None = "succeed", busy: float | None = None
) -> AttemptUse:
    end = None if ended is None else at(ended)
    return AttemptUse(job, f"tenant-{job[0]}", "user", "gpu", at(begun), end, outcome, busy)


def lease(granted: float, ended: float | None, *attempts: AttemptUse, gpus: str = "0", share: float = 1.0) -> LeaseUse:
    shares = tuple((uuid, share) for uuid in gpus)
    return LeaseUse(1, "host", at(granted), None if ended is None else at(ended), shares, attempts)


def sums(*leases: LeaseUse, by: UsageKey = UsageKey.JOB, since: float = 0, until: float = 1000) -> dict[str, Usage]:
    rows, _total = fold_usage(leases, by=by, since=at(since), until=at(until))
    return {row.key: row for row in rows}


def test_a_lease_is_divided_among_its_attempts_by_how_long_they_ran() -> None:
    """The second between them included."""
    found = sums(lease(0, 10, attempt("a1", 0, 3), attempt("b1", 4, 10), gpus="01"))

    assert {key: row.leased for key, row in found.items()} == pytest.approx({"a1": 20 * 3 / 9, "b1": 20 * 6 / 9})


def test_a_share_counts_as_its_part() -> None:
    assert sums(lease(0, 10, attempt("a1", 0, 10), share=0.25))["a1"].leased == 2.5


def test_nobody_was_busy_for_longer_than_it_had_leased() -> None:
    """A job's begin and end are told by its worker's clock, a lease's by the database's."""
    found = sums(lease(0, 10, attempt("a1", 0, 10, busy=10.5)), lease(0, 10, attempt("b1", 0, 10, busy=9), share=0.25))
    assert {key: (row.leased, row.busy) for key, row in found.items()} == {"a1": (10, 10), "b1": (2.5, 2.5)}


def test_a_lease_without_a_job_is_its_holders() -> None:
    """Wasted is nothing of it, and it is counted for its tenant."""
    held = replace(lease(0, 10, gpus="01"), holder=HolderUse(7, "red", "ada"))
    keys = {by: next(iter(sums(held, by=by))) for by in (UsageKey.TENANT, UsageKey.USER, UsageKey.JOB, UsageKey.QUEUE)}
    assert list(keys.values()) == ["red", "ada", "lease:7", NOBODY]
    (row,), total = fold_usage([held], by=UsageKey.USER, since=at(0), until=at(100), tenant="red")
    assert (row.leased, row.wasted, row.attempts, total.leased) == (20, 0, 0, 20)
    assert fold_usage([held], by=UsageKey.USER, since=at(0), until=at(100), tenant="blue")[1].leased == 0


def test_what_did_not_succeed_is_wasted_and_what_runs_is_not() -> None:
    found = sums(
        lease(0, 10, attempt("a1", 0, 10, outcome="lose")),
        lease(0, 10, attempt("a1", 0, 10)),
        lease(990, None, attempt("b1", 990, None, outcome=None)),
        by=UsageKey.TENANT,
    )
    assert (found["tenant-a"].leased, found["tenant-a"].wasted) == (20, 10)
    assert (found["tenant-b"].leased, found["tenant-b"].wasted) == (10, 0)
    assert (found["tenant-a"].attempts, len(found["tenant-a"].jobs)) == (2, 1)


def test_only_the_seconds_of_the_window_count() -> None:
    found = sums(lease(0, 100, attempt("a1", 0, 100, busy=50)), since=90, until=95)
    assert (found["a1"].leased, found["a1"].busy) == (5, 2.5)


def test_a_lease_that_nobody_ran_under_is_shown_as_nobodys() -> None:
    found = sums(lease(0, 10))
    assert (found[NOBODY].leased, found[NOBODY].wasted) == (10, 10)
    assert sums(lease(0, 10), by=UsageKey.GPU)["0"].leased == 10


#: How attempts end that used a GPU.
OUTCOMES = [
    event.value for (state, event) in TRANSITIONS if state is JobState.RUNNING and event is not JobEvent.GIVE_BACK
]


@st.composite
def histories(draw: st.DrawFn) -> list[LeaseUse]:
    made = []
    for _ in range(draw(st.integers(0, 6))):
        granted = draw(st.integers(0, 500))
        ended = draw(st.none() | st.integers(granted, 600))
        cuts = draw(st.lists(st.integers(0, 50), max_size=3))
        jobs = [draw(st.sampled_from(["a1", "a2", "b1"])) for _cut in cuts]
        ends = [None if ended is None else max(granted, ended - cut) for cut in cuts]
        outcomes = [draw(st.sampled_from(OUTCOMES)) if ended is not None else None for _cut in cuts]
        busy = [draw(st.none() | st.floats(0, 2000)) for _cut in cuts]
        runs = [
            attempt(job, granted, end, outcome=outcome, busy=seconds)
            for job, end, outcome, seconds in zip(jobs, ends, outcomes, busy, strict=True)
        ]
        gpus, share = draw(st.sampled_from(["0", "01", "123"])), draw(st.sampled_from([1.0, 0.25]))
        made.append(lease(granted, ended, *runs, gpus=gpus, share=share))
    return made


def held_of(use: LeaseUse, since: int, until: int) -> float:
    """Return the GPU-seconds of a lease within a window."""
    begin, end = max(use.granted_at, at(since)), min(use.ended_at or at(until), at(until))
    return max(0.0, (end - begin).total_seconds()) * sum(share for _uuid, share in use.shares)


@given(histories(), st.integers(0, 300), st.integers(301, 700))
def test_whatever_is_summed_by_the_sums_are_equal(leases: list[LeaseUse], since: int, until: int) -> None:
    """F43: over jobs, over tenants, over GPUs: the same seconds, which are those that the leases held."""
    held = sum(held_of(use, since, until) for use in leases)
    for by in UsageKey:
        rows, total = fold_usage(leases, by=by, since=at(since), until=at(until))
        assert sum(row.leased for row in rows) == pytest.approx(held)
        assert total.leased == pytest.approx(held)
        assert total.wasted <= total.leased + 1e-6
        for row in (*rows, total):
            assert row.busy <= row.leased + 1e-6, "nobody was busy for longer than it had leased"
        assert sum(row.busy for row in rows) == pytest.approx(total.busy)
        assert sum(row.wasted for row in rows) == pytest.approx(total.wasted)
