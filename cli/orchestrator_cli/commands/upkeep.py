"""``orch admin purge`` and ``orch admin leader``: upkeep by a person's hand."""

import click

from orchestrator.client import Client
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client
from orchestrator_cli.values import Duration


@click.command()
@click.option("--older-than", "age", type=Duration(), required=True, help="Jobs that ended so long ago, as 7d.")
@click.option("--dry-run", is_flag=True, help="Only tell how many there are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@JSON
def purge(age: float, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete jobs that ended long ago, with their attempts, output and history; dead letters are kept."""
    with open_client() as client:
        count = client.purge_jobs(age, dry_run=True)["jobs"]
        if not dry_run:
            if not yes:
                click.confirm(f"Delete {count} jobs?", abort=True, err=True)
            count = _purge_all(client, age)
    if as_json:
        show.as_json({"jobs": count, "dry_run": dry_run})
    else:
        click.echo(f"{count} jobs {'would be deleted' if dry_run else 'deleted'}")


@click.command()
@click.option("--depose", is_flag=True, help="End its term: another beat leads within a second.")
@JSON
def leader(depose: bool, as_json: bool) -> None:
    """Show who leads; a leader that hangs is deposed, and its writes change nothing from then on."""
    with open_client() as client:
        if depose:
            found = client.depose_leader()
        else:
            found = {name: client.cluster()[name] for name in ("leader", "leader_host", "leader_pid", "epoch")}
    if as_json:
        show.as_json(found)
    elif depose:
        click.echo(show.harmless(f"{found['leader']} leads no longer (epoch {found['epoch']})"))
    elif found["leader"] is None:
        click.echo("nobody leads")
    else:
        said = f"{found['leader']} leads: process {found['leader_pid']} on {found['leader_host']}"
        click.echo(show.harmless(f"{said}, epoch {found['epoch']}"))


def _purge_all(client: Client, age: float) -> int:
    deleted = 0
    more = True
    while more:
        found = client.purge_jobs(age)
        deleted += int(found["jobs"])
        more = bool(found["more"])
    return deleted
