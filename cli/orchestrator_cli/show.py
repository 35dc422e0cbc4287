"""What people see: tables, ages, a job's output."""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click
from rich.cells import cell_len
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
    r"|[\u202a-\u202e\u2066-\u2069]"  # what follows would be read in another order than it is written in
)
#: What people copy is never cut; what they recognise by its beginning is, but not to less than this.
ELASTIC: Final = frozenset({"NAME", "NODE", "MODEL", "QUEUES", "GPUS"})
NARROWEST: Final = 8
GAP: Final = 2


def as_json(document: Any) -> None:
    """Print a document for programs."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, can_go: Sequence[str] = ()) -> None:
    """Print a table that fits the terminal; in a file or a pipe nothing is cut.

    Args:
        columns: Their titles.
        rows: A cell a column; None is shown as a dash.
        can_go: Columns that a narrow terminal is spared, the least important first.
    """
    cells = [["-" if cell is None else harmless(str(cell)).replace("\n", " ") for cell in row] for row in rows]
    console = Console(highlight=False, markup=False, emoji=False)
    widths = {
        title: max(cell_len(text) for text in (title, *(row[place] for row in cells)))
        for place, title in enumerate(columns)
    }
    if sys.stdout.isatty():
        widths = fitted(widths, console.width, can_go)
    grid = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    for title, width in widths.items():
        grid.add_column(title, no_wrap=True, overflow="ellipsis", min_width=width, max_width=width)
    for row in cells:
        grid.add_row(*(row[columns.index(title)] for title in widths))
    console.width = sum(widths.values()) + GAP * len(widths)  # what does not fit in the end is the terminal's to wrap
    console.print(grid)


def fitted(widths: Mapping[str, int], room: int, can_go: Sequence[str] = ()) -> dict[str, int]:
    """Return the columns and widths with which a table has room: narrower ones first, fewer ones if that is not enough.

    It may still be too wide where nothing more can go.
    """
    fitting = dict(widths)
    for gone in (None, *can_go):
        fitting.pop(gone or "", None)
        excess = sum(fitting.values()) + GAP * (len(fitting) - 1) - room
        for title in sorted(ELASTIC & fitting.keys(), key=lambda title: (-fitting[title], title)):
            less = min(max(0, excess), max(0, fitting[title] - NARROWEST))
            fitting[title] -= less
            excess -= less
        if excess <= 0:
            break
    return fitting


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


def run_time(job: Mapping[str, Any]) -> str | None:
    """Return how long a job has run, or ran."""
    if job["started_at"] is None:
        return None
    end = datetime.fromisoformat(job["finished_at"]) if job["finished_at"] else datetime.now(UTC)
    return span((end - datetime.fromisoformat(job["started_at"])).total_seconds())


def output(text: str, *, raw: bool = False, err: bool = False) -> None:
    """Print a job's output; unless ``raw``, without what could trouble the terminal."""
    # click takes colours out where no terminal reads them; raw means all of it, in a pipe too
    click.echo(text if raw else harmless(text), nl=False, err=err, color=True if raw else None)


def harmless(text: str) -> str:
    """Return a text without control characters and escape sequences, except colours, tabs and ends of lines.

    Nor has it characters that override the direction of writing; the marks that right-to-left scripts need stay.
    """
    return _CONTROLS.sub(lambda found: found[1] or "", text)


def progress(job: dict[str, Any]) -> str | None:
    """Return a job's progress in a few characters."""
    said = job["progress"]
    if not said:
        return None
    if said.get("total"):
        return f"{100 * said['done'] / said['total']:.0f}%"
    return f"{said.get('done')}"


def gpus(job: Mapping[str, Any]) -> str:
    """Return what a job asks for: whole GPUs, or a share of one."""
    return f"{job['gpu_memory_mib']}M" if job["gpu_memory_mib"] else str(job["gpus"])
