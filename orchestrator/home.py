"""Where the embedded stack keeps its data; apart from the settings, whose library takes longer to load than a verb."""

import os
from pathlib import Path


def default_home() -> Path:
    """Return ``ORCHESTRATOR_HOME``, else ``~/.orchestrator``."""
    return Path(os.environ.get("ORCHESTRATOR_HOME") or Path.home() / ".orchestrator")
