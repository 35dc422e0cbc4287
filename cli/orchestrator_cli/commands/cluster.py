"""Verbs about hosts, GPUs and queues."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client

GPU_COLUMNS: Final = (
    *("NODE", "GPU", "MODEL", "HEALTH", "LEASE", "USED MIB", "RESERVED", "TOTAL"),
    *("UTIL", "TEMP", "POWER", "MIG", "UUID"),
)


@click.command()
@JSON
def nodes(as_json: bool) -> None:
    """List the hosts."""
    with open_client() as client:
        found = client.nodes()
    if as_json:
        show.as_json(found)
        return
    show.table(
        ["NAME", "STATE", "LIVE", "PID", "GPUS", "FREE", "CPU SLOTS", "CPUS", "MEM", "LABELS", "QUEUES", "HEARD OF"],
        (
            [
                node["name"],
                node["state"],
                "yes" if node["live"] else "no",
                node["pid"],
                len(node["gpus"]),
                sum(1 for gpu in node["gpus"] if gpu["lease"] is None and not gpu["reserved_mib"]),
                node["cpu_slots"],
                node["cpus"],
                f"{node['memory_mib'] / 1024:.0f}G",
                ",".join(f"{name}={value}" for name, value in sorted(node["labels"].items())) or None,
                ",".join(node["queues"]),
                show.age(node["heartbeat_at"]),
            ]
            for node in found
        ),
        can_go=("LABELS", "CPU SLOTS", "PID", "MEM", "CPUS"),
    )


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def gpus(context: click.Context, as_json: bool) -> None:
    """List the GPUs of all hosts, or change what may be leased of one."""
    if context.invoked_subcommand is not None:
        return
    with open_client() as client:
        _show_gpus(client.gpus(), as_json=as_json)


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
            _show_gpus([found], as_json=False)

    return order


gpus.add_command(_order("quarantine", "Lease a GPU to nobody until it is released; what runs there goes on."))
gpus.add_command(_order("release", "End a quarantine: the GPU is healthy with the next good reading."))
gpus.add_command(_order("reset", "End a quarantine and forget the GPU's strikes."))


def _show_gpus(found: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        show.as_json(found)
        return
    show.table(
        GPU_COLUMNS,
        (
            [
                gpu["node"],
                gpu["index"],
                gpu["model"],
                gpu["health"],
                gpu["lease"],
                gpu["used_mib"],
                gpu["reserved_mib"],
                gpu["memory_mib"],
                gpu["utilization_percent"],
                gpu["temperature_celsius"],
                gpu["power_watts"],
                gpu["mig_profile"],
                gpu["uuid"],
            ]
            for gpu in found
        ),
        can_go=("RESERVED", "UTIL", "MIG", "POWER", "TEMP"),
    )
    for gpu in found:
        if gpu["health_reason"] and gpu["health"] != "healthy":
            click.echo(f"GPU {gpu['uuid']}: {show.harmless(gpu['health_reason'])}", err=True)


@click.command()
@JSON
def queues(as_json: bool) -> None:
    """List the queues."""
    with open_client() as client:
        found = client.queues()
    if as_json:
        show.as_json(found)
        return
    show_queues(found)


COMMANDS = [nodes, gpus, queues]


def show_queues(found: Sequence[Mapping[str, Any]]) -> None:
    """Print queues as a table."""
    states = ("pending", "queued", "running", "scheduled")
    show.table(
        ["NAME", "PAUSED", "MOST", *(state.upper() for state in states)],
        (
            [
                queue["name"],
                f"by {queue['paused_by']}" if queue["paused_by"] else "yes" if queue["paused"] else "no",
                queue["most_running"],
                *(queue["jobs"].get(s, 0) for s in states),
            ]
            for queue in found
        ),
    )
