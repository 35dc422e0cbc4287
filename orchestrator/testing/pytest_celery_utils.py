"""What pytest-celery runs inside a worker's container, for containers that are processes of this host."""

import json
import os

import psutil

COLUMNS = ("pid", "name", "username", "cmdline", "cpu_percent", "memory_percent", "create_time")


def get_running_processes_info(columns: list[str] | None = None) -> str:
    """Return the container's processes as JSON: its first process and all that it started, nobody else's."""
    first = psutil.Process(int(os.environ["CONTAINER_PID"]))
    return json.dumps(
        [process.as_dict(list(columns or COLUMNS)) for process in (first, *first.children(recursive=True))]
    )
