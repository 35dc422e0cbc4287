"""Verbs for worker pools: runners that are kept for one model."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from orchestrator.client import Client
from orchestrator.errors import InvalidRequest
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client
from orchestrator_cli.values import IF_VERSION, Assignment, Duration, JsonAssignment, Size

POLL_SECONDS: Final = 0.5
#: Of the list, one column each.
COLUMNS: Final = ("NAME", "MODEL", "STATE", "READY", "WANTED", "MIN", "MAX", "RUNNING", "DONE", "TENANT", "REASON")

NAME = click.argument("name", metavar="POOL")
OPTIONAL_NAME = click.argument("name", metavar="[POOL]", required=False)
ALL = click.option("--all", "everything", is_flag=True, help="Every pool.")
WAIT = click.option("--wait", type=Duration(), help="Wait so long at most until it is done.")


@click.group()
def pool() -> None:
    """Keep runners with a model loaded; jobs that want the model run there."""


@pool.command()
@NAME
@click.option("--model", help="What the runners load; jobs may ask for it or for the pool.  [default: the pool's name]")
@click.option("--task", help="The Celery task that loads it.  [default: orchestrator.preload]")
@click.option(
    "--arg", "arguments", type=JsonAssignment(), multiple=True, metavar="K=V", help="A further keyword of that task."
)
@click.option("--gpus", type=int, help="Whole GPUs of each runner.  [default: 1]")
@click.option("--gpu-memory", type=Size(), help="A share of one GPU's memory, as 12GiB.")
@click.option("--gpu-type", metavar="MODELS", help="Models that would do, as 'H100|A100'.")
@click.option("--min-memory", type=Size(), help="Least memory of each GPU, as 40GiB.")
@click.option("--mig", metavar="PROFILE", help="MIG instances in place of whole cards, as 1g.10gb.")
@click.option(
    "--constraint",
    "constraints",
    type=Assignment(),
    multiple=True,
    metavar="LABEL=VALUE",
    help="Only hosts with this label.",
)
@click.option("--cpus", type=int, help="CPUs of the host that each runner is counted with.")
@click.option("--mem", "memory", type=Size(), help="Memory of the host, likewise.")
@click.option("--min", "least", type=int, default=1, show_default=True, help="Runners that are always there.")
@click.option("--max", "most", type=int, help="Runners at most.  [default: as --min]")
@click.option("--idle", type=Duration(), help="Runners beyond --min leave when idle so long.  [default: the policy's]")
@click.option("--load-limit", type=Duration(), help="A load that takes longer has failed.  [default: 10m]")
@click.option("--pin", "pinned", is_flag=True, help="Keep runners beyond --min too, however idle.")
@click.option("--tenant", help="Run jobs of this tenant only.")
@click.option("--priority", type=int, help="Of the loads, 0 to 9.  [default: 5]")
@WAIT
@JSON
def start(
    name: str,
    least: int,
    most: int | None,
    idle: float | None,
    load_limit: float | None,
    arguments: Sequence[tuple[str, Any]],
    constraints: Sequence[tuple[str, str]],
    wait: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Start a pool, or one again that was stopped."""
    body = {"name": name, "min": least, "arguments": dict(arguments), "constraints": dict(constraints)}
    body |= {key: value for key, value in options.items() if value is not None}
    more = {"max": most, "idle_seconds": idle, "load_seconds": load_limit}
    body |= {key: value for key, value in more.items() if value is not None}
    with open_client() as client:
        found = client.start_pool(body)
        if wait is not None:
            found = _await(client, name, wait, lambda seen: seen["state"] == "ready")
    _tell(found, as_json)


@pool.command("ls")
@JSON
def list_pools(as_json: bool) -> None:
    """List the pools."""
    with open_client() as client:
        found = client.pools()
    if as_json:
        show.as_json(found)
    else:
        _show_pools(found)


@pool.command()
@NAME
@JSON
def status(name: str, as_json: bool) -> None:
    """Show a pool with its runners and what is being loaded."""
    with open_client() as client:
        found = client.pool(name)
    if as_json:
        show.as_json(found)
        return
    _show_pools([found])
    if found["runners"]:
        click.echo()
        show.table(
            ["LEASE", "NODE", "GPUS", "MODEL", "RUNNING", "DONE", "SECONDS/JOB", "READY", "USED", "ASLEEP", "LEAVING"],
            [
                [
                    one["lease"],
                    one["node"],
                    ",".join(one["gpus"]),
                    one["model"],
                    one["running"],
                    one["jobs_done"],
                    None if one["run_seconds"] is None else f"{one['run_seconds']:.3f}",
                    show.age(one["ready_at"]),
                    show.age(one["used_at"]),
                    "yes" if one["asleep"] else None,
                    one["leaving"],
                ]
                for one in found["runners"]
            ],
        )
    for load in found["loads"]:
        because = f": {load['reason']}" if load["reason"] else ""
        click.echo(show.harmless(f"load {load['job_id']} is {load['state'] or 'on its way'}{because}"))


@pool.command()
@NAME
@click.option("--min", "least", type=int, help="Runners that are always there.")
@click.option("--max", "most", type=int, help="Runners at most.")
@click.option("--idle", type=Duration(), help="Runners beyond --min leave when idle so long.")
@click.option("--pin/--unpin", "pinned", default=None, help="Keep runners beyond --min too, or not.")
@IF_VERSION
@JSON
def scale(
    name: str,
    least: int | None,
    most: int | None,
    idle: float | None,
    pinned: bool | None,
    version: int | None,
    as_json: bool,
) -> None:
    """Change how many runners a pool has."""
    wanted = {"min": least, "max": most, "idle_seconds": idle, "pinned": pinned}
    changes = {key: value for key, value in wanted.items() if value is not None}
    if not changes:
        raise click.UsageError("say what is to change")
    with open_client() as client:
        found = client.order_pool(name, "scale", changes, version=version)
    _tell(found, as_json)


