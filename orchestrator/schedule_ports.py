"""What beat needs of the outside world, as protocols; ``storage`` implements them. Errors are those of ``ports``."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Firing:
    """The latest firing of an entry of beat's schedule; without a ``task_id`` it has not fired, but begins there."""

    fired_at: datetime
    task_id: str | None
    is_sent: bool


class Firings(Protocol):
    """What beat's schedule has fired; written by the leader alone. ``NotLeading`` if the epoch is over."""

    def load(self) -> Mapping[str, Firing]:
        """Return every entry's latest firing, by name."""
        ...

    def begin(self, names: Mapping[str, datetime], *, epoch: int) -> None:
        """Note from when on entries count that have never fired; what is known stays."""
        ...

    def fire(self, name: str, fired_at: datetime, task_id: str, *, epoch: int) -> None:
        """Note a firing that is about to be sent under this id."""
        ...

    def sent(self, name: str, task_id: str) -> None:
        """Note that it was sent."""
        ...
