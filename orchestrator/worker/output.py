"""A bounded copy of what an attempt prints: its head as it comes, its tail when it ends."""

import codecs
from collections import deque
from collections.abc import Iterable

from orchestrator.worker.redactor import Redactor


class OutputCapture:
    """Turns the bytes of one attempt into numbered text chunks.

    The first ``head_bytes`` become chunks as soon as they are drained; of what follows only the last ``tail_bytes`` are
    kept, and become chunks at the end, after a line that says how much was dropped between.
    """

    def __init__(self, *, head_bytes: int, tail_bytes: int) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._head_left = head_bytes
        self._tail_bytes = tail_bytes
        self._fresh: list[str] = []
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._dropped = 0
        self._next_number = 0
        self._redactor: Redactor | None = None

    @property
    def has_fresh(self) -> bool:
        """Something is there to drain."""
        return bool(self._fresh)

    def hide(self, values: Iterable[str]) -> None:
        """Show ``***`` wherever the attempt prints one of these; to be said before it prints anything."""
        self._redactor = Redactor(values)

    def feed(self, data: bytes) -> None:
        """Take what the attempt printed."""
        if self._redactor is not None:
            data = self._redactor.feed(data)
        head, rest = data[: self._head_left], data[self._head_left :]
        if head:
            self._head_left -= len(head)
            self._fresh.append(self._decoder.decode(head))
        if rest:
            self._tail.append(rest)
            self._tail_size += len(rest)
            while self._tail_size - len(self._tail[0]) >= self._tail_bytes:
                oldest = self._tail.popleft()
                self._tail_size -= len(oldest)
                self._dropped += len(oldest)

    def drain(self, *, ended: bool = False) -> list[tuple[int, str]]:
        """Return the chunks that are ready as (number, text), at most one unless the attempt ``ended``."""
        if ended and self._redactor is not None:
            redactor, self._redactor = self._redactor, None
            self.feed(redactor.end())
        texts = ["".join(self._fresh)]
        self._fresh.clear()
        if ended:
            texts[0] += self._decoder.decode(b"", final=True) if not self._tail else ""
            texts += self._drain_tail()
        chunks = [(self._next_number + offset, text) for offset, text in enumerate(text for text in texts if text)]
        self._next_number += len(chunks)
        return chunks

    def _drain_tail(self) -> list[str]:
        if not self._tail:
            return []
        tail = b"".join(self._tail)
        excess = max(0, len(tail) - self._tail_bytes)
        self._tail.clear()
        self._tail_size = 0
        dropped = self._dropped + excess
        text = (
            self._decoder.decode(tail[excess:], final=True) if not dropped else tail[excess:].decode("utf-8", "replace")
        )
        return [f"\n[... {dropped} bytes of output dropped here ...]\n" + text] if dropped else [text]
