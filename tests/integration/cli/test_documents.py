"""What the verbs print for programs, and that they print something for people."""

import json
import signal
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from orchestrator.domain.job import JobEvent
from orchestrator.domain.request import CommandRequest
from orchestrator.runtime import Runtime
from orchestrator.services.submit import SubmitService
from orchestrator.storage.engine import open_database
from orchestrator.storage.tables import leases
from tests.integration.cli.conftest import Installation, Orch, on_a_terminal
from tests.support.cli_fields import ATTEMPT, FIELDS, USAGE
from tests.support.running import Running, register


def submit(orch: Orch, *options: str) -> str:
    return str(orch("submit", "--json", *options, "--", "true").document["id"])


def test_submit_prints_the_id(orch: Orch) -> None:
    document = orch("submit", "--json", "--", "true").document
    plain = orch("submit", "--", "true")

    assert set(document) == FIELDS["submit"]
    assert document["created"] is True
    assert (plain.code, len(plain.out.split())) == (0, 1)
    assert orch("status", plain.out.strip()).code == 0


def test_what_a_submit_says_is_what_the_job_is(orch: Orch, runtime: Runtime, tmp_path: Path) -> None:
    register(runtime, "alpha", 1)
    job = submit(
        orch,
        *("--name", "train", "--priority", "7", "--time-limit", "1h30m", "--retries", "2"),
        *("--env", "A=b=c", "--cwd", str(tmp_path), "--gpu-memory", "2GiB", "--queue", "preloads"),
    )

    document = orch("status", job, "--json").document

    assert {name: document[name] for name in ("name", "priority", "time_limit", "max_attempts", "queue")} == {
        "name": "train",
        "priority": 7,
        "time_limit": 5400.0,
        "max_attempts": 3,
        "queue": "preloads",
    }
    assert (document["gpus"], document["gpu_memory_mib"]) == (1, 2048)


def test_the_same_key_prints_the_same_id(orch: Orch) -> None:
    first = orch("submit", "--json", "--key", "once", "--", "true").document
    second = orch("submit", "--json", "--key", "once", "--", "true").document

    assert second == {"id": first["id"], "state": second["state"], "created": False}


def test_ps_lists_jobs(orch: Orch) -> None:
    job = submit(orch, "--name", "listed")

    found = orch("ps", "--json").document
    table = orch("ps")

    assert found[0]["id"] == job
    assert set(found[0]) == FIELDS["ps"]
    assert table.code == 0
    assert job in table.out, "ids are never cut"
    assert orch("ps", "--json", "--state", "failed", "--queue", "preloads").document == []


@pytest.mark.parametrize("columns", [80, 100])
def test_on_a_terminal_ids_are_whole_and_lines_fit(orch: Orch, columns: int) -> None:
    """Ids are copied from there: neither cut nor broken in two."""
    job = submit(orch, "--name", "a-name-that-is-longer-than-a-terminal-has-room-for-in-a-table" * 2)

    lines = on_a_terminal(orch, columns, "ps")

    assert any(line.startswith(job) for line in lines), lines
    assert max(len(line) for line in lines) <= columns


def test_status_shows_a_job_and_how_it_ran(orch: Orch, runtime: Runtime) -> None:
    job = submit(orch)
    register(runtime, "alpha", 0)
    Running(runtime, job).end(JobEvent.FAIL, exit_code=7, error="no luck")

    document = orch("status", job, "--json").document
    plain = orch("status", job)

    assert set(document) == FIELDS["status"]
    assert set(document["attempts"][0]) == ATTEMPT
    assert (document["state"], document["exit_code"], document["attempt"]) == ("failed", 7, 1)
    assert plain.code == 0
    assert "no luck" in plain.out


def test_status_shows_the_installation(orch: Orch, installation: Installation) -> None:
    document = orch("status", "--cluster", "--json").document

    assert set(document) == FIELDS["status --cluster"]
    assert document["api_url"].startswith("http://127.0.0.1:")
    assert document["leader"] is None
    assert document["database"].startswith("sqlite:///")
    assert "version:" in orch("status", "--cluster").out


