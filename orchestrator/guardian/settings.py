"""What a worker tells its guardian once, at the start."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

SYSTEM_LOCKS: Final = Path("/run/orchestrator")


@dataclass(frozen=True, slots=True)
class GuardianSettings:
    """Settings of one guardian; durations are in seconds."""

    node: str  # names the journal; one live guardian a node
    home: Path
    lock_dir: Path | None = None  # default: /run/orchestrator if it can be used, else <home>/locks
    journal_dir: Path | None = None  # default: <home>/journal
    simulated_gpus: Path | None = None
    preload: tuple[str, ...] = ()  # modules that the fork server imports before the first runner
    import_path: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))  # where it finds them
    start_deadline_seconds: float = 30
    preload_deadline_seconds: float = 120  # modules that take longer are left for the runners to import
    lock_wait_seconds: float = 10  # longest wait for a GPU that somebody else holds
    clean_wait_seconds: float = 10  # longest wait until what an earlier runner left on a GPU is gone
    clean_memory_mib: int = 512  # a GPU with more than that in use is not clean
    kill_wait_seconds: float = 10  # processes that outlive KILL so long are given up, and their GPUs with them
    sample_seconds: float = 1
    report_seconds: float = 5  # longest silence about GPUs that do not change
    sampler_deadline_seconds: float = 15  # a driver that is silent for so long does not answer
    hung_lost_seconds: float = 60  # a card that hangs its driver for longer is lost
    hung_retry_seconds: float = 15  # before it is tried again; doubles, up to the next one
    hung_most_retry_seconds: float = 600
    self_test_seconds: float = 30  # a GPU that takes longer for its self-test fails it
    leftover_grace_seconds: float = 1  # from TERM to KILL for what a runner leaves behind
    log_format: str = "text"  # or "json"
    isolation: str = "auto"  # or "process" for no control groups, "cgroup" to insist on them
    driver_gpus: Path = Path("/proc/driver/nvidia/gpus")  # where the driver tells which device file is whose

    def find_lock_dir(self) -> Path:
        """Return the directory of device locks, made if missing.

        Raises:
            OSError: If none can be used.
        """
        candidates = [self.lock_dir] if self.lock_dir is not None else [SYSTEM_LOCKS, self.home / "locks"]
        for candidate in candidates[:-1]:
            if _is_usable(candidate):
                return candidate
        candidates[-1].mkdir(parents=True, exist_ok=True)
        return candidates[-1]

    def find_journal(self) -> Path:
        """Return the journal's path; its directory is made if missing."""
        directory = self.journal_dir or self.home / "journal"
        directory.mkdir(parents=True, exist_ok=True)
        return directory / f"{self.node}.jsonl"

    def to_document(self) -> dict[str, Any]:
        """Return the settings as JSON can carry them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "GuardianSettings":
        """Read what ``to_document`` wrote."""
        paths = {
            name: None if document[name] is None else Path(document[name])
            for name in ("home", "lock_dir", "journal_dir", "simulated_gpus", "driver_gpus")
        }
        lists = {name: tuple(document[name]) for name in ("preload", "import_path")}
        return cls(**{**document, **paths, **lists})


def shape_log(log_format: str, *, host: str, process: str) -> None:
    """Have this process log as the worker does."""
    if log_format == "json":
        from orchestrator.observe.logs import use_json  # not for those who do not want it: a guardian is small

        use_json(logging.getLogger().handlers, host=host, process=process)


def _is_usable(directory: Path) -> bool:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(directory, os.W_OK | os.X_OK)
