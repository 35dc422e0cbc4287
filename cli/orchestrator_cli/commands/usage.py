"""The verb of accounting."""

from datetime import datetime

import click

from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client
from orchestrator_cli.values import Since

KEYS = ("tenant", "user", "job", "queue", "node", "gpu")


@click.command()
@click.option("--by", type=click.Choice(KEYS), default="tenant", show_default=True, help="What to sum up by.")
@click.option(
    "--since", type=Since(), default="7d", show_default=True, help="So long back, as 12h, or an instant, as 2026-01-31."
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Most lines, the largest.")
@JSON
def usage(by: str, since: datetime, limit: int, as_json: bool) -> None:
    """Show who used how much of the GPUs: GPU-hours leased, busy, and wasted by attempts that did not succeed."""
    with open_client() as client:
        found = client.usage(by=by, since=since.isoformat(), limit=limit)
    if as_json:
        show.as_json(found)
        return
    show.table(
        [by.upper(), "JOBS", "ATTEMPTS", "GPU HOURS", "BUSY", "WASTED"],
        (
            [
                row["key"],
                row["jobs"],
                row["attempts"],
                f"{row['gpu_seconds'] / 3600:.2f}",
                _percent(row["busy_gpu_seconds"], row["gpu_seconds"]),
                _percent(row["wasted_gpu_seconds"], row["gpu_seconds"]),
            ]
            for row in [*found["usage"], found["total"]]
        ),
        can_go=("ATTEMPTS",),
    )
    if found["left_out"]:
        click.echo(f"{found['left_out']} more; see --limit", err=True)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f}%" if whole else "-"


COMMANDS = [usage]
