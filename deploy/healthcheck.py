"""Tell a container runtime whether a process serves: ``healthcheck.py http URL | leader | worker``, exit 0 or 1.

``leader``: some beat leads (``ORCHESTRATOR_API_URL`` is asked, with ``ORCHESTRATOR_API_TOKEN``); a standby is healthy
then too. ``worker``: this host is among those whose workers are alive.
"""

import json
import os
import socket
import sys
import urllib.request
from typing import Any

SECONDS = 5


def main(arguments: list[str]) -> int:
    """Run one check and print what it saw."""
    match arguments:
        case ["http", url]:
            ask(url)
            print("ok")
            return 0
        case ["leader"]:
            leader = json.loads(ask_api("/cluster")).get("leader")
            print(f"leader: {leader}")
            return 0 if leader else 1
        case ["worker"]:
            name = os.environ.get("ORCHESTRATOR_NODE") or socket.gethostname()
            live = [node["name"] for node in json.loads(ask_api("/nodes"))["nodes"] if node["live"]]
            print(f"live workers: {', '.join(live)}")
            return 0 if name in live else 1
    print(__doc__, file=sys.stderr)
    return 2


def ask_api(path: str) -> bytes:
    """Return what the API says."""
    headers = {"Authorization": f"Bearer {os.environ['ORCHESTRATOR_API_TOKEN']}"}
    return ask(os.environ["ORCHESTRATOR_API_URL"] + path, headers)


def ask(url: str, headers: dict[str, str] | None = None) -> bytes:
    """Return the body of an answer of 200; any other raises, which ends the process with 1."""
    request: Any = urllib.request.Request(url, headers=headers or {})  # noqa: S310  # http, from the compose file
    with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310
        body: bytes = answer.read()
        return body


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
