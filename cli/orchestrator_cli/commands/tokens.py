"""``orch token``: who may use the API.

The verbs ask the API. The first token cannot come from an API that needs one, so where none is named, or with
``--direct``, they open the database of the settings, as ``orch db`` does.
"""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol

import click

from orchestrator.clock import SystemClock
from orchestrator.config import load_settings
from orchestrator.domain.access import Role, token_document
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import names_an_api, open_client
from orchestrator_cli.values import Duration

DIRECT = click.option(
    "--direct", is_flag=True, help="Open the database of the settings, as is done where no API is named."
)


class Issuer(Protocol):
    """Who makes, lists and ends tokens; each as a document."""

    def create_token(self, token: dict[str, Any]) -> dict[str, Any]:
        """Make a token; the document has its secret."""
        ...

    def tokens(self) -> list[dict[str, Any]]:
        """Return all of them."""
        ...

    def revoke_token(self, name: str) -> dict[str, Any]:
        """End one."""
        ...


@click.group()
def token() -> None:
    """Tokens of the API: who may use it, and for what."""


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it may do.")
@click.option("--tenant", help="Whose jobs it sees and changes; of a submitter always, of an operator never.")
@click.option("--expires", type=Duration(), help="It is in force for so long, as 90d.  [default: until revoked]")
@click.option("--requests-per-minute", type=int, help="It may send so many.  [default: as the settings say]")
@DIRECT
@JSON
def create(
    name: str,
    role: str,
    tenant: str | None,
    expires: float | None,
    requests_per_minute: int | None,
    direct: bool,
    as_json: bool,
) -> None:
    """Make a token and print its secret, this once: only a hash of it is kept."""
    asked: dict[str, Any] = {"name": name, "role": role, "tenant": tenant}
    asked |= {"expires_seconds": expires, "requests_per_minute": requests_per_minute}
    with _issuer(direct) as issuer:
        made = issuer.create_token({field: value for field, value in asked.items() if value is not None})
    if as_json:
        show.as_json(made)
    else:
        click.echo(made["secret"])


@token.command(name="list")
@DIRECT
@JSON
def list_tokens(direct: bool, as_json: bool) -> None:
    """List the tokens, those that are revoked or expired too."""
    with _issuer(direct) as issuer:
        documents = issuer.tokens()
    if as_json:
        show.as_json(documents)
        return
    columns = ["NAME", "ID", "ROLE", "TENANT", "CREATED", "BY", "EXPIRES", "REVOKED", "USED"]
    names = ("name", "id", "role", "tenant", "created_at", "created_by", "expires_at", "revoked_at", "last_used_at")
    show.table(columns, ([_minute(one[name]) for name in names] for one in documents), can_go=("BY", "CREATED", "ID"))


@token.command()
@click.argument("name")
@DIRECT
@JSON
def revoke(name: str, direct: bool, as_json: bool) -> None:
    """End a token: no API process accepts it two seconds later."""
    with _issuer(direct) as issuer:
        found = issuer.revoke_token(name)
    if as_json:
        show.as_json(found)
    else:
        click.echo(f"{name} is revoked")


COMMANDS = [token]


@contextmanager
def _issuer(direct: bool) -> Iterator[Issuer]:
    """Give the API, or the database."""
    if direct or not names_an_api():
        with _database() as issuer:
            yield issuer
    else:
        with open_client() as client:
            yield client


@contextmanager
def _database() -> Iterator[Issuer]:
    """Open the database of the settings, of this release's schema."""
    from orchestrator.services.tokens import TokenService
    from orchestrator.storage import schema
    from orchestrator.storage.access import SqlAccessStore
    from orchestrator.storage.engine import open_database

    class Direct:
        def create_token(self, token: dict[str, Any]) -> dict[str, Any]:
            options = {field: value for field, value in token.items() if field not in ("name", "expires_seconds")}
            if (seconds := token.get("expires_seconds")) is not None:
                options["life"] = timedelta(seconds=min(seconds, 1e11))  # longer ones are refused by the service
            options["role"] = Role(options["role"])
            made, secret = service.create(token["name"], **options, by=_actor())
            return token_document(made) | {"secret": secret}

        def tokens(self) -> list[dict[str, Any]]:
            return [token_document(one) for one in store.tokens()]

        def revoke_token(self, name: str) -> dict[str, Any]:
            service.revoke(name, by=_actor())
            return {"name": name, "revoked": True}

    url = load_settings().database
    schema.check(url)
    database = open_database(url)
    try:
        store = SqlAccessStore(database)
        service = TokenService(store, SystemClock())
        yield Direct()
    finally:
        database.close()


def _actor() -> str:
    """Return who is at the command line, as the audit names them."""
    return f"cli:{getpass.getuser()}"[:128]


def _minute(value: object) -> object:
    """Return an instant to the minute, other values as they are."""
    return f"{value[:16]}Z" if isinstance(value, str) and value[10:11] == "T" and value[13:14] == ":" else value
