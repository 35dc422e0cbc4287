"""Verbs about jobs."""

import signal
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from orchestrator.client import Client, RemoteError
from orchestrator.errors import InvalidRequest, OrchestratorError
from orchestrator_cli import show
from orchestrator_cli.interrupts import HeldInterrupt
from orchestrator_cli.job_options import job_body, job_options
from orchestrator_cli.profile import open_client
from orchestrator_cli.tree import show_tree, with_canvases
from orchestrator_cli.values import Duration

ENDED: Final = frozenset({"succeeded", "failed", "cancelled", "dead_letter"})
#: What `wait` and `run` end with when the job has no exit code of its own.
NOT_RUN: Final = 125
POLL_SECONDS: Final = 0.3
#: Who waits for a job outlives a restart of the API, and of what it needs.
PATIENCE_SECONDS: Final = 30.0

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@job_options
@click.option("--wait", "and_wait", is_flag=True, help="Wait for the job and end with its exit code.")
@JSON
def submit(and_wait: bool, as_json: bool, **options: Any) -> None:
    """Submit a command: orch submit --gpus 2 -- python train.py

    The job is durable when its id is printed.
    """
    with open_client() as client:
        submitted = client.submit(job_body(**options))
        if as_json:
            show.as_json(submitted)
        else:
            click.echo(submitted["id"])
        if and_wait:
            client.patience_seconds = PATIENCE_SECONDS
            raise SystemExit(_exit_code(_wait(client, submitted["id"])))


@click.command()
@job_options
@click.option("--raw", is_flag=True, help="Pass control characters of the output on.")
@click.option("--json", "as_json", is_flag=True, help="Show the output on stderr; print the ended job as JSON.")
def run(raw: bool, as_json: bool, **options: Any) -> None:
    """Submit a command and stay attached: its output is shown, Ctrl-C cancels it, its exit code is ours."""
    with open_client() as client:
        with HeldInterrupt() as interrupt:
            job_id = client.submit(job_body(**options))["id"]
        client.patience_seconds = PATIENCE_SECONDS
        try:
            if interrupt.came:
                raise KeyboardInterrupt
            for text in client.follow(job_id):
                show.output(text, raw=raw, err=as_json)
        except KeyboardInterrupt:
            click.echo(f"\ncancelling job {job_id}", err=True)
            client.cancel(job_id)
            _wait(client, job_id)
            raise SystemExit(128 + signal.SIGINT) from None
        job = client.job(job_id)
        if as_json:
            show.as_json(job)
        if job["state"] != "succeeded":
            why_not = show.harmless(job["reason"] or job["error"] or "")
            click.echo(f"orch: job {job_id} {job['state']}: {why_not}", err=True)
        raise SystemExit(_exit_code(job))


