"""The verb that lists tenants."""

import click

from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client

WAITING = ("blocked", "scheduled", "pending", "queued")


@click.command()
@JSON
def tenants(as_json: bool) -> None:
    """List the tenants that have jobs or tokens, with how many jobs wait and run."""
    with open_client() as client:
        found = client.tenants()
    if as_json:
        show.as_json(found)
        return
    rows = []
    for one in found:
        jobs = one["jobs"]
        waiting = sum(jobs.get(state, 0) for state in WAITING)
        rows.append([one["name"], waiting, jobs.get("running", 0), sum(jobs.values()), one["tokens"]])
    show.table(["NAME", "WAITING", "RUNNING", "JOBS", "TOKENS"], rows)


COMMANDS = [tenants]
