"""A stack of the test's own, and ``orch`` on it."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator_cli.stack.home import Home
from orchestrator_cli.stack.supervision import marked_processes
from tests.support.commands import SOURCES

Orch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home whose stack is gone after the test."""
    home = Home(tmp_path / "home")
    yield home
    for process in marked_processes(home):
        process.kill()


@pytest.fixture
def orch(home: Home) -> Orch:
    """Run ``orch`` on this home to its end."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    own |= {"ORCHESTRATOR_HOME": str(home.path), "PYTHONPATH": os.pathsep.join(SOURCES)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "orchestrator_cli", *arguments]
        return subprocess.run(argv, env=own, capture_output=True, text=True, timeout=100, check=False)

    return run