def test_logs_prints_what_the_job_printed(orch: Orch, runtime: Runtime) -> None:
    job = submit(orch)
    register(runtime, "alpha", 0)
    running = Running(runtime, job)
    running.print("one\n")
    running.print("\x1b[2J\x1b[31mtwo\x1b[0m\n")
    running.end()

    document = orch("logs", job, "--json").document

    assert set(document) == FIELDS["logs"]
    assert [set(chunk) for chunk in document["chunks"]] == [{"attempt", "number", "text"}] * 2
    assert document["ended"] is True
    assert orch("logs", job, "--raw").out == "one\n\x1b[2J\x1b[31mtwo\x1b[0m\n"
    assert "\x1b[2J" not in orch("logs", job).out
    assert orch("logs", "-f", job).out.startswith("one\n")


def test_logs_begin_with_the_last_lines(orch: Orch, runtime: Runtime) -> None:
    """And may be those of one attempt."""
    job = submit(orch)
    register(runtime, "alpha", 0)
    running = Running(runtime, job)
    for text in ("one\ntwo\nth", "ree\n", "four\n"):
        running.print(text)
    running.end()

    assert orch("logs", job, "--tail", "2").out == "three\nfour\n"
    assert orch("logs", job, "-f", "--tail", "3", "--attempt", "1").out == "two\nthree\nfour\n"
    document = orch("logs", job, "--tail", "1", "--json").document
    assert (document["chunks"], document["ended"]) == ([{"attempt": 1, "number": 2, "text": "four\n"}], True)
    assert orch("logs", job, "--attempt", "2").out == ""
    assert orch("logs", job, "--tail", "-1").code == orch("logs", job, "--attempt", "0").code == 2


def test_cancel_says_what_it_did(orch: Orch) -> None:
    job, other = submit(orch), submit(orch)

    (first,) = orch("cancel", job, "--json").document
    (second,) = orch("cancel", job, "--json").document

    assert set(first) == FIELDS["cancel"]
    assert (first["cancelled"], first["stopping"], first["state"]) == (True, False, "cancelled")
    assert (second["stopping"], second["state"]) == (False, "cancelled")
    assert orch("cancel", other).out == f"{other} cancelled\n"


def test_wait_tells_how_jobs_ended(orch: Orch, runtime: Runtime) -> None:
    job = submit(orch)
    register(runtime, "alpha", 0)
    Running(runtime, job).end(exit_code=0)

    (document,) = orch("wait", job, "--json").document

    assert set(document) == FIELDS["wait"]
    assert (document["state"], document["exit_code"]) == ("succeeded", 0)


def test_why_says_what_a_job_waits_for(orch: Orch) -> None:
    job = submit(orch, "--queue", "preloads")

    document = orch("why", job, "--json").document
    plain = orch("why", job)

    assert set(document) == FIELDS["why"]
    assert [set(reason) for reason in document["reasons"]] == [{"code", "words"}] * len(document["reasons"])
    assert document["reasons"][0]["code"] == "no_consumer"
    assert document["reasons"][0]["words"] in plain.out


def test_hosts_gpus_and_queues_are_listed(orch: Orch, runtime: Runtime) -> None:
    register(runtime, "alpha", 2)

    nodes, gpus, queues = (orch(verb, "--json").document for verb in ("nodes", "gpus", "queues"))

    assert set(nodes[0]) == FIELDS["nodes"]
    assert set(gpus[0]) == FIELDS["gpus"]
    assert orch("gpus", "--topology", "--json").document == gpus
    assert set(queues[0]) == FIELDS["queues"]
    assert [(node["name"], node["pid"], node["state"], len(node["gpus"])) for node in nodes] == [("alpha", 1, "up", 2)]
    assert {queue["name"] for queue in queues} == {"gpu", "preloads"}
    assert "degraded" not in orch("nodes").out
    runtime.cluster.heartbeat("alpha", (), look_ahead=0, trouble_seconds=1.0)
    assert "degraded" in orch("nodes").out
    for verb, word in (("nodes", "alpha"), ("gpus", "alpha-1"), ("queues", "preloads")):
        assert word in orch(verb).out


