"""Verbs about hosts and queues."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client

NODE_COLUMNS: Final = (
    *("NAME", "STATE", "LIVE", "PID", "GPUS", "FREE", "ILL", "JOBS", "CPU SLOTS", "CPUS", "MEM", "LABELS", "QUEUES"),
    "HEARD OF",
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
        NODE_COLUMNS,
        (
            [
                node["name"],
                node["state"],
                _liveness(node),
                node["pid"],
                len(node["gpus"]),
                sum(map(_is_free, node["gpus"])),
                sum(1 for gpu in node["gpus"] if gpu["health"] != "healthy"),
                len({job for gpu in node["gpus"] for holder in gpu["holders"] for job in holder["jobs"][:1]}),
                node["cpu_slots"],
                node["cpus"],
                f"{node['memory_mib'] / 1024:.0f}G",
                ",".join(f"{name}={value}" for name, value in sorted(node["labels"].items())) or None,
                ",".join(node["queues"]),
                show.age(node["heartbeat_at"]),
            ]
            for node in found
        ),
        can_go=("LABELS", "CPU SLOTS", "PID", "MEM", "CPUS", "ILL"),
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
    show_queues(found)


COMMANDS = [nodes, queues]


def _liveness(node: Mapping[str, Any]) -> str:
    if not node["live"]:
        return "no"
    return "degraded" if node["degraded"] else "yes"


def _is_free(gpu: Mapping[str, Any]) -> bool:
    """Whether a job could have the whole GPU now."""
    return gpu["health"] == "healthy" and gpu["clean"] and not gpu["holders"]


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
