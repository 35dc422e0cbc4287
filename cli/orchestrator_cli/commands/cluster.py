"""Verbs about hosts, GPUs and queues."""

from typing import Final

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


@click.command()
@JSON
def gpus(as_json: bool) -> None:
    """List the GPUs of all hosts."""
    with open_client() as client:
        found = client.gpus()
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


@click.command()
@JSON
def queues(as_json: bool) -> None:
    """List the queues."""
    with open_client() as client:
        found = client.queues()
    if as_json:
        show.as_json(found)
        return
    states = ("pending", "queued", "running", "scheduled")
    show.table(
        ["NAME", "PAUSED", *(state.upper() for state in states)],
        (
            [queue["name"], "yes" if queue["paused"] else "no", *(queue["jobs"].get(s, 0) for s in states)]
            for queue in found
        ),
    )


COMMANDS = [nodes, gpus, queues]
