"""Output from a place on or from the end, of all attempts or of one, on SQLite and on MariaDB."""

import pytest

from orchestrator.domain.job import JobEvent
from orchestrator.domain.lease import LogChunk
from orchestrator.storage import job_output
from orchestrator.storage.job_output import last_lines
from tests.contract.conftest import Stores


@pytest.mark.parametrize(
    ("texts", "lines", "expected"),
    [
        (["a\nb\n", "c\n"], 1, ["c\n"]),
        (["a\nb\n", "c\n"], 2, ["b\n", "c\n"]),
        (["a\nb\n", "c\n"], 9, ["a\nb\n", "c\n"]),
        (["a\nb", "c\nd"], 1, ["d"]),
        (["a\nb", "c\nd"], 2, ["b", "c\nd"]),
        (["a\n", "b", "c", "d"], 1, ["b", "c", "d"]),
        (["\n", "\n", "\n"], 2, ["\n", "\n"]),
        (["abc"], 1, ["abc"]),
        (["a\n", "b\n"], 0, [""]),
        ([], 5, []),
    ],
)
def test_the_last_lines_begin_where_a_line_begins(texts: list[str], lines: int, expected: list[str]) -> None:
    chunks = [(1, number, text) for number, text in enumerate(texts)]
    kept = last_lines(chunks, lines)

    assert [text for _, _, text in kept] == expected
    assert [number for _, number, _ in kept] == list(range(len(texts)))[len(texts) - len(expected) :]


def test_a_tail_reads_back_over_attempts_and_chunks(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it has to, and no further than the bound."""
    monkeypatch.setattr(job_output, "STEP", 2)
    stores.register("a", 1)
    job, lease = stores.start("a-0", max_attempts=2)
    stores.commit(logs=tuple(LogChunk(job.seq, 1, lease, number, f"first {number}\n") for number in range(3)))
    assert not stores.jobs.logs(job.id, after=None, limit=9, attempt=1).ended
    stores.finish(job, lease, JobEvent.RETRY, delay_seconds=0.0)
    stores.commit(releases=(lease,))
    assert stores.jobs.logs(job.id, after=None, limit=9, attempt=1).ended, "the attempt has, if not the job"
    assert not stores.jobs.logs(job.id, after=None, limit=9).ended
    stores.admission.release_due(limit=9, epoch=stores.lead())
    stores.ledger.admit([(job.seq, "a")])
    outcome = stores.claim(job.seq, "a-0")
    assert outcome.lease_id is not None
    stores.commit(logs=(LogChunk(job.seq, 2, outcome.lease_id, 0, "second\n"),))

    def tail(lines: int, limit: int = 100, attempt: int | None = None) -> tuple[str, bool]:
        page = stores.jobs.log_tail(job.id, lines=lines, limit=limit, attempt=attempt)
        return "".join(text for _, _, text in page.chunks), page.ended

    assert tail(3) == ("first 1\nfirst 2\nsecond\n", False)
    assert tail(99) == ("first 0\nfirst 1\nfirst 2\nsecond\n", False)
    assert tail(99, limit=2) == ("first 2\nsecond\n", False)
    assert tail(2, attempt=1) == ("first 1\nfirst 2\n", True)
    assert tail(2, attempt=3) == ("", False)
    stores.finish(outcome.granted[0], outcome.lease_id, JobEvent.SUCCEED)
    assert tail(1) == ("second\n", True)
    assert [one[:2] for one in stores.jobs.logs(job.id, after=(1, 1), limit=9).chunks] == [(1, 2), (2, 0)]
    assert [one[:2] for one in stores.jobs.logs(job.id, after=(1, 1), limit=9, attempt=1).chunks] == [(1, 2)]
