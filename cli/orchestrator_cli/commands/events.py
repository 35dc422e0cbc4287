"""The verb that tells what happened."""

import json
from typing import Any, Final

import click

from orchestrator.client import Client
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import PATIENCE_SECONDS
from orchestrator_cli.profile import open_client

LONG_POLL: Final = 15.0
PAGE: Final = 500


@click.command()
@click.option("--job", "job_id", metavar="JOB", help="Of one job, from its submit on.")
@click.option("--follow", "-f", is_flag=True, help="Go on as things happen.")
@click.option("--last", type=click.IntRange(1, PAGE), default=50, show_default=True, help="How far to look back.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line.")
def events(job_id: str | None, follow: bool, last: int, as_json: bool) -> None:
    """Print what happened: to jobs and hosts, and who gave which orders."""
    with open_client() as client:
        if follow:
            client.patience_seconds = PATIENCE_SECONDS
        after = 0
        page = client.event_page(job_id, **({"limit": PAGE} if job_id else {"last": last}))
        while True:
            for event in page["events"]:
                _print(event, as_json)
            after = max(after, page["next"])
            if not follow and len(page["events"]) < PAGE:
                return
            page = _next(client, job_id, after, follow)


COMMANDS = [events]


def _next(client: Client, job_id: str | None, after: int, follow: bool) -> dict[str, Any]:
    return client.event_page(job_id, after=after, wait_seconds=LONG_POLL if follow else 0)


def _print(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(event))
        return
    about = [event.get("job"), event["node"], f"lease {event['lease']}" if event["lease"] is not None else None]
    said = " ".join(f"{name}={value}" for name, value in event["data"].items())
    line = " ".join(part for part in (event["at"][:23], event["kind"], *about, said) if part)
    click.echo(show.harmless(line))
