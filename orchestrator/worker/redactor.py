"""Hides values in a stream of bytes, also where one is split between two reads."""

import os
import re
from collections.abc import Iterable
from typing import Final

HIDDEN: Final = b"***"
#: Shorter values would hide ordinary words.
SHORTEST: Final = 4
#: Of a value of several lines each line is hidden as well, if it is this long: a key is often printed line by line.
SHORTEST_LINE: Final = 8
#: Longer values are hidden by their lines alone.
LONGEST: Final = 4096


class Redactor:
    """Passes bytes on without the values that it was told to hide."""

    def __init__(self, values: Iterable[str]) -> None:
        wanted: set[bytes] = set()
        for value in map(os.fsencode, values):
            wanted.update(line for line in value.splitlines() if len(line) >= SHORTEST_LINE)
            if len(value) <= LONGEST:
                wanted.add(value)
        self._values = sorted(
            (one for one in wanted if SHORTEST <= len(one) <= LONGEST), key=lambda one: (-len(one), one)
        )
        self._pattern = re.compile(b"|".join(map(re.escape, self._values))) if self._values else None
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return what may be shown now; an end that may be the beginning of a value is held back."""
        if self._pattern is None:
            return data
        text = self._held + data
        open_from = len(text) - self._possible(text)
        shown, at = [], 0
        for found in self._pattern.finditer(text):
            if found.start() >= open_from:
                break  # a longer value may begin here, or before: what follows has to tell
            shown += [text[at : found.start()], HIDDEN]
            at = found.end()
        rest = text[at:]
        kept = self._possible(rest)
        self._held = rest[len(rest) - kept :]
        return b"".join([*shown, rest[: len(rest) - kept]])

    def end(self) -> bytes:
        """Return what was held back: nothing follows it."""
        rest, self._held = self._held, b""
        return rest if self._pattern is None else self._pattern.sub(HIDDEN, rest)

    def _possible(self, text: bytes) -> int:
        """Return the length of the longest end that is the beginning of a value, but not all of it."""
        longest = 0
        for value in self._values:
            for length in range(min(len(value) - 1, len(text)), longest, -1):
                if text.endswith(value[:length]):
                    longest = length
                    break
        return longest
