"""``orch gpus``: who has which GPU, what it does, how it is joined to others, and what may be leased of it."""

import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import click

from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client
from orchestrator_cli.values import Duration

COLUMNS: Final = (
    *("NODE", "GPU", "MODEL", "HEALTH", "LIVE", "USED MIB", "RESERVED", "TOTAL", "FOREIGN"),
    *("UTIL", "TEMP", "POWER", "LEASE", "JOB", "TENANT", "MIG", "UUID"),
)
#: What a narrow terminal is spared, the least important first.
CAN_GO: Final = ("UUID", "MIG", "POWER", "TEMP", "TENANT", "RESERVED", "UTIL", "LIVE", "MODEL", "FOREIGN")
LEAST_SECONDS: Final = 0.1


@click.group(invoke_without_command=True)
@click.option("--topology", is_flag=True, help="Show how the GPUs of each host are joined.")
@click.option("--watch", is_flag=True, help="Show them again and again, until Ctrl-C.")
@click.option("--every", type=Duration(), default="2s", show_default=True, help="How often --watch shows them.")
@JSON
@click.pass_context
def gpus(context: click.Context, topology: bool, watch: bool, every: float, as_json: bool) -> None:
    """List the GPUs of all hosts and who has them, or change what may be leased of one."""
    if context.invoked_subcommand is not None:
        return
    with open_client() as client:
        if watch:
            _watch(client.gpus, max(LEAST_SECONDS, every), topology=topology, as_json=as_json)
        elif as_json:
            show.as_json(client.gpus())
        else:
            _show(client.gpus(), topology=topology)


def _watch(read: Callable[[], Any], seconds: float, *, topology: bool, as_json: bool) -> None:
    """Show what is read until somebody interrupts; as JSON, a line each time."""
    try:
        while True:
            found = read()
            if as_json:
                click.echo(json.dumps(found, ensure_ascii=False))
            else:
                click.clear()  # nothing where no terminal is
                _show(found, topology=topology)
            sys.stdout.flush()
            time.sleep(seconds)
    except KeyboardInterrupt:
        click.echo(err=True)


def _order(name: str, words: str) -> click.Command:
    @click.command(name, help=words)
    @click.argument("uuid", metavar="GPU")
    @JSON
    def order(uuid: str, as_json: bool) -> None:
        with open_client() as client:
            found = client.order_gpu(uuid, name)
        if as_json:
            show.as_json(found)
        else:
            _show([found], topology=False)

    return order


gpus.add_command(_order("quarantine", "Lease a GPU to nobody until it is released; what runs there goes on."))
gpus.add_command(_order("release", "End a quarantine: the GPU is healthy with the next good reading."))
gpus.add_command(_order("reset", "End a quarantine and forget the GPU's strikes."))


def _show(found: Sequence[Mapping[str, Any]], *, topology: bool) -> None:
    if topology:
        _show_topology(found)
        return
    show.table(COLUMNS, (_row(gpu) for gpu in found), can_go=CAN_GO)
    for gpu in found:
        for words in _remarks(gpu):
            click.echo(f"GPU {gpu['uuid']}: {show.harmless(words)}", err=True)


def _row(gpu: Mapping[str, Any]) -> list[Any]:
    holders = gpu["holders"]
    jobs = [holder["jobs"][0] if holder["jobs"] else holder["holder"] for holder in holders]
    return [
        gpu["node"],
        gpu["index"],
        gpu["model"],
        gpu["health"] + ("!" if gpu["warning"] and gpu["health"] == "healthy" else ""),
        "yes" if gpu["live"] else "no",
        gpu["used_mib"],
        gpu["memory_mib"] if gpu["lease"] is not None else gpu["reserved_mib"],
        gpu["memory_mib"],
        gpu["foreign_mib"],
        gpu["utilization_percent"],
        gpu["temperature_celsius"],
        gpu["power_watts"],
        _some([holder["lease"] for holder in holders]),
        _some([job for job in jobs if job]),
        _some(sorted({holder["tenant"] for holder in holders if holder["tenant"]})),
        gpu["mig_profile"],
        gpu["uuid"],
    ]


def _some(values: Sequence[Any]) -> str | None:
    """Return the first of several in a cell, and how many more there are."""
    if not values:
        return None
    return str(values[0]) + (f" +{len(values) - 1}" if len(values) > 1 else "")


def _remarks(gpu: Mapping[str, Any]) -> list[str]:
    found = [gpu["health_reason"]] if gpu["health_reason"] and gpu["health"] != "healthy" else []
    found += [gpu["warning"]] if gpu["warning"] else []
    return found + ([f"in use without a lease: {'; '.join(gpu['foreign_by'])}"] if gpu["foreign_by"] else [])


def _show_topology(found: Sequence[Mapping[str, Any]]) -> None:
    """Print for each host what joins each two of its GPUs."""
    for place, (node, group) in enumerate(itertools.groupby(found, key=lambda gpu: gpu["node"])):
        cards = list(group)
        if place:
            click.echo()
        rows = [
            [card["index"], *(_joint(card, other) for other in cards), card["numa"], card["model"], card["uuid"]]
            for card in cards
        ]
        columns = [str(node), *(f"GPU{card['index']}" for card in cards), "NUMA", "MODEL", "UUID"]
        show.table(columns, rows, can_go=("UUID", "MODEL"))


def _joint(card: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    if card["uuid"] == other["uuid"]:
        return "x"
    if other["uuid"] in card["links"]:
        return "NV"
    return "NODE" if card["numa"] is not None and card["numa"] == other["numa"] else "-"


COMMANDS = [gpus]
