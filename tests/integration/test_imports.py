"""Importing the project does nothing to the world outside: no connection, no process, no file."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "orchestrator": ROOT,
    "orchestrator_cli": ROOT / "cli",
    "orchestrator_tasks": ROOT / "tasks",
    "orchestrator_beat": ROOT / "beat",
}
PROGRAM = """
import importlib, os, pkgutil, sys

def refuse(event, args):
    opens = event in ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.posix_spawn", "os.fork")
    opens = opens or (event == "socket.bind" and args[1][1] != 0)  # urllib3 binds port 0 to see whether there is IPv6
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if opens or (writes and not str(args[0]).endswith(".pyc")):
        print(event, args, file=sys.stderr)
        os._exit(3)

package = importlib.import_module(sys.argv[1])
names = [one.name for one in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
names = [name for name in names if not name.endswith("__main__")]  # a program: it runs when it is imported
sys.addaudithook(refuse)
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "torch":  # an extra that the tests do without
            raise
print(len(names))
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_opens_no_connection(package: str, tmp_path: Path) -> None:
    """Each module of a package, in a process of its own where whatever connects, starts or writes ends it."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM, package],
        env={"PYTHONPATH": ":".join(str(path) for path in PACKAGES.values()), "HOME": str(tmp_path), "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 0
    assert list(tmp_path.iterdir()) == []