@pool.command()
@NAME
@click.argument("runners", type=int, required=False)
@IF_VERSION
@WAIT
@JSON
def preload(name: str, runners: int | None, version: int | None, wait: float | None, as_json: bool) -> None:
    """Have so many RUNNERS load the model now, by default as many as the pool may have."""
    with open_client() as client:
        found = client.order_pool(name, "preload", {} if runners is None else {"runners": runners}, version=version)
        wanted = found["max"] if runners is None else runners
        if wait is not None:
            found = _await(client, name, wait, lambda seen: seen["ready"] >= wanted)
    _tell(found, as_json)


@pool.command()
@NAME
@click.argument("model")
@click.option("--arg", "arguments", type=JsonAssignment(), multiple=True, metavar="K=V", help="A keyword of the task.")
@IF_VERSION
@WAIT
@JSON
def swap(
    name: str,
    model: str,
    arguments: Sequence[tuple[str, Any]],
    version: int | None,
    wait: float | None,
    as_json: bool,
) -> None:
    """Have the runners load another MODEL, one after another; no job is lost."""
    body = {"model": model} | ({"arguments": dict(arguments)} if arguments else {})
    with open_client() as client:
        found = client.order_pool(name, "swap", body, version=version)
        if wait is not None:
            found = _await(client, name, wait, lambda seen: _is_swapped(seen, model))
    _tell(found, as_json)


@pool.command()
@NAME
@WAIT
@JSON
def sleep(name: str, wait: float | None, as_json: bool) -> None:
    """Have the runners give their GPUs' memory back and keep the model in the host's, until jobs wait for it."""
    _order(name, "sleep", wait, lambda seen: seen["state"] == "asleep", as_json)


@pool.command()
@NAME
@WAIT
@JSON
def wake(name: str, wait: float | None, as_json: bool) -> None:
    """Have the runners wake up, each as soon as its GPU has room again."""
    _order(name, "wake", wait, _is_awake, as_json)


@pool.command()
@OPTIONAL_NAME
@ALL
@WAIT
@JSON
def drain(name: str | None, everything: bool, wait: float | None, as_json: bool) -> None:
    """Have the runners leave when their jobs are done."""
    _end(name, everything, "drain", wait, as_json)


@pool.command()
@OPTIONAL_NAME
@ALL
@WAIT
@JSON
def stop(name: str | None, everything: bool, wait: float | None, as_json: bool) -> None:
    """Have the runners leave now; their jobs run again elsewhere."""
    _end(name, everything, "stop", wait, as_json)


@pool.command()
@NAME
@JSON
def rm(name: str, as_json: bool) -> None:
    """Forget a pool that has stopped."""
    with open_client() as client:
        found = client.remove_pool(name)
    if as_json:
        show.as_json(found)


COMMANDS = [pool]


def _order(
    name: str, order: str, wait: float | None, reached: Callable[[Mapping[str, Any]], bool], as_json: bool
) -> None:
    with open_client() as client:
        found = client.order_pool(name, order)
        if wait is not None:
            found = _await(client, name, wait, reached)
    _tell(found, as_json)


def _end(name: str | None, everything: bool, order: str, wait: float | None, as_json: bool) -> None:
    if (name is not None) == everything:
        raise InvalidRequest("name a pool, or say --all")
    if name is not None:
        _order(name, order, wait, _has_stopped, as_json)
        return
    deadline = time.monotonic() + (wait or 0.0)
    with open_client() as client:
        found = client.order_pools(order)
        if wait is not None:
            found = [_await(client, one["name"], max(0.0, deadline - time.monotonic()), _has_stopped) for one in found]
    if as_json:
        show.as_json(found)
    elif found:
        _show_pools(found)
    else:
        click.echo("no pools", err=True)


def _has_stopped(seen: Mapping[str, Any]) -> bool:
    return bool(seen["state"] == "stopped")


def _is_awake(seen: Mapping[str, Any]) -> bool:
    return bool(seen["ready"]) and not any(one["asleep"] for one in seen["runners"])


def _await(client: Client, name: str, seconds: float, reached: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while True:
        found = client.pool(name)
        if reached(found):
            return found
        if time.monotonic() > deadline:
            because = f": {found['reason']}" if found["reason"] else ""
            raise InvalidRequest(f"pool {name} is {found['state']} with {found['ready']} runners ready{because}")
        time.sleep(POLL_SECONDS)


def _is_swapped(seen: Mapping[str, Any], model: str) -> bool:
    return seen["ready"] >= max(1, seen["wanted"]) and {one["model"] for one in seen["runners"]} == {model}


def _tell(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        show.as_json(found)
    else:
        _show_pools([found])


def _show_pools(found: Sequence[Mapping[str, Any]]) -> None:
    rows = []
    for one in found:
        running = sum(runner["running"] for runner in one["runners"])
        done = sum(runner["jobs_done"] for runner in one["runners"])
        row = [one["name"], one["model"], one["state"], one["ready"], one["wanted"], one["min"], one["max"]]
        rows.append([*row, running, done, one["tenant"], one["reason"]])
    show.table(COLUMNS, rows, can_go=("DONE", "TENANT"))
