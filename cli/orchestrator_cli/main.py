"""The ``orch`` command.

Exit codes: 0 done, 2 the user's mistake, 3 something does not answer, 4 conflict; see docs/cli.md.
"""

import sys
from typing import Final

import click

import orchestrator
from orchestrator.client import RemoteError
from orchestrator.errors import Conflict, InvalidRequest, OrchestratorError, Unavailable
from orchestrator_cli import show
from orchestrator_cli.verbs import LazyGroup

MISTAKE: Final = 2
UNAVAILABLE: Final = 3
CONFLICT: Final = 4


class OneLine(LazyGroup):
    """Turns every error that is raised on purpose into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> object:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except OrchestratorError as error:
            click.echo(f"orch: {show.harmless(str(error))}", err=True)
            ctx.exit(exit_code(error))


def exit_code(error: OrchestratorError) -> int:
    """Return what the process ends with."""
    kind = error.kind if isinstance(error, RemoteError) else type(error)
    if issubclass(kind, InvalidRequest):
        return MISTAKE
    if issubclass(kind, Conflict):
        return CONFLICT
    return UNAVAILABLE if issubclass(kind, Unavailable) else 1


@click.group(cls=OneLine, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(orchestrator.__version__, prog_name="orch")
@click.option("--api-url", metavar="URL", help="Where the API is.  [default: ORCHESTRATOR_API_URL, else this home's]")
def cli(api_url: str | None) -> None:
    """GPU jobs for people who know Celery.

    \b
    orch up --detach --simulate 2        a whole stack on this machine
    orch submit --gpus 1 -- python train.py
    orch ps; orch logs -f JOB; orch wait JOB
    """
    del api_url  # profile.open_client looks for it where it is needed


def main() -> None:
    """Run the command line."""
    sys.exit(cli(prog_name="orch"))
