"""The commands of docker-compose.yml's services, and how to run them without Docker.

``tests/unit/test_compose.py`` holds the file to this table; ``tests/e2e/test_compose_commands.py`` runs it.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [str(ROOT), *(str(ROOT / name) for name in ("tasks", "beat", "cli"))]

#: The services that run our own image, with their commands.
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "migrate": ("orch", "db", "upgrade"),
    "api": ("orch", "api"),
    "beat": ("orch", "beat"),
    "worker": ("orch", "worker"),
    "flower": ("orch", "flower", "--address=0.0.0.0"),
}


def native(command: Sequence[str]) -> list[str]:
    """Return a container's command as this environment runs it."""
    match command:
        case ["orch", *arguments]:
            return [sys.executable, "-m", "orchestrator_cli", *arguments]
        case ["python3", "/opt/orchestrator/healthcheck.py", *arguments]:
            return [sys.executable, str(ROOT / "deploy" / "healthcheck.py"), *arguments]
    raise ValueError(f"not a command of ours: {command}")
