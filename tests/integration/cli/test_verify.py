"""``orch admin verify`` on a database of its own."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import create_engine, text

from orchestrator.storage.engine import open_database
from orchestrator.storage.jobs import SqlJobStore
from orchestrator.storage.schema import upgrade
from orchestrator_cli.main import cli
from tests.contract.conftest import new_job
from tests.support.cli_fields import FIELDS


@pytest.fixture
def with_jobs(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a database with three queued jobs, which the settings name."""
    upgrade(sqlite_url)
    database = open_database(sqlite_url)
    with database.engine.begin() as connection:
        queue = "INSERT INTO orchestrator_queues (name, paused, window, version) VALUES ('gpu', 0, 16, 0)"
        connection.execute(text(queue))
    SqlJobStore(database).submit([new_job() for _ in range(3)])
    database.close()
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", sqlite_url)
    return sqlite_url


def verify(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["admin", "verify", *arguments])


def break_a_job(url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE orchestrator_ready SET publish_at = NULL WHERE job_seq = 2"))
    engine.dispose()


def test_a_clean_history_is_told_in_a_line_and_ends_with_0(with_jobs: str) -> None:
    answer = verify()

    assert answer.exit_code == 0, answer.output
    assert ": clean; checked 3 jobs, 6 events, 0 attempts" in answer.output


def test_a_violation_is_told_with_its_place_and_ends_with_1(with_jobs: str) -> None:
    break_a_job(with_jobs)
    answer = verify()
    told = json.loads(verify("--json").stdout)

    assert answer.exit_code == 1
    assert "outbox" in answer.output
    assert ": 1 violations; checked 3 jobs" in answer.output
    assert told.keys() == FIELDS["admin verify"]
    assert (told["clean"], told["counts"], told["checked"]["jobs"]) == (False, {"outbox": 1}, 3)
    assert [one["invariant"] for one in told["violations"]] == ["outbox"]
    assert told["violations"][0].keys() == {"invariant", "subject", "seen", "where"}


def test_what_should_be_over_is_asked_for(with_jobs: str) -> None:
    told = json.loads(verify("--json", "--settled", "--overdue", "1h").stdout)

    assert told["counts"] == {"settled": 3}


def test_dumps_are_read_and_those_that_are_none_are_refused(with_jobs: str, tmp_path: Path) -> None:
    common = {"boot_id": "b", "token": 1, "gpus": ["g"], "exclusive": True, "op": "began"}
    journal = tmp_path / "journal"
    journal.mkdir()
    lines = [common | {"mark": mark, "pid": pid, "at": 1.0} for mark, pid in (("m1", 1), ("m2", 2))]
    lines += [{"op": "exit", "mark": mark, "at": 9.0} for mark in ("m1", "m2")]
    (journal / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = json.loads(verify("--json", "--dumps", str(journal)).stdout)
    (journal / "b.jsonl").write_text("no JSON\n")
    refused = verify("--dumps", str(journal))

    assert (told["counts"], told["checked"]["runners"]) == ({"runner-exclusive": 1}, 2)
    assert refused.exit_code == 2
    assert "b.jsonl:1" in refused.output


def test_a_schema_of_another_release_is_refused(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", sqlite_url)
    answer = verify()

    assert answer.exit_code == 4
    assert "orch db upgrade" in answer.output


def test_the_database_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", "mysql+pymysql://me:s3cret@127.0.0.1:1/x")
    answer = verify()

    assert answer.exit_code == 3
    assert "s3cret" not in answer.output
