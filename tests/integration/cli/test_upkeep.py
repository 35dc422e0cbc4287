"""``orch admin purge`` and ``orch admin leader``: what they print, for people and for programs."""

from datetime import timedelta

from orchestrator.runtime import Runtime
from tests.integration.cli.conftest import Orch
from tests.support.aging import end_earlier
from tests.support.cli_fields import FIELDS
from tests.support.running import Running, register


def test_old_jobs_are_counted_and_deleted(orch: Orch, runtime: Runtime) -> None:
    """It asks first, with how many there are, and a dry run does nothing."""
    register(runtime, "alpha", 1)
    jobs = [str(orch("submit", "--json", "--", "true").document["id"]) for _ in range(2)]
    for job in jobs:
        running = Running(runtime, job)
        running.end()
        running.release()
    end_earlier(runtime, jobs[0], timedelta(days=8))

    assert orch("admin", "purge", "--older-than", "7d", "--dry-run").out == "1 jobs would be deleted\n"
    asked = orch("admin", "purge", "--older-than", "7d")
    assert (asked.code, "Delete 1 jobs?" in asked.err) == (1, True), "nobody said yes"
    assert orch("status", jobs[0]).code == 0
    done = orch("admin", "purge", "--older-than", "7d", "--yes", "--json").document
    assert done == {"jobs": 1, "dry_run": False}
    assert set(done) == FIELDS["admin purge"]
    assert orch("status", jobs[0]).code == 2
    assert orch("status", jobs[1]).code == 0
    assert orch("admin", "purge", "--older-than", "7d", "--yes").out == "0 jobs deleted\n"
    early = orch("admin", "purge", "--older-than", "1m", "--yes")
    assert early.code == 2
    assert "older_than_seconds" in early.err


def test_the_leader_is_shown_and_deposed(orch: Orch, runtime: Runtime) -> None:
    term = runtime.leadership.current()
    if term is not None:
        runtime.leadership.resign(term.holder, term.epoch)
    assert orch("admin", "leader").out == "nobody leads\n"
    nobody = orch("admin", "leader", "--depose")
    assert (nobody.code, nobody.err.strip()) == (4, "orch: nobody leads")

    epoch = runtime.leadership.campaign("host:7:ab", ttl=timedelta(hours=1)).epoch
    assert orch("admin", "leader").out == f"host:7:ab leads: process 7 on host, epoch {epoch}\n"
    assert set(orch("admin", "leader", "--json").document) == FIELDS["admin leader"]
    assert orch("admin", "leader", "--depose").out == f"host:7:ab leads no longer (epoch {epoch})\n"
    assert orch("admin", "leader").out == "nobody leads\n"
    runtime.leadership.campaign("host:7:ab", ttl=timedelta(hours=1))
    assert set(orch("admin", "leader", "--depose", "--json").document) == FIELDS["admin leader --depose"]
