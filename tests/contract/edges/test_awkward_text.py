"""Whatever text a user's job produces, it cannot keep the rest of its batch from being committed."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.job import JobEvent, JobState
from orchestrator.domain.lease import LogChunk, ProgressReport
from orchestrator.storage.endings import LARGEST_RESULT
from tests.contract.conftest import Stores

AWKWARD = {
    "quotes": 'it\'s "so" \\ and `so`\n\ttabs\r\n',
    "astral": "🎉 𝔘 ü 漢",
    "nul": "before\x00after",
    "controls": "\x01\x1b[31m\x7f\u2028",
    "lone surrogate": "before\ud800after",
    "json": '{"a": [1, null]}',
    "percent": "100 %s :name {now}",
    "empty": "",
}


@pytest.fixture(autouse=True)
def _host(stores: Stores) -> None:
    stores.register("a", 2)


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_a_result_comes_back_as_it_was(stores: Stores, text: str) -> None:
    """Several results of different kinds in one batch take the set-based way."""
    values: list[Any] = [text, {text: [text, None, 1.5, True]}]
    jobs = stores.running_together(len(values))
    finishes = tuple(replace(finish, result=value) for (_, finish), value in zip(jobs, values, strict=True))

    assert stores.commit(finishes=finishes).stale == ()

    assert [stores.job(job_id).result for job_id, _ in jobs] == values


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_an_error_is_kept_readable(stores: Stores, text: str) -> None:
    """What no database stores as text is replaced; all else is kept as it was."""
    job_id, finish = stores.running()

    assert stores.commit(finishes=(replace(finish, event=JobEvent.FAIL, error=text),)).stale == ()

    job, attempt = stores.job(job_id), stores.jobs.attempts(job_id)[0]
    assert (job.state, job.error, attempt.error) == (JobState.FAILED, _stored(text), _stored(text))


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_output_and_progress_are_kept(stores: Stores, text: str) -> None:
    """Log chunks and progress of any text are stored under the live claim."""
    job_id, finish = stores.running()
    mine = (finish.job_seq, finish.attempt, finish.lease_id)

    stores.commit(logs=(LogChunk(*mine, 0, text),), progress=(ProgressReport(*mine, {"note": text}),))

    assert stores.job(job_id).progress == {"note": text}
    assert stores.jobs.logs(job_id, after=None, limit=10).chunks == ((1, 0, _stored(text)),)


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_a_payload_comes_back_as_it_was(stores: Stores, text: str) -> None:
    """Arguments of any text are stored with the job and handed out with its claim."""
    job, _ = stores.start("a-0", payload={"args": [text]}, headers={"argsrepr": text})

    assert job.payload == stores.jobs.get_payload(job.id) == {"args": [text]}


def test_a_batch_larger_than_a_packet_is_committed(stores: Stores) -> None:
    """Results that together exceed the server's largest packet (16 MiB) are written in parts."""
    jobs = stores.running_together(7)
    finishes = tuple(replace(finish, result=str(place) * (3 << 20)) for place, (_, finish) in enumerate(jobs))

    assert stores.commit(finishes=finishes).stale == ()

    assert [stores.job(job_id).result[:1] for job_id, _ in jobs] == list("0123456")


def test_a_result_too_large_to_store_is_left_out_and_the_reason_says_so(stores: Stores) -> None:
    """The job has succeeded all the same, and the results beside it are stored."""
    (small, first), (large, second) = stores.running_together(2)

    stores.commit(finishes=(replace(first, result=[1]), replace(second, result="x" * LARGEST_RESULT)))

    assert (stores.job(small).result, stores.job(small).reason) == ([1], None)
    job = stores.job(large)
    assert (job.state, job.result) == (JobState.SUCCEEDED, None)
    assert "larger than" in str(job.reason)


def _stored(text: str) -> str:
    return text.translate({0: "\ufffd", 0xD800: "\ufffd"})
