"""Which GPU it is that runners do not start on: a sign against the card only if the same app starts on others."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

#: So many failed starts in a row are not chance.
IN_A_ROW: Final = 3


@dataclass(slots=True)
class _Row:
    """Failed starts on one GPU, one after another, and what other GPUs did since the first of them."""

    failures: int = 0
    started: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    @property
    def stands_alone(self) -> bool:
        """Most of the others do what this one does not; else it is the app that is broken, or fails at times."""
        return len(self.started - self.failed) > len(self.failed)


class StartWatch:
    """Remembers how the runners of one app started on the GPUs of one host."""

    def __init__(self, in_a_row: int = IN_A_ROW) -> None:
        self._in_a_row = in_a_row
        self._rows: dict[str, _Row] = {}  # of the GPUs on which the latest start failed

    def note(self, gpus: Iterable[str], *, started: bool) -> dict[str, str]:
        """Take in how a runner on these GPUs started; return those to hold it against, and why."""
        own = frozenset(gpus)
        for uuid, row in self._rows.items():
            if uuid not in own:
                (row.started if started else row.failed).update(own)
        if started:
            for uuid in own:
                self._rows.pop(uuid, None)
            return {}
        for uuid in own:
            self._rows.setdefault(uuid, _Row()).failures += 1
        suspects = {uuid: self._rows[uuid] for uuid in sorted(own)}
        found = {
            uuid: f"{row.failures} runners in a row did not start on it, while others started on {_listed(row)}"
            for uuid, row in suspects.items()
            if row.failures >= self._in_a_row and row.stands_alone
        }
        for uuid in found:
            del self._rows[uuid]
        return found


def _listed(row: _Row) -> str:
    first, *others = sorted(row.started - row.failed)
    return f"{first} and {len(others)} more" if others else first
