"""Verbs that give orders about jobs which do not run: priority, hold, release, retry."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from orchestrator.errors import Conflict, OrchestratorError, UnknownJob
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.main import exit_code
from orchestrator_cli.profile import open_client

#: Jobs of one request.
MOST_IDS: Final = 1000
JOBS = click.argument("jobs", nargs=-1, required=True, metavar="JOB...")


@click.command()
@click.argument("priority", type=click.IntRange(0, 9), metavar="P")
@JOBS
@JSON
def priority(priority: int, jobs: Sequence[str], as_json: bool) -> None:
    """Give jobs that wait another priority, 0 to 9; 9 starts first."""
    _give("priority", jobs, as_json, f"has priority {priority}", priority=priority)


@click.command()
@JOBS
@JSON
def hold(jobs: Sequence[str], as_json: bool) -> None:
    """Keep jobs that have not started from starting, until they are released."""
    _give("hold", jobs, as_json, "is held")


@click.command()
@JOBS
@JSON
def release(jobs: Sequence[str], as_json: bool) -> None:
    """Let held jobs take their place among the others."""
    _give("release", jobs, as_json, "is released")


@click.command()
@JOBS
@JSON
def retry(jobs: Sequence[str], as_json: bool) -> None:
    """Have jobs that failed, were cancelled or are dead letters tried again, with all their attempts."""
    _give("retry", jobs, as_json, "is tried again")


COMMANDS = [priority, hold, release, retry]


def _give(order: str, jobs: Sequence[str], as_json: bool, words: str, **more: Any) -> None:
    """Give the order, tell what became of each job, and end with the code of the first that it was refused for."""
    with open_client() as client:
        results = [
            result
            for start in range(0, len(jobs), MOST_IDS)
            for result in client.order_jobs(order, jobs[start : start + MOST_IDS], **more)
        ]
    if as_json:
        show.as_json(results)
    else:
        for line in _lines(results, words):
            click.echo(line)
    refused = [result for result in results if result["problem"]]
    if len(refused) == 1:
        raise _error(refused[0])
    for result in refused:
        click.echo(f"orch: {show.harmless(result['detail'])}", err=True)
    if refused:
        sys.exit(exit_code(_error(refused[0])))


def _lines(results: Sequence[dict[str, Any]], words: str) -> Iterator[str]:
    for result in results:
        if not result["problem"]:
            yield f"{result['id']} {words}" + ("" if result["changed"] else " already")


def _error(result: dict[str, Any]) -> OrchestratorError:
    if result["problem"] == UnknownJob.code:
        return UnknownJob(result["id"])
    return Conflict(result["detail"])
