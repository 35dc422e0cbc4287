"""``orch dlq``: list, show, retry and purge, one by one and all at once."""

from orchestrator.runtime import Runtime
from tests.integration.cli.conftest import Orch
from tests.support.cli_fields import FIELDS


def bury(orch: Orch, runtime: Runtime, queue: str = "gpu") -> str:
    job = str(orch("submit", "--json", "--queue", queue, "--", "true").document["id"])
    if runtime.letters.bury(job, by="alpha", reason="the worker's app has no task 'x'"):
        return job
    (waiting,) = [found for found in [runtime.jobs.get(job)] if found is not None]
    runtime.admission.admit(
        [(waiting.seq, None)], epoch=runtime.leadership.campaign("test", ttl=runtime.settings.lease_ttl_delta).epoch
    )
    assert runtime.letters.bury(job, by="alpha", reason="the worker's app has no task 'x'")
    return job


def test_a_dead_letter_is_listed_shown_and_tried_again(orch: Orch, runtime: Runtime) -> None:
    job = bury(orch, runtime)

    (letter,) = [one for one in orch("dlq", "list", "--json").document if one["id"] == job]
    assert set(letter) == FIELDS["dlq list"]
    assert orch("dlq", "show", job, "--json").document == letter
    assert "the worker's app has no task 'x'" in orch("dlq", "list", "--class", "poison", "--queue", "gpu").out
    assert job not in orch("dlq", "list", "--class", "lost").out
    assert orch("dlq", "retry", job, "--json").document == [{"id": job, "retried": True}]
    assert orch("dlq", "retry", job).out == f"{job} was tried again before\n"
    assert orch("status", job, "--json").document["state"] in ("pending", "queued")
    assert orch("dlq", "show", job).code == 2


def test_all_of_a_queue_are_retried_or_dismissed_only_when_confirmed(orch: Orch, runtime: Runtime) -> None:
    retried, purged = bury(orch, runtime, "preloads"), bury(orch, runtime, "preloads")
    chosen = ("--queue", "preloads", "--class", "poison")

    for refused in (
        orch("dlq", "retry", "--all", *chosen),
        orch("dlq", "purge", "--all", *chosen),
        orch("dlq", "purge", purged),
    ):
        assert refused.code == 1
    assert len(orch("dlq", "list", "--json", *chosen).document) == 2
    assert orch("dlq", "purge", "--yes", "--json", purged).document == [{"id": purged, "purged": True}]
    assert orch("dlq", "retry", "--all", "--yes", *chosen).out == f"{retried} is tried again\n"
    assert orch("dlq", "purge", "--all", "--yes", "--json", *chosen).document == []


def test_jobs_and_all_exclude_each_other(orch: Orch) -> None:
    for arguments in ((), ("x", "--all"), ("x", "--queue", "gpu")):
        answer = orch("dlq", "retry", *arguments)
        assert answer.code == 2, answer
