"""What goes wrong is one line and an exit code that tells what to do; and how jobs' own ends are passed on."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from orchestrator.domain.job import Job, JobEvent
from orchestrator.ports import JobFilter
from orchestrator.runtime import Runtime
from tests.integration.cli.conftest import ORCH, TOKEN, Answer, Installation, Orch
from tests.support.cli_fields import FIELDS
from tests.support.running import Running, register
from tests.support.servers import free_port
from tests.support.waiting import wait_for

JOB = "01890000-0000-7000-8000-000000000000"


def assert_one_line(answer: Answer, code: int, words: str = "") -> None:
    """The command said in one line on stderr what is wrong, and nothing on stdout."""
    assert answer.code == code, answer
    assert answer.out == ""
    assert answer.err.startswith("orch: "), answer.err
    assert answer.err.count("\n") == 1, answer.err
    assert words in answer.err


def submit(orch: Orch) -> str:
    return orch("submit", "--", "true").out.strip()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["submit", "--gpus", "-1", "--", "true"], "gpus"),
        (["submit", "--gpus", "1000", "--", "true"], "GPU"),
        (["submit", "--priority", "10", "--", "true"], "priority"),
        (["submit", "--retries", "-1", "--", "true"], "retries"),
        (["submit", "--time-limit", "0", "--", "true"], "time_limit"),
        (["submit", "--queue", "nowhere", "--", "true"], "unknown queue 'nowhere'"),
        (["submit", "--env", "LD_PRELOAD=x", "--", "true"], "LD_PRELOAD"),
        (["submit", "--name", "a\nb", "--", "true"], "name"),
        (["submit", "--key", "", "--", "true"], "key"),
        (["submit", "--", ""], "argv"),
        (["run", "--gpus", "-1", "--", "true"], "gpus"),
        (["ps", "--state", "odd"], "state"),
        (["status"], "--cluster"),
        (["status", JOB, "--cluster"], "--cluster"),
        (["submit", "--warn", "5m", "--", "true"], "--warn needs a longer --time-limit"),
        (["submit", "--retry-on", "oops=1", "--", "true"], "'oops' is none of exit, exception"),
        (["submit", "--retry-on", "oom", "--", "true"], "say how often, as oom=2"),
        (["status", JOB], "unknown job"),
        (["status", "../nodes"], "not a job id"),
        (["status", ""], "not a job id"),
        (["logs", JOB], "unknown job"),
        (["logs", "-f", JOB], "unknown job"),
        (["wait", JOB], "unknown job"),
        (["cancel", JOB], "unknown job"),
        (["why", JOB], "unknown job"),
    ],
    ids=lambda value: " ".join(value).replace("\n", " ") if isinstance(value, list) else None,
)
def test_the_users_mistake_is_one_line_and_2(orch: Orch, runtime: Runtime, arguments: list[str], words: str) -> None:
    register(runtime, "alpha", 2)

    assert_one_line(orch(*arguments), 2, words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["submit"],
        ["submit", "--gpus", "many", "--", "true"],
        ["submit", "--gpu-memory", "huge", "--", "true"],
        ["submit", "--time-limit", "nan", "--", "true"],
        ["submit", "--env", "NAME", "--", "true"],
        ["ps", "--limit", "0"],
        ["wait", JOB, "--timeout", "-1"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_2(orch: Orch, arguments: list[str]) -> None:
    answer = orch(*arguments)

    assert (answer.code, answer.out) == (2, "")
    assert "Error: " in answer.err


def test_a_command_over_the_limit_is_one_line_and_2(orch: Orch) -> None:
    """Of 1 MiB; one argument may have 128 KiB on Linux."""
    assert_one_line(orch("submit", "--", "true", *["x" * 120_000] * 10), 2, "the limit is")


def test_a_key_of_another_request_is_4(orch: Orch) -> None:
    assert orch("submit", "--key", "taken", "--", "true").code == 0

    assert_one_line(orch("submit", "--key", "taken", "--", "false"), 4, "idempotency key 'taken'")


@pytest.mark.parametrize("verb", [["ps"], ["submit", "--", "true"], ["run", "--", "true"], ["nodes"], ["wait", JOB]])
def test_an_api_that_is_not_there_is_3(orch: Orch, verb: list[str]) -> None:
    answer = orch(*verb, ORCHESTRATOR_API_URL=f"http://127.0.0.1:{free_port()}")

    assert_one_line(answer, 3, "does not answer")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "nonsense", "http://127.0.0.1:port", "http://["])
def test_an_address_that_is_none_is_one_line(orch: Orch, url: str) -> None:
    answer = orch("ps", ORCHESTRATOR_API_URL=url)

    assert answer.code in {2, 3}
    assert_one_line(answer, answer.code)


@pytest.mark.parametrize(
    "content", [b"api_url = ", b"\xff\xfe", b'api_url = "http://127.0.0.1:port"', b'token_file = "/nonexistent/token"']
)
def test_a_profile_that_cannot_be_read_is_2(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "client.toml").write_bytes(content)

    assert_one_line(Orch(ORCHESTRATOR_HOME=str(tmp_path))("ps"), 2)


def test_the_token_may_come_from_a_variable_or_a_file(orch: Orch, installation: Installation, tmp_path: Path) -> None:
    """Whatever is named by a variable beats the profile; without a token nothing is told."""
    bare = Orch(ORCHESTRATOR_HOME=str(tmp_path), ORCHESTRATOR_API_URL=installation.url)
    (tmp_path / "wrong").write_text("wrong\n")

    assert orch("ps").code == 0
    assert bare("ps", ORCHESTRATOR_API_TOKEN=TOKEN).code == 0
    assert bare("ps", ORCHESTRATOR_API_TOKEN_FILE=str(installation.token_file)).code == 0
    assert_one_line(bare("ps"), 2, "bearer token")
    assert_one_line(bare("ps", ORCHESTRATOR_API_TOKEN="two\nlines"), 2, "token")
    assert_one_line(bare("ps", ORCHESTRATOR_API_TOKEN="schlüssel"), 2, "bearer token")
    assert_one_line(orch("ps", ORCHESTRATOR_API_TOKEN_FILE=str(tmp_path / "wrong")), 2, "bearer token")


def test_no_api_is_shown_the_token_of_another(orch: Orch, installation: Installation, tmp_path: Path) -> None:
    """The profile's token is for the profile's API; by another address even its own API does not get it."""
    elsewhere = installation.url.replace("127.0.0.1", "localhost")

    assert_one_line(orch("ps", ORCHESTRATOR_API_URL=elsewhere), 2, "bearer token")
    assert_one_line(orch("--api-url", elsewhere, "ps"), 2, "bearer token")
    assert orch("--api-url", installation.url + "/", "ps").code == 0
    assert orch("--api-url", elsewhere, "ps", ORCHESTRATOR_API_TOKEN=TOKEN).code == 0


def test_the_option_beats_the_variable(orch: Orch, installation: Installation) -> None:
    away = f"http://127.0.0.1:{free_port()}"

    assert orch("--api-url", installation.url, "ps", ORCHESTRATOR_API_URL=away).code == 0
    assert_one_line(orch("--api-url", away, "ps"), 3, "does not answer")


@pytest.mark.parametrize("option", ["--name", "--env", "--key", "--cwd", "--"])
def test_bytes_that_are_not_utf_8_are_one_line(orch: Orch, option: str) -> None:
    """As from a file's name in another encoding."""
    value = os.fsdecode(b"A=\xff")
    arguments = [option, value, "true"] if option == "--" else [option, value, "--", "true"]

    assert_one_line(orch("submit", *arguments), 2)


