"""Verbs for orders about queues, and about the whole installation."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from orchestrator_cli import show
from orchestrator_cli.commands.cluster import show_queues
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client
from orchestrator_cli.values import IF_VERSION, Assignment, Duration

NAME = click.argument("name", metavar="QUEUE")
#: How a value of the policy is written on the command line.
SWITCHES: Final = {"on": True, "true": True, "off": False, "false": False}


@click.group()
def queue() -> None:
    """List queues, pause and resume them, set their limits."""


@queue.command("ls")
@JSON
def list_queues(as_json: bool) -> None:
    """List the queues."""
    with open_client() as client:
        found = client.queues()
    _tell_queues(found, as_json)


@queue.command()
@NAME
@JSON
def pause(name: str, as_json: bool) -> None:
    """Have no job of a queue start; what runs goes on, and submits are taken."""
    with open_client() as client:
        found = client.set_paused(name, paused=True)
    _tell(found, as_json, lambda: f"{name} is paused; {found['withdrawn']} jobs that were on their way wait again")


@queue.command()
@NAME
@JSON
def resume(name: str, as_json: bool) -> None:
    """Let the jobs of a paused queue start again."""
    with open_client() as client:
        found = client.set_paused(name, paused=False)
    _tell(found, as_json, lambda: f"{name} is not paused")


@queue.command("set")
@NAME
@click.option("--most-running", type=click.IntRange(0), help="Jobs that run at once, on all hosts together.")
@click.option("--time-limit", type=Duration(), help="End jobs that bring no time limit after so long.")
@click.option("--no-most-running", is_flag=True, help="Run as many as fit.")
@click.option("--no-time-limit", is_flag=True, help="Set no limit to jobs that bring none.")
@IF_VERSION
@JSON
def set_limits(
    name: str,
    most_running: int | None,
    time_limit: float | None,
    no_most_running: bool,
    no_time_limit: bool,
    version: int | None,
    as_json: bool,
) -> None:
    """Set or lift limits of a queue."""
    if (no_most_running and most_running is not None) or (no_time_limit and time_limit is not None):
        raise click.UsageError("a limit is set or lifted, not both")
    changes: dict[str, Any] = {}
    if no_most_running or most_running is not None:
        changes["most_running"] = most_running
    if no_time_limit or time_limit is not None:
        changes["time_limit"] = time_limit
    if not changes:
        raise click.UsageError("say which limit")
    with open_client() as client:
        found = client.set_queue(name, changes, version=version)
    if as_json:
        show.as_json(found)
    else:
        _tell_queues([found], as_json=False)


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def policy(context: click.Context, as_json: bool) -> None:
    """Show or change what holds for the whole installation."""
    if context.invoked_subcommand is not None:
        return
    with open_client() as client:
        found = client.policy()
    _tell_policy(found, as_json)


@policy.command("set")
@click.argument("assignments", type=Assignment(), nargs=-1, required=True, metavar="NAME=VALUE...")
@IF_VERSION
@JSON
def set_policy(assignments: Sequence[tuple[str, str]], version: int | None, as_json: bool) -> None:
    """Change values: safe_mode=on keeps every job from starting, pool_idle_seconds=600, max_gpu_memory_fraction=0.9."""
    with open_client() as client:
        found = client.set_policy({name: _value(name, text) for name, text in assignments}, version=version)
    _tell_policy(found, as_json)


COMMANDS = [queue, policy]


def _value(name: str, text: str) -> bool | float:
    if text in SWITCHES:
        return SWITCHES[text]
    try:
        return float(text)
    except ValueError:
        raise click.UsageError(f"{name}: {text!r} is neither on, off nor a number") from None


def _tell(found: Mapping[str, Any], as_json: bool, words: Callable[[], str]) -> None:
    if as_json:
        show.as_json(found)
    else:
        click.echo(show.harmless(words()))


def _tell_queues(found: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        show.as_json(found)
        return
    show_queues(found)
    for one in found:
        if one["time_limit"] is not None:
            click.echo(f"queue {one['name']}: jobs that bring no time limit have {one['time_limit']:g} s", err=True)


def _tell_policy(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        show.as_json(found)
        return
    for name, value in found.items():
        if value is not None:
            click.echo(f"{name + ':':20}{show.harmless(str(value))}")
