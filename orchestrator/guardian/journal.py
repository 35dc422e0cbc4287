"""The guardian's journal: which runner ran where and when, in a file that outlives it.

One JSON object a line, ``<journal_dir>/<node>.jsonl``. Each names the operation (``start``, ``spawn``, ``began``,
``kill``, ``stuck``, ``exit``, ``stop``), the boot and CLOCK_BOOTTIME; those about a runner its id, mark, token and
GPUs, and its pid, process group and start time once it has them. A successor reads it to end what was left, and a
checker to prove that no GPU had two runners.
"""

import fcntl
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, TypeAlias

from orchestrator.guardian.kernel import boottime, read_boot_id

logger = logging.getLogger(__name__)

Record: TypeAlias = dict[str, Any]

#: A larger journal is set aside as ``<node>.jsonl.1``; the one before that is forgotten.
ROTATE_BYTES: Final = 16 << 20


class Journal:
    """Append-only; each record is one write, so a killed writer leaves at most one torn line at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boot_id = read_boot_id()
        self._lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        self._file: int | None = None
        self._size = 0
        self._open_records: dict[str, Record] = {}  # by mark: what a rotated journal must still say

    def try_lock(self) -> bool:
        """Become the node's only writer; False while another guardian is."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def read(self) -> list[Record]:
        """Return the records of this boot, oldest first; nothing of an earlier boot is alive."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        return [
            record for record in map(_decode, lines) if record is not None and record.get("boot_id") == self.boot_id
        ]

    def append(self, op: str, **values: Any) -> None:
        """Write one record; a full disk is logged and does not stop the guardian from ending runners."""
        record: Record = {"op": op, "at": boottime(), "boot_id": self.boot_id, **values}
        if op in ("spawn", "began"):
            self._open_records[record["mark"]] = self._open_records.get(record["mark"], {}) | record
        elif op == "exit":
            self._open_records.pop(record["mark"], None)
        elif op == "start":
            self._open_records[""] = record
        try:
            self._write([record])
            if self._size > ROTATE_BYTES:
                self.rotate()
        except OSError as error:
            logger.error("journal %s: %s", self.path, error)

    def keep(self, record: Record) -> None:
        """An earlier guardian's runner is not gone: a rotated journal must still say so."""
        self._open_records[record["mark"]] = record

    def rotate(self) -> None:
        """Set the file aside and begin a new one with what is still open."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.path.rename(self.path.with_name(self.path.name + ".1"))
        self._write(self._open_records.values())

    def _write(self, records: Iterable[Record]) -> None:
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            self._size = os.fstat(self._file).st_size
        data = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in records).encode()
        os.write(self._file, data)
        self._size += len(data)


def _decode(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
