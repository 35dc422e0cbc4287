"""Verbs that take hosts out of service, and back."""

import sys
import time
from typing import Any, Final

import click

from orchestrator.client import Client
from orchestrator.errors import Conflict
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON, PATIENCE_SECONDS
from orchestrator_cli.profile import open_client
from orchestrator_cli.values import Duration

POLL_SECONDS: Final = 0.5
#: Exit code when ``--timeout`` has passed, as of ``wait``.
TIMED_OUT: Final = 124
#: What a host that drains comes to rest in; one without a worker runs nothing either.
AT_REST: Final = frozenset({"drained", "lost"})


@click.command()
@click.argument("host")
@click.option("--wait", "and_wait", is_flag=True, help="Wait until what runs there has ended.")
@click.option("--timeout", type=Duration(), help="Wait no longer than this; exit code 124 then.")
@click.option("--undo", is_flag=True, help="Have it take jobs again, as undrain does.")
@JSON
def drain(host: str, and_wait: bool, timeout: float | None, undo: bool, as_json: bool) -> None:
    """Have a host take nothing new and let what runs there end; it stays so over restarts of its worker."""
    with open_client() as client:
        outcome = client.set_drain(host, drain=not undo)
        if and_wait and not undo:
            client.patience_seconds = PATIENCE_SECONDS
            outcome["state"] = _wait(client, host, timeout)
    _tell(outcome, as_json=as_json)
    if and_wait and not undo and outcome["state"] not in AT_REST:
        sys.exit(TIMED_OUT)


@click.command()
@click.argument("host")
@JSON
def undrain(host: str, as_json: bool) -> None:
    """Have a host that was drained take jobs again."""
    with open_client() as client:
        outcome = client.set_drain(host, drain=False)
    _tell(outcome, as_json=as_json)


COMMANDS = [drain, undrain]


def _wait(client: Client, host: str, timeout: float | None) -> str:
    """Return the host's state when it has come to rest, or when the time has passed."""
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    while True:
        node = next(node for node in client.nodes() if node["name"] == host)
        if not node["drain"]:
            raise Conflict(f"host {host} was told to take jobs again")
        if node["state"] in AT_REST or time.monotonic() >= deadline:
            return str(node["state"])
        time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def _tell(outcome: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show.as_json(outcome)
        return
    words = f"{outcome['name']} is {outcome['state']}"
    if outcome["withdrawn"]:
        words += f"; {outcome['withdrawn']} jobs that were placed there go elsewhere"
    click.echo(show.harmless(words))