def test_gpus_are_listed_with_their_holders_and_watched(orch: Orch, runtime: Runtime) -> None:
    """The table and the JSON name the job; a watch shows the same again and ends well with Ctrl-C."""
    register(runtime, "seen", 2)
    job = submit(orch, "--gpus", "1")
    held = Running(runtime, job, "seen", ("seen-1",))
    free, taken = [gpu for gpu in orch("gpus", "--json").document if gpu["node"] == "seen"]

    assert (free["holders"], free["lease"], free["live"]) == ([], None, True)
    assert [(holder["jobs"], holder["tenant"], holder["lease"]) for holder in taken["holders"]] == [
        ([job], "default", taken["lease"])
    ]
    assert job in orch("gpus").out
    assert "NUMA" in orch("gpus", "--topology").out
    process = orch.start("gpus", "--watch", "--every", "0.1", "--json")
    try:
        assert process.stdout is not None
        seen = [json.loads(process.stdout.readline()) for _ in range(2)]
    finally:
        process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert [[gpu["uuid"] for gpu in reading if gpu["node"] == "seen"] for reading in seen] == [["seen-0", "seen-1"]] * 2
    held.end()


def test_usage_is_summed_up(orch: Orch, runtime: Runtime) -> None:
    """What an ended and a running job leased, by tenant and by GPU."""
    register(runtime, "alpha", 2)
    before = {row["key"]: (row["jobs"], row["attempts"]) for row in orch("usage", "--json").document["usage"]}
    jobs, attempts = before.get("default", (0, 0))
    ended, _held = (Running(runtime, submit(orch, "--gpus", "1"), gpus=(f"alpha-{place}",)) for place in (0, 1))
    ended.end()

    by_tenant, by_gpu = (orch("usage", "--by", by, "--json").document for by in ("tenant", "gpu"))

    assert set(by_tenant) == FIELDS["usage"]
    assert set(by_tenant["total"]) == USAGE
    assert [(row["key"], row["jobs"], row["attempts"]) for row in by_tenant["usage"]] == [
        ("default", jobs + 2, attempts + 2)
    ]
    assert {row["key"] for row in by_gpu["usage"]} >= {"alpha-0", "alpha-1"}
    assert by_gpu["total"]["gpu_seconds"] == pytest.approx(sum(row["gpu_seconds"] for row in by_gpu["usage"]), abs=0.01)
    assert "default" in orch("usage").out
    assert orch("usage", "--by", "moon").code == 2


def test_usage_of_a_window_is_told_in_figures(orch: Orch, runtime: Runtime) -> None:
    """By user and by job: ten minutes on two GPUs, half an hour ago, busy for a quarter of it; then five failed."""
    register(runtime, "ledger", 2)
    asked = CommandRequest(argv=("true",), cwd="/", submitted_by="ada")
    good, bad = (job.id for job in SubmitService(runtime).submit([replace(asked, gpus=gpus) for gpus in (2, 1)]))
    now = runtime.usage.now()

    def ran(job: str, gpus: tuple[str, ...], event: JobEvent, busy: float, *, begun: int, ended: int) -> None:
        begun_at, ended_at = now - timedelta(minutes=begun), now - timedelta(minutes=ended)
        one = Running(runtime, job, "ledger", gpus)
        one.end(event, started_at=begun_at, ended_at=ended_at, gpu_busy_seconds=busy)
        one.release()
        span = {"granted_at": begun_at, "ended_at": ended_at}
        with closing(open_database(runtime.settings.database)) as database:
            database.transaction(lambda c: c.execute(update(leases).where(leases.c.id == one.lease_id).values(span)))

    ran(good, ("ledger-0", "ledger-1"), JobEvent.SUCCEED, 300.0, begun=30, ended=20)
    ran(bad, ("ledger-0",), JobEvent.FAIL, 30.0, begun=20, ended=15)

    def figures(by: str, since: str, *keys: str) -> list[tuple[float, ...]]:
        found = orch("usage", "--json", "--limit", "10000", "--by", by, "--since", since).document["usage"]
        names = ("gpu_seconds", "busy_gpu_seconds", "wasted_gpu_seconds")
        rows = {row["key"]: tuple(row[name] for name in names) for row in found}
        return [rows[key] for key in keys]

    halfway = (now - timedelta(minutes=25)).isoformat()
    assert figures("job", "1h", good, bad) == [(1200.0, 300.0, 0.0), (300.0, 30.0, 300.0)]
    assert figures("job", halfway, good, bad) == [(600.0, 150.0, 0.0), (300.0, 30.0, 300.0)]
    assert figures("user", "1h", "ada") == [(1500.0, 330.0, 300.0)]
    assert figures("user", halfway, "ada") == [(900.0, 180.0, 300.0)]
    (line,) = (line for line in orch("usage", "--by", "user").out.splitlines() if line.startswith("ada"))
    assert line.split() == ["ada", "2", "2", "0.42", "22%", "20%"]
    refused = orch("usage", "--since", "yesterday")
    assert (refused.code, refused.out) == (2, "")
    assert "neither a duration" in refused.err


