"""``orch token``: who may use the API.

Like ``orch db`` it opens the database of the settings itself: the first token cannot come from an API that needs one.
"""

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import click

from orchestrator.clock import SystemClock
from orchestrator.config import load_settings
from orchestrator.domain.access import Role, Token
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.values import Duration

if TYPE_CHECKING:
    from orchestrator.services.tokens import TokenService
    from orchestrator.storage.access import SqlAccessStore


@click.group()
def token() -> None:
    """Tokens of the API: who may use it, and for what."""


@token.command()
@click.argument("name")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True, help="What it may do.")
@click.option("--tenant", help="Whose jobs it sees and changes; of a submitter always, of an operator never.")
@click.option("--expires", type=Duration(), help="It is in force for so long, as 90d.  [default: until revoked]")
@click.option("--requests-per-minute", type=int, help="It may send so many.  [default: as the settings say]")
@JSON
def create(
    name: str, role: str, tenant: str | None, expires: float | None, requests_per_minute: int | None, as_json: bool
) -> None:
    """Make a token and print its secret, this once: only a hash of it is kept."""
    life = None if expires is None else timedelta(seconds=min(expires, 1e11))  # longer ones are refused by the service
    with _opened() as (service, _store):
        made, secret = service.create(
            name, role=Role(role), tenant=tenant, life=life, requests_per_minute=requests_per_minute, by=_actor()
        )
    if as_json:
        show.as_json(_document(made) | {"secret": secret})
    else:
        click.echo(secret)


@token.command(name="list")
@JSON
def list_tokens(as_json: bool) -> None:
    """List the tokens, those that are revoked or expired too."""
    with _opened() as (_service, store):
        documents = [_document(one) for one in store.tokens()]
    if as_json:
        show.as_json(documents)
        return
    columns = ["NAME", "ID", "ROLE", "TENANT", "CREATED", "BY", "EXPIRES", "REVOKED", "USED"]
    names = ("name", "id", "role", "tenant", "created_at", "created_by", "expires_at", "revoked_at", "last_used_at")
    show.table(columns, ([_minute(one[name]) for name in names] for one in documents), can_go=("BY", "CREATED", "ID"))


@token.command()
@click.argument("name")
@JSON
def revoke(name: str, as_json: bool) -> None:
    """End a token: no API process accepts it two seconds later."""
    with _opened() as (service, _store):
        service.revoke(name, by=_actor())
    if as_json:
        show.as_json({"name": name, "revoked": True})
    else:
        click.echo(f"{name} is revoked")


COMMANDS = [token]


@contextmanager
def _opened() -> Iterator[tuple["TokenService", "SqlAccessStore"]]:
    """Open the database of the settings, of this release's schema."""
    from orchestrator.services.tokens import TokenService
    from orchestrator.storage import schema
    from orchestrator.storage.access import SqlAccessStore
    from orchestrator.storage.engine import open_database

    url = load_settings().database
    schema.check(url)
    database = open_database(url)
    try:
        store = SqlAccessStore(database)
        yield TokenService(store, SystemClock()), store
    finally:
        database.close()


def _actor() -> str:
    """Return who is at the command line, as the audit names them."""
    return f"cli:{getpass.getuser()}"[:128]


def _document(token: Token) -> dict[str, object]:
    instants = ("created_at", "expires_at", "revoked_at", "last_used_at")
    values = {name: getattr(token, name) for name in ("name", "id", "tenant", "requests_per_minute", "created_by")}
    moments = {name: getattr(token, name) for name in instants}
    return values | {"role": token.role.value} | {k: v.isoformat() if v else None for k, v in moments.items()}


def _minute(value: object) -> object:
    """Return an instant to the minute, other values as they are."""
    return f"{value[:16]}Z" if isinstance(value, str) and value[10:11] == "T" and value[13:14] == ":" else value
