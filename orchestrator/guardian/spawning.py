"""How the guardian starts a process of its own."""

import os
import sys


def start_helper(module: str, arguments: list[str], descriptors: dict[int, int], **environment: str) -> int:
    """Start ``python -m module`` with these descriptors under these numbers; returns its pid."""
    actions = [(os.POSIX_SPAWN_DUP2, ours, theirs) for theirs, ours in descriptors.items()]
    argv = [sys.executable, "-m", module, *arguments]
    return os.posix_spawn(sys.executable, argv, dict(os.environ) | environment, file_actions=actions)
