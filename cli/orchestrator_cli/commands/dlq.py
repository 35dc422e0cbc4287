"""The verbs of dead letters."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import click

from orchestrator.client import Client
from orchestrator.errors import InvalidRequest
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client

CLASSES: Final = ("exit", "exception", "timeout", "oom", "lost", "lease_expired", "vram_exceeded", "idle", "poison")
PAGE: Final = 500

QUEUE = click.option("--queue", help="Only of this queue.")
CLASS = click.option("--class", "failure_class", type=click.Choice(CLASSES), help="Only of this failure class.")
ALL = click.option("--all", "everything", is_flag=True, help="All that the filters let through.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")
JOBS = click.argument("jobs", nargs=-1, metavar="[JOB…]")


@click.group()
def dlq() -> None:
    """Look at dead letters: jobs that could not be processed. Try them again or dismiss them."""


@dlq.command("list")
@QUEUE
@CLASS
@click.option("--limit", type=click.IntRange(1, PAGE), default=100, show_default=True, help="Most lines, the newest.")
@JSON
def list_letters(queue: str | None, failure_class: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, the newest job first."""
    with open_client() as client:
        found = client.dead_letters(queue=queue, failure_class=failure_class, limit=limit)
    letters = found["dead_letters"]
    if as_json:
        show.as_json(letters)
        return
    rows = ([one["id"], one["queue"], one["failure_class"], show.age(one["at"]), one["reason"]] for one in letters)
    show.table(["JOB", "QUEUE", "CLASS", "AGE", "REASON"], rows)
    if found["next"] is not None:
        click.echo("there may be more; see --limit", err=True)


@dlq.command("show")
@click.argument("job")
@JSON
def show_letter(job: str, as_json: bool) -> None:
    """Show one dead letter; `orch status JOB` shows its attempts, `orch logs JOB` their output."""
    with open_client() as client:
        found = client.dead_letter(job)
    if as_json:
        show.as_json(found)
        return
    for name, value in found.items():
        click.echo(f"{name}: {show.harmless(str(value))}")


@dlq.command()
@JOBS
@ALL
@QUEUE
@CLASS
@YES
@JSON
def retry(
    jobs: Sequence[str], everything: bool, queue: str | None, failure_class: str | None, yes: bool, as_json: bool
) -> None:
    """Try jobs again, with all their attempts."""
    _check(jobs, everything, queue, failure_class)
    if everything and not yes:
        click.confirm(f"Try {_which(queue, failure_class)} again?", abort=True, err=True)
    with open_client() as client:
        if everything:
            done = [{"id": job, "retried": True} for job in _retry_all(client, queue, failure_class)]
        else:
            done = [client.retry_dead_letter(job) for job in jobs]
    _tell(done, as_json, lambda one: "is tried again" if one["retried"] else "was tried again before")


@dlq.command()
@JOBS
@ALL
@QUEUE
@CLASS
@YES
@JSON
def purge(
    jobs: Sequence[str], everything: bool, queue: str | None, failure_class: str | None, yes: bool, as_json: bool
) -> None:
    """Dismiss dead letters: they cannot be tried again; their jobs are kept as they ended."""
    _check(jobs, everything, queue, failure_class)
    if not yes:
        which = _which(queue, failure_class) if everything else " ".join(jobs)
        click.confirm(f"Dismiss {which}?", abort=True, err=True)
    with open_client() as client:
        if everything:
            done = [{"id": job, "purged": True} for job in _purge_all(client, queue, failure_class)]
        else:
            done = [client.purge_dead_letter(job) for job in jobs]
    _tell(done, as_json, lambda _: "is dismissed")


COMMANDS = [dlq]


def _check(jobs: Sequence[str], everything: bool, queue: str | None, failure_class: str | None) -> None:
    if bool(jobs) == everything:
        raise InvalidRequest("name jobs, or say --all")
    if jobs and (queue or failure_class):
        raise InvalidRequest("--queue and --class choose among --all")


def _which(queue: str | None, failure_class: str | None) -> str:
    of_queue = f" of queue {queue}" if queue else ""
    return f"all dead letters{of_queue}" + (f" of class {failure_class}" if failure_class else "")


def _retry_all(client: Client, queue: str | None, failure_class: str | None) -> Iterator[str]:
    while True:
        found = client.retry_dead_letters(queue=queue, failure_class=failure_class)
        yield from found["retried"]
        if not found["more"]:
            return


def _purge_all(client: Client, queue: str | None, failure_class: str | None) -> Iterator[str]:
    while True:
        found = client.purge_dead_letters(queue=queue, failure_class=failure_class)
        yield from found["purged"]
        if not found["more"]:
            return


def _tell(done: Sequence[dict[str, Any]], as_json: bool, words: Callable[[dict[str, Any]], str]) -> None:
    if as_json:
        show.as_json(list(done))
        return
    for one in done:
        click.echo(f"{one['id']} {words(one)}")
    if not done:
        click.echo("no dead letters", err=True)
