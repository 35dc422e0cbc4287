"""Which failures are followed by another attempt, and what a request may say of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.job import FailureClass, NewJob
from orchestrator.domain.request import CommandRequest, Limits, new_job
from orchestrator.domain.retry import NOT_BY_ITSELF, RETRIABLE, class_of_exception, may_retry
from orchestrator.errors import InvalidJob

ID = "01890000-0000-7000-8000-000000000000"
COMMAND = CommandRequest(argv=("true",))


def made(**fields: object) -> NewJob:
    """Return the job of a request."""
    return new_job(replace(COMMAND, **fields), id=ID, limits=Limits())  # type: ignore[arg-type]


@given(
    st.sampled_from(FailureClass),
    st.integers(1, 12),
    st.integers(1, 6),
    st.none() | st.dictionaries(st.sampled_from(RETRIABLE), st.integers(1, 10)),
)
def test_no_job_is_tried_more_often_than_its_owner_allowed(
    failure: FailureClass, failed: int, max_attempts: int, retry_on: dict[FailureClass, int] | None
) -> None:
    """Whatever the class: neither beyond the attempts in all, nor beyond the number of its class, nor unasked."""
    again = may_retry(failure, failed=failed, max_attempts=max_attempts, retry_on=retry_on)

    if again:
        assert failed < max_attempts
        assert failure in RETRIABLE
        assert failure not in NOT_BY_ITSELF if retry_on is None else failed <= retry_on[failure]
    elif failed < max_attempts and failure in RETRIABLE:
        assert failure in NOT_BY_ITSELF if retry_on is None else retry_on.get(failure, 0) < failed


def test_a_class_with_a_number_of_its_own_may_go_beyond_the_others() -> None:
    job = made(retry_on={"oom": 3, "timeout": None}, max_attempts=2)

    assert job.retry_on == {FailureClass.OOM: 3, FailureClass.TIMEOUT: 1}
    assert job.max_attempts == 4
    assert made(retry_on={}, max_attempts=2).retry_on is None


@pytest.mark.parametrize(
    ("retry_on", "fault"),
    [
        ({"oops": 1}, "'oops' is none of exit, exception, timeout, oom, vram_exceeded, idle"),
        ({"lost": 1}, "a lost worker is no failure, and bounded by max_lost"),
        ({"oom": None}, "oom: say how often, as oom=2"),
        ({"oom": 0}, "retry_on.oom: must be between 1 and 99, is 0"),
        ({"oom": "2"}, "retry_on.oom: must be a whole number"),
        ([("oom", 2)], "must map failure classes to numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(retry_on: object, fault: str) -> None:
    with pytest.raises(InvalidJob, match=fault):
        made(retry_on=retry_on)


def test_exceptions_are_classified_by_their_names() -> None:
    names = {"OutOfMemoryError": "oom", "MemoryError": "oom", "SoftTimeLimitExceeded": "timeout"}
    names |= {"KeyError": "exception"}
    assert {name: class_of_exception(name) for name in names} == names
