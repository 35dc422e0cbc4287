"""``orch admin``: tools for whoever runs an installation."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from orchestrator.config import load_settings, masked_url
from orchestrator.errors import InvalidRequest
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.commands.sweeps import sweep
from orchestrator_cli.commands.upkeep import leader, purge
from orchestrator_cli.values import Duration

if TYPE_CHECKING:
    from orchestrator.testing.history import Report

#: Exit code of ``verify`` when something does not hold.
VIOLATED: Final = 1
#: A query over a long history may take so long before its first row comes.
ANSWER_SECONDS: Final = 600


@click.group()
def admin() -> None:
    """Tools for whoever runs an installation."""


@admin.command()
@click.option(
    "--dumps",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    help="What runners or guardians wrote: a directory or a file of JSON lines; can be given again.",
)
@click.option("--settled", is_flag=True, help="All work should have ended: a job that has not is a violation.")
@click.option("--overdue", type=Duration(), help="A leader is at work: what has waited for it longer is a violation.")
@JSON
def verify(dumps: tuple[Path, ...], settled: bool, overdue: float | None, as_json: bool) -> None:
    """Check the recorded history against every invariant; exit code 1 if one does not hold.

    Reads the database of the settings at one instant, and changes nothing. Safe beside running work.
    """
    from orchestrator.storage import schema
    from orchestrator.storage.engine import open_database
    from orchestrator.storage.history import SqlHistory
    from orchestrator.testing.history import Expectations
    from orchestrator.testing.history import verify as check
    from orchestrator.testing.runner_spans import load_spans

    settings = load_settings()
    try:
        spans = load_spans(dumps)
    except ValueError as error:
        raise InvalidRequest(str(error)) from error
    schema.check(settings.database)
    bound = None if overdue is None else timedelta(seconds=overdue)
    expected = Expectations(spans=spans, settled=settled, overdue=bound)
    database = open_database(settings.database, answer_seconds=ANSWER_SECONDS)
    try:
        report = SqlHistory(database).read(lambda view: check(view, expected))
    finally:
        database.close()
    _print(report, settings.database, as_json=as_json)
    sys.exit(0 if report.is_clean else VIOLATED)


for _command in (sweep, leader, purge):
    admin.add_command(_command)
COMMANDS = [admin]


def _print(report: "Report", url: str, *, as_json: bool) -> None:
    if as_json:
        show.as_json(
            {
                "database": masked_url(url),
                "clean": report.is_clean,
                "checked": dict(report.checked),
                "counts": dict(report.counts),
                "violations": [violation.to_document() for violation in report.violations],
            }
        )
        return
    checked = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in report.checked.items())
    if report.violations:
        rows = [(one.invariant, one.subject, one.seen, one.where) for one in report.violations]
        show.table(("INVARIANT", "SUBJECT", "SEEN", "WHERE"), rows, can_go=("WHERE",))
    words = "clean" if report.is_clean else f"{report.counts.total()} violations"
    click.echo(f"{masked_url(url)}: {words}; checked {checked}")
