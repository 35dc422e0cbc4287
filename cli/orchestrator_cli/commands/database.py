"""``orch db``: the schema.

What reads it is imported by the verbs that do: it would take other verbs half of their start.
"""

import click

from orchestrator.config import load_settings, masked_url
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON


@click.group()
def db() -> None:
    """The database's schema."""


@db.command()
@JSON
def upgrade(as_json: bool) -> None:
    """Bring the schema to this release's version; from an empty database too."""
    from orchestrator.storage import schema

    url = load_settings().database
    version = schema.upgrade(url)
    _print(as_json, version, url, f"{masked_url(url)} is at version {version}")


@db.command()
@JSON
def current(as_json: bool) -> None:
    """Print the schema's version."""
    from orchestrator.storage import schema

    url = load_settings().database
    version = schema.current(url)
    _print(as_json, version, url, version or "no schema; run: orch db upgrade")


@db.command()
@JSON
def check(as_json: bool) -> None:
    """Compare the schema with this release's tables; exit code 4 if they differ."""
    from orchestrator.storage import schema

    url = load_settings().database
    version = schema.check(url)
    _print(as_json, version, url, f"{masked_url(url)} fits this release (version {version})")


COMMANDS = [db]


def _print(as_json: bool, version: str | None, url: str, words: str) -> None:
    if as_json:
        from orchestrator.storage import schema

        show.as_json({"version": version, "head": schema.head(), "database": masked_url(url)})
    else:
        click.echo(words)
