"""The file in which a command tells from where a further attempt can go on."""

import contextlib
import os
from pathlib import Path

from orchestrator.job_context import LONGEST_CHECKPOINT


class CheckpointFile:
    """One command's file; read again only when it has changed."""

    def __init__(self, directory: Path, name: str) -> None:
        """Make the directory; the file is the job's to make."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path = directory / name
        self._seen: tuple[int, int, int] | None = None
        self._remove()

    def read(self) -> str | None:
        """Return what the job wrote since the last call; None if that is nothing."""
        try:
            status = os.stat(self.path, follow_symlinks=False)
            seen = (status.st_ino, status.st_mtime_ns, status.st_size)
            if seen == self._seen:
                return None
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        self._seen = seen
        with os.fdopen(descriptor, "rb") as file:
            data = file.read(4 * LONGEST_CHECKPOINT + 2)
        return data.decode("utf-8", "replace").rstrip("\n") or None

    def close(self) -> None:
        """The job has ended: nobody needs the file any more."""
        self._remove()

    def _remove(self) -> None:
        for path in (self.path, self.path.with_name(f"{self.path.name}.new")):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
