"""Verbs about hosts, GPUs and queues."""

import click

from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client


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
        ["NAME", "STATE", "LIVE", "PID", "GPUS", "FREE", "CPU SLOTS", "QUEUES", "HEARD OF"],
        (
            [
                node["name"],
                node["state"],
                "yes" if node["live"] else "no",
                node["pid"],
                len(node["gpus"]),
                sum(1 for gpu in node["gpus"] if gpu["lease"] is None and not gpu["reserved_mib"]),
                node["cpu_slots"],
                ",".join(node["queues"]),
                show.age(node["heartbeat_at"]),
            ]
            for node in found
        ),
        can_go=("CPU SLOTS", "PID"),
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
        ["NODE", "GPU", "MODEL", "HEALTH", "LEASE", "USED MIB", "RESERVED", "TOTAL", "UTIL", "UUID"],
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
                gpu["uuid"],
            ]
            for gpu in found
        ),
        can_go=("RESERVED", "UTIL"),
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
