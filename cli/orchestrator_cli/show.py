"""What people see: tables, ages, a job's output."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table

#: A job's output must not move the cursor or talk to the terminal; colours are kept, as the one group. All in one pass:
#: what is left when something was taken out must not become a sequence of its own.
_CONTROLS: Final = re.compile(
    r"(\x1b\[[0-9;:]*m)"
    r"|\x1b[\]PX^_][^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # strings for the terminal: titles, clipboard, graphics
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-Z\\^-~]?"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
)
#: Where the output goes to a file or a pipe nothing is cut.
WIDTH: Final = 240


def as_json(document: Any) -> None:
    """Print a document for programs."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; ids are never cut."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, no_wrap=True, overflow="fold" if column == "ID" else "ellipsis")
    for row in rows:
        grid.add_row(*("-" if cell is None else str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, emoji=False).print(grid)


def age(instant: str | None) -> str | None:
    """Return how long ago something was: ``42s``, ``3m``, ``5h``, ``2d``."""
    if instant is None:
        return None
    return span((datetime.now(UTC) - datetime.fromisoformat(instant)).total_seconds())


def span(seconds: float) -> str:
    """Return a duration in its largest sensible unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{max(0, int(seconds))}s"


def run_time(job: dict[str, Any]) -> str | None:
    """Return how long a job has run, or ran."""
    if job["started_at"] is None:
        return None
    end = datetime.fromisoformat(job["finished_at"]) if job["finished_at"] else datetime.now(UTC)
    return span((end - datetime.fromisoformat(job["started_at"])).total_seconds())


def output(text: str, *, raw: bool = False) -> None:
    """Print a job's output; unless ``raw``, without what could trouble the terminal."""
    # click takes colours out where no terminal reads them; raw means all of it, in a pipe too
    click.echo(text if raw else harmless(text), nl=False, color=True if raw else None)


def harmless(text: str) -> str:
    """Return a text without control characters and escape sequences, except colours, tabs and ends of lines."""
    return _CONTROLS.sub(lambda found: found[1] or "", text)


def progress(job: dict[str, Any]) -> str | None:
    """Return a job's progress in a few characters."""
    said = job["progress"]
    if not said:
        return None
    if said.get("total"):
        return f"{100 * said['done'] / said['total']:.0f}%"
    return f"{said.get('done')}"
