"""Verbs that tell who one is to the API, and what was changed by whom."""

from typing import Any, Final

import click

from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client

PAGE: Final = 500


@click.command()
@JSON
def whoami(as_json: bool) -> None:
    """Say whom the token stands for."""
    with open_client() as client:
        found = client.whoami()
    if as_json:
        show.as_json(found)
        return
    whose = f" of tenant {found['tenant']}" if found["tenant"] else ""
    click.echo(show.harmless(f"{found['name']}, {found['role']}{whose}"))


@click.command()
@click.option("--last", type=click.IntRange(1), default=50, show_default=True, help="How far to look back.")
@JSON
def audit(last: int, as_json: bool) -> None:
    """Print what was changed and by whom, newest first; for admins."""
    lines: list[dict[str, Any]] = []
    cursor = None
    with open_client() as client:
        while len(lines) < last:
            page = client.audit(limit=min(PAGE, last - len(lines)), cursor=cursor)
            lines += page["entries"]
            cursor = page["next"]
            if cursor is None:
                break
    if as_json:
        show.as_json(lines)
        return
    columns = ["AT", "WHO", "ROLE", "TENANT", "ACTION", "TARGET", "OUTCOME"]
    names = ("actor", "role", "tenant", "action", "target", "outcome")
    rows = ([line["at"][:19], *(line[name] for name in names)] for line in lines)
    show.table(columns, rows, can_go=("TENANT", "ROLE"))


COMMANDS = [whoami, audit]