@pytest.mark.parametrize("verb", ["upgrade", "current", "check"])
def test_the_schema_is_made_and_told(tmp_path: Path, verb: str) -> None:
    orch = Orch(ORCHESTRATOR_HOME=str(tmp_path))
    made = orch("db", "upgrade", "--json").document

    document = orch("db", verb, "--json").document

    assert set(document) == FIELDS[f"db {verb}"]
    assert document["version"] == document["head"] == made["head"]
    assert made["head"] in orch("db", verb).out


def test_orders_tell_of_each_job_and_end_with_the_code_of_a_refusal(orch: Orch) -> None:
    first, second = submit(orch), submit(orch)

    held = orch("hold", "--json", first, second)
    assert held.code == 0
    assert [set(one) for one in held.document] == [FIELDS["hold"]] * 2
    assert orch("ps").out.count("pending, held") == 2
    assert "held by" in orch("why", first).out
    assert orch("priority", "9", first).out == f"{first} has priority 9\n"
    assert orch("release", first).out == f"{first} is released\n"
    assert orch("release", first).out == f"{first} is released already\n"
    refused = orch("retry", first)
    assert (refused.code, refused.out) == (4, "")
    assert refused.err.count("\n") == 1
    assert orch("hold", "nobody").code == 2


def test_queues_and_the_policy_take_orders(orch: Orch) -> None:
    paused = orch("queue", "pause", "gpu", "--json").document
    assert (set(paused), paused["paused"]) == (FIELDS["queue pause"], True)
    assert "by " in orch("queue", "ls").out
    assert set(orch("queue", "resume", "gpu", "--json").document) == FIELDS["queue resume"]
    limited = orch("queue", "set", "gpu", "--most-running", "2", "--time-limit", "1h", "--json").document
    assert (set(limited), limited["most_running"], limited["time_limit"]) == (FIELDS["queue set"], 2, 3600.0)
    lifted = orch("queue", "set", "gpu", "--no-most-running", "--no-time-limit", "--json").document
    assert (lifted["most_running"], lifted["time_limit"]) == (None, None)
    assert orch("queue", "set", "gpu").code == 2
    assert orch("queue", "pause", "none").code == 2

    assert set(orch("policy", "--json").document) == FIELDS["policy"]
    changed = orch("policy", "set", "safe_mode=on", "pool_idle_seconds=5", "--json").document
    assert (set(changed), changed["safe_mode"], changed["pool_idle_seconds"]) == (FIELDS["policy set"], True, 5.0)
    assert "safe_mode:" in orch("policy", "set", "safe_mode=off").out
    assert orch("policy", "set", "safe_mode=perhaps").code == 2


def test_events_tell_what_happened_to_a_job_and_to_all(orch: Orch) -> None:
    job = submit(orch)
    orch("hold", job)
    lines = [json.loads(line) for line in orch("events", "--json").out.splitlines()]
    mine = [line for line in lines if line["job"] == job]

    assert set(mine[0]) == FIELDS["events"]
    assert (mine[0]["kind"], mine[-1]["kind"]) == ("submit", "hold")
    told = orch("events", "--job", job).out.splitlines()
    assert len(told) == len(mine)
    assert " hold by=" in told[-1]
    assert len(orch("events", "--last", "1").out.splitlines()) <= 1
    assert orch("events", "--job", "nobody").code == 2
