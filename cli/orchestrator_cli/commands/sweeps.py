"""``orch admin sweep``: the leader's upkeep, looked at or run by hand."""

import click

from orchestrator.errors import InvalidRequest
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client


@click.command()
@click.argument("name", required=False)
@click.option("--list", "as_list", is_flag=True, help="List the sweeps and what they did.")
@click.option("--reclaim", is_flag=True, help="Run all that give work back which somebody took and does not do.")
@JSON
def sweep(name: str | None, as_list: bool, reclaim: bool, as_json: bool) -> None:
    """Run one pass of a sweep now, beside the leader or in its place; or list the sweeps."""
    if (name is not None) + as_list + reclaim != 1:
        raise InvalidRequest("name a sweep, or give --list or --reclaim")
    with open_client() as client:
        if as_list:
            found = client.sweeps()
        elif reclaim:
            found = client.reclaim()["sweeps"]
        else:
            found = [client.sweep(str(name))]
    if as_json:
        show.as_json(found[0] if name is not None else found)
    elif as_list:
        show.table(
            ["NAME", "EVERY", "PASSES", "DID", "FAILED", "MEAN MS", "LAST", "LAST ERROR"],
            (
                [
                    one["name"],
                    f"{one['every_seconds']:g} s",
                    one["passes"],
                    one["did"],
                    one["failures"],
                    f"{1000 * one['seconds'] / one['passes']:.1f}" if one["passes"] else None,
                    show.age(one["last_at"]) if one["last_at"] else None,
                    one["last_error"],
                ]
                for one in found
            ),
            can_go=("LAST ERROR", "EVERY"),
        )
    else:
        for one in found:
            more = "; there may be more" if one["more"] else ""
            click.echo(show.harmless(f"{one['name']}: {one['did']} in {one['seconds']:.3f} s{more}"))