def test_a_directory_that_is_gone_is_one_line(orch: Orch, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    script = 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"'

    done = subprocess.run(
        ["sh", "-c", script, str(gone), *ORCH, "submit", "--", "true"],
        env=orch.environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert_one_line(Answer(done.returncode, done.stdout, done.stderr), 2, "--cwd")


def test_a_wrong_id_keeps_no_other_job_from_its_cancellation(orch: Orch) -> None:
    first, second = submit(orch), submit(orch)

    answer = orch("cancel", first, JOB, "not/an/id", second, "--json")

    assert answer.code == 2
    assert [job["id"] for job in json.loads(answer.out)] == [first, second]
    assert [line[:6] for line in answer.err.splitlines()] == ["orch: ", "orch: "]
    assert [orch("status", job, "--json").document["state"] for job in (first, second)] == ["cancelled"] * 2


def test_a_wrong_id_is_told_before_the_wait(orch: Orch) -> None:
    assert_one_line(orch("wait", submit(orch), JOB, "--timeout", "20"), 2, "unknown job")


def test_waiting_too_long_is_124(orch: Orch) -> None:
    job = submit(orch)

    answer = orch("wait", job, "--timeout", "0.2")

    assert_one_line(answer, 124, f"job {job} is still")


def test_a_job_that_did_not_run_is_125(orch: Orch) -> None:
    job = submit(orch)
    orch("cancel", job)

    assert orch("wait", job).code == 125


def test_wait_ends_with_the_first_code_that_is_not_0(orch: Orch, runtime: Runtime) -> None:
    jobs = [submit(orch) for _ in range(3)]
    register(runtime, "alpha", 0)
    for job, code in zip(jobs, (0, 7, 9), strict=True):
        event = JobEvent.FAIL if code else JobEvent.SUCCEED
        Running(runtime, job).end(event, exit_code=code)

    assert orch("wait", jobs[0]).code == 0
    assert orch("wait", *jobs).code == 7


def test_run_shows_the_output_and_ends_with_the_jobs_code(orch: Orch, runtime: Runtime) -> None:
    process = orch.start("run", "--name", "attached", "--", "true")
    running = _take_up(runtime, "attached")
    running.print("hello\n")
    running.end(JobEvent.FAIL, exit_code=7, error="no luck")

    out, err = process.communicate(timeout=30)

    assert (process.returncode, out) == (7, "hello\n")
    assert err.startswith("orch: job ")
    assert "no luck" in err


def test_run_with_json_prints_the_ended_job_alone_on_stdout(orch: Orch, runtime: Runtime) -> None:
    process = orch.start("run", "--json", "--name", "for-programs", "--", "true")
    running = _take_up(runtime, "for-programs")
    running.print("hello\n")
    running.end(JobEvent.FAIL, exit_code=7, error="no \x1b[2Jluck")

    out, err = process.communicate(timeout=30)

    assert process.returncode == 7
    assert set(json.loads(out)) == FIELDS["run"]
    assert err.startswith("hello\n")
    assert "no luck" in err


def test_ctrl_c_cancels_what_run_started(orch: Orch, runtime: Runtime) -> None:
    process = orch.start("run", "--name", "interrupted", "--", "true")
    running = _take_up(runtime, "interrupted")
    process.send_signal(signal.SIGINT)
    wait_for(lambda: _job(runtime, "interrupted").cancel_requested_at, within_seconds=15, describe="it is cancelled")
    running.end(JobEvent.CANCEL)

    _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert "cancelling job" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("verb", ["upgrade", "current", "check"])
def test_a_database_that_cannot_be_opened_is_one_line(tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").touch()
    orch = Orch(ORCHESTRATOR_HOME=str(tmp_path))

    assert_one_line(orch("db", verb, ORCHESTRATOR_DATABASE_URL=f"sqlite:///{tmp_path}/file/gone.db"), 3)
    away = orch("db", verb, ORCHESTRATOR_DATABASE_URL=f"mysql+pymysql://u:hidden@127.0.0.1:{free_port()}/x")
    assert_one_line(away, 3)
    assert "hidden" not in away.err
    assert_one_line(orch("db", verb, ORCHESTRATOR_DATABASE_URL="nonsense"), 2)


def test_a_database_without_a_schema_is_4(tmp_path: Path) -> None:
    assert_one_line(Orch(ORCHESTRATOR_HOME=str(tmp_path))("db", "check"), 4, "orch db upgrade")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ORCHESTRATOR_COLOUR": "red"}, "ORCHESTRATOR_COLOUR"),
        ({"ORCHESTRATOR_API_HOST": "0.0.0.0"}, "api_token"),  # noqa: S104
        ({"ORCHESTRATOR_API_TOKEN": ""}, "api_token"),
        ({"ORCHESTRATOR_API_TOKEN_FILE": "/nonexistent/token"}, "api_token_file"),
        ({"ORCHESTRATOR_REDIS_URL": "nonsense"}, "redis_url"),
    ],
)
def test_wrong_settings_are_one_line_and_2(tmp_path: Path, variables: dict[str, str], words: str) -> None:
    """Said before anything is served."""
    assert_one_line(Orch(ORCHESTRATOR_HOME=str(tmp_path))("api", **variables), 2, words)


def _job(runtime: Runtime, name: str) -> Job:
    (job,) = runtime.jobs.list_jobs(JobFilter(name=name))
    return job


def _take_up(runtime: Runtime, name: str) -> Running:
    """Play the worker that gets the job of this name, once it is submitted."""
    register(runtime, "alpha", 0)
    wait_for(lambda: runtime.jobs.list_jobs(JobFilter(name=name)), within_seconds=15, describe="it is submitted")
    return Running(runtime, _job(runtime, name).id)