@click.command()
@click.option("--all", "-a", "everything", is_flag=True, help="Ended jobs too.")
@click.option("--state", multiple=True, help="Only jobs in this state; can be given again.")
@click.option("--queue", help="Only jobs of this queue.")
@click.option("--root", help="Only jobs of the canvas with this root, ended ones too.")
@click.option("--group", help="Only jobs of this group, ended ones too.")
@click.option("--tree", "as_tree", is_flag=True, help="Show whole canvases: who was called by whom, who waits.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, show_default=True)
@JSON
def ps(
    everything: bool,
    state: Sequence[str],
    queue: str | None,
    root: str | None,
    group: str | None,
    as_tree: bool,
    limit: int,
    as_json: bool,
) -> None:
    """List jobs, newest first; without --all those that have not ended, and the latest that have."""
    with open_client() as client:
        everything = everything or root is not None or group is not None
        wanted = list(state) or (None if everything else ["blocked", "scheduled", "pending", "queued", "running"])
        asked: dict[str, Any] = {"queue": queue, "root": root, "group": group}
        found = client.jobs(state=wanted, **asked, limit=limit)["jobs"]
        if not state and not everything and len(found) < limit:
            found += client.jobs(state=sorted(ENDED), **asked, limit=min(10, limit - len(found)))["jobs"]
        if as_tree:
            found = with_canvases(client, found)
    if as_json:
        show.as_json(found)
    elif as_tree:
        show_tree(found)
    else:
        _show_list(found)


@click.command()
@click.argument("job_id", metavar="JOB", required=False)
@click.option("--cluster", is_flag=True, help="Show the installation instead of a job.")
@JSON
def status(job_id: str | None, cluster: bool, as_json: bool) -> None:
    """Show a job with its attempts, or with --cluster the installation."""
    if cluster == (job_id is not None):
        raise InvalidRequest("name a job, or give --cluster")
    with open_client() as client:
        document = client.cluster() if job_id is None else client.job(job_id)
    if as_json:
        show.as_json(document)
        return
    attempts = document.pop("attempts", [])
    for name, value in document.items():
        if value is not None:
            click.echo(f"{name + ':':22}{show.harmless(str(value))}")
    if attempts:
        click.echo()
        _show_attempts(attempts)


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Go on until the job ends.")
@click.option("--tail", type=click.IntRange(0, 10_000), metavar="N", help="Begin with the last N lines.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Of the Nth attempt alone.")
@click.option("--raw", is_flag=True, help="Pass control characters on.")
@JSON
def logs(job_id: str, follow: bool, tail: int | None, attempt: int | None, raw: bool, as_json: bool) -> None:
    """Print what a job printed."""
    with open_client() as client:
        if follow:
            client.job(job_id)
            client.patience_seconds = PATIENCE_SECONDS
        if follow and not as_json:
            for text in client.follow(job_id, tail=tail, attempt=attempt):
                show.output(text, raw=raw)
            return
        chunks, after = [], None
        while True:
            page = client.logs(job_id, after=after, wait_seconds=15 if follow else 0, tail=tail, attempt=attempt)
            chunks += page["chunks"]
            after = page["next"]
            tail = tail if after is None else None
            if page["ended"] or not (page["chunks"] or follow):
                break
    if as_json:
        show.as_json({"id": job_id, "chunks": chunks, "ended": page["ended"]})
    else:
        show.output("".join(chunk["text"] for chunk in chunks), raw=raw)


@click.command()
@click.argument("job_ids", metavar="JOB...", nargs=-1, required=True)
@click.option("--timeout", type=Duration(), help="Stop waiting after so long; exit code 124.")
@JSON
def wait(job_ids: Sequence[str], timeout: float | None, as_json: bool) -> None:
    """Wait until jobs have ended; ends with the job's exit code, of several with the first that is not 0."""
    deadline = None if timeout is None else time.monotonic() + timeout
    with open_client() as client:
        for job_id in job_ids:
            client.job(job_id)  # a wrong id is told now, not when the jobs before it have ended
        client.patience_seconds = PATIENCE_SECONDS if timeout is None else min(PATIENCE_SECONDS, timeout)
        ended = [_wait(client, job_id, deadline) for job_id in job_ids]
    if as_json:
        show.as_json([{name: job[name] for name in ("id", "state", "exit_code", "reason")} for job in ended])
    codes = [_exit_code(job) for job in ended]
    raise SystemExit(next((code for code in codes if code), 0))


@click.command()
@click.argument("job_ids", metavar="[JOB...]", nargs=-1)
@click.option("--tree", help="Cancel the whole canvas that this job belongs to, what it has not called yet included.")
@click.option("--group", help="Cancel the members of this group, and what waits for them.")
@JSON
def cancel(job_ids: Sequence[str], tree: str | None, group: str | None, as_json: bool) -> None:
    """Cancel jobs; cancelling twice changes nothing. A wrong id keeps none of the others from being cancelled."""
    if not (job_ids or tree or group):
        raise InvalidRequest("name jobs, or a canvas with --tree, or a group with --group")
    outcomes: list[dict[str, Any]] = []
    mistakes: list[OrchestratorError] = []
    with open_client() as client:
        for name, value in (("tree", tree), ("group", group)):
            if value is not None:
                outcomes += _cancel_canvas(client, **{name: value})
        for job_id in job_ids:
            try:
                outcomes.append(client.cancel(job_id))
            except (RemoteError, InvalidRequest) as error:
                mistakes.append(error)
    if as_json and outcomes:
        show.as_json([{name: job[name] for name in ("id", "state", "cancelled", "stopping")} for job in outcomes])
    elif outcomes:
        click.echo("\n".join(f"{job['id']} {_cancelled(job)}" for job in outcomes))
    for mistake in mistakes[:-1]:
        click.echo(f"orch: {show.harmless(str(mistake))}", err=True)
    if mistakes:
        raise mistakes[-1]


@click.command()
@click.argument("job_id", metavar="JOB")
@JSON
def why(job_id: str, as_json: bool) -> None:
    """Say why a job waits, or how it ended."""
    with open_client() as client:
        answer = client.why(job_id)
    if as_json:
        show.as_json(answer)
        return
    click.echo(answer["state"])
    for reason in answer["reasons"]:
        click.echo(f"  {show.harmless(reason['words'])}")


def _show_attempts(attempts: Sequence[Mapping[str, Any]]) -> None:
    """Print a table; what only jobs with alternatives have is shown of them alone."""
    has_choice = any(one["choice"] is not None for one in attempts)
    rows = (
        [
            one["number"],
            one["node"],
            one["lease"],
            ",".join(one["gpus"]),
            *([one["choice"]] if has_choice else []),
            one["pid"],
            one["outcome"],
            one["exit_code"],
            show.age(one["started_at"]),
        ]
        for one in attempts
    )
    choice = ["CHOICE"] if has_choice else []
    show.table(["TRY", "NODE", "LEASE", "GPUS", *choice, "PID", "OUTCOME", "EXIT", "STARTED"], rows)


COMMANDS = [submit, run, ps, status, logs, wait, cancel, why]


def _cancelled(job: dict[str, Any]) -> str:
    if job["cancelled"]:
        return "cancelled"
    return "is being ended" if job["stopping"] else f"had {job['state']} already"


def _show_list(found: Sequence[dict[str, Any]]) -> None:
    show.table(
        ["ID", "NAME", "STATE", "GPUS", "NODE", "TRY", "RUN", "AGE", "DONE", "EXIT"],
        (
            [
                job["id"],
                job["name"],
                f"{job['state']}, held" if job["held_by"] else job["state"],
                show.gpus(job),
                job["node"],
                job["attempt"] or None,
                show.run_time(job),
                show.age(job["created_at"]),
                show.progress(job),
                job["exit_code"],
            ]
            for job in found
        ),
        can_go=("NODE", "TRY", "GPUS", "DONE"),
    )


def _cancel_canvas(client: Client, **which: str) -> list[dict[str, Any]]:
    answer = client.cancel_canvas(**which)
    ended = [{"id": one, "state": "cancelled", "cancelled": True, "stopping": False} for one in answer["cancelled"]]
    return ended + [{"id": one, "state": "running", "cancelled": False, "stopping": True} for one in answer["stopping"]]


def _wait(client: Client, job_id: str, deadline: float | None = None) -> dict[str, Any]:
    pause = 0.05
    while True:
        job = client.job(job_id)
        if job["state"] in ENDED:
            return job
        if deadline is not None and time.monotonic() >= deadline:
            click.echo(f"orch: job {job_id} is still {job['state']}", err=True)
            raise SystemExit(124)
        time.sleep(pause)
        pause = min(POLL_SECONDS, pause * 1.5)


def _exit_code(job: dict[str, Any]) -> int:
    if job["state"] == "succeeded":
        return 0
    if job["state"] == "failed":
        return int(job["exit_code"] or 1)
    return NOT_RUN
