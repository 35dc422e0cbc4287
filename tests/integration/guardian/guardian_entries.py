"""Entries of task runners, imported by the fork server in tests; importing this starts nothing."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMPORTED_BY = os.getpid()


def describe(spec: Mapping[str, Any], control: socket.socket) -> None:
    """Send what the runner finds around itself."""
    shown = Path("/proc/self/environ").read_bytes().strip(b"\0").decode().split("\0")
    descriptors = {}
    for name in os.listdir("/proc/self/fd"):
        if Path(f"/proc/self/fd/{name}").exists():
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
    found = {
        "environment": dict(os.environ),
        "shown": dict(line.split("=", 1) for line in shown),
        "cwd": str(Path.cwd()),
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "imported_by": IMPORTED_BY,
        "spec": spec["runner_id"],
        "control": control.fileno(),
        "descriptors": descriptors,
        "core": resource.getrlimit(resource.RLIMIT_CORE),
        "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    }
    control.send(json.dumps(found).encode())


def echo(_spec: Mapping[str, Any], control: socket.socket) -> None:
    """Answer each packet with itself until the other side is gone."""
    while data := control.recv(1 << 16):
        control.send(data)


def crash(_spec: Mapping[str, Any], _control: socket.socket) -> None:
    """Fail as user code fails."""
    raise RuntimeError("boom")


def leave(_spec: Mapping[str, Any], _control: socket.socket) -> None:
    """Print and leave with a code."""
    print("leaving ✓")
    sys.exit(7)


def daemonise(_spec: Mapping[str, Any], control: socket.socket) -> None:
    """Fork a daemon, without exec, that leaves parent, session and group; then wait."""
    if os.fork() == 0:
        os.setsid()
        pid = os.fork()
        if pid == 0:
            control.send(json.dumps(os.getpid()).encode())
            time.sleep(600)
        os._exit(0)
    os.wait()
    time.sleep(600)


def run_forever(_spec: Mapping[str, Any], control: socket.socket) -> None:
    """Run a child program as well and report both pids."""
    child = subprocess.Popen(["sleep", "600"])
    control.send(json.dumps([os.getpid(), child.pid]).encode())
    time.sleep(600)
