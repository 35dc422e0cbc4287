"""Whatever text a user's job produces, it cannot keep the rest of its batch from being committed."""

from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.job import JobEvent, JobState
from orchestrator.domain.lease import Finish, LedgerBatch, LogChunk, ProgressReport
from tests.contract.edges.conftest import TTL, Stores

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


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_a_result_comes_back_as_it_was(stores: Stores, text: str) -> None:
    """Several results of different kinds in one batch take the set-based way."""
    values: list[Any] = [text, {text: [text, None, 1.5, True]}]
    seqs = [stores.submit() for _ in values]
    outcome = stores.claim(*(seq for seq, _ in seqs))
    assert outcome.lease_id is not None
    finishes = [
        replace(_success(job.seq, outcome.lease_id), result=value)
        for job, value in zip(outcome.granted, values, strict=True)
    ]

    assert stores.finish(*finishes) == ()

    results = [stores.jobs.get(job_id) for _, job_id in seqs]
    assert [job.result for job in results if job is not None] == values


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_an_error_is_kept_readable(stores: Stores, text: str) -> None:
    """What no database stores as text is replaced; all else is kept as it was."""
    job_id, finish = stores.running()

    assert stores.finish(replace(finish, event=JobEvent.FAIL, error=text)) == ()

    job, attempt = stores.jobs.get(job_id), stores.jobs.attempts(job_id)[0]
    expected = text.translate({0: "\ufffd", 0xD800: "\ufffd"})
    assert job is not None
    assert (job.state, job.error, attempt.error) == (JobState.FAILED, expected, expected)


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_output_and_progress_are_kept(stores: Stores, text: str) -> None:
    """Log chunks and progress of any text are stored under the live claim."""
    job_id, finish = stores.running()
    mine = (finish.job_seq, finish.attempt, finish.lease_id)
    batch = LedgerBatch(logs=(LogChunk(*mine, 0, text),), progress=(ProgressReport(*mine, {"note": text}),))

    stores.ledger.commit("host-a", batch, ttl=TTL)

    job = stores.jobs.get(job_id)
    assert job is not None
    assert job.progress == {"note": text}
    assert stores.jobs.logs(job_id, after=None, limit=10).chunks == (
        (1, 0, text.translate({0: "\ufffd", 0xD800: "\ufffd"})),
    )


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_a_payload_comes_back_as_it_was(stores: Stores, text: str) -> None:
    """Arguments of any text are stored with the job and handed out with its claim."""
    seq, job_id = stores.submit(payload={"args": [text]}, headers={"argsrepr": text})

    outcome = stores.claim(seq)

    assert outcome.granted[0].payload == stores.jobs.get_payload(job_id) == {"args": [text]}


def test_a_batch_larger_than_a_packet_is_committed(stores: Stores) -> None:
    """Results that together exceed the server's largest packet (16 MiB) are written in parts."""
    results = [letter * (3 << 20) for letter in "abcdefg"]
    seqs = [stores.submit() for _ in results]
    outcome = stores.claim(*(seq for seq, _ in seqs))
    assert outcome.lease_id is not None
    finishes = [
        replace(_success(job.seq, outcome.lease_id), result=result)
        for job, result in zip(outcome.granted, results, strict=True)
    ]

    assert stores.finish(*finishes) == ()

    assert stores.jobs.count_by_state()[JobState.SUCCEEDED] == len(results)


def _success(seq: int, lease_id: int) -> Finish:
    return Finish(seq, 1, lease_id, JobEvent.SUCCEED)
