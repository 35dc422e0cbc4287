"""An api process beside a cluster."""

from typing import Any

import httpx

from tests.support.cluster import Cluster, Process
from tests.support.servers import free_port
from tests.support.waiting import wait_for


def start_api(cluster: Cluster, **settings: Any) -> tuple[Process, str]:
    """Start an api process and return it with its URL once it answers."""
    port = free_port()
    process = cluster.spawn("api", ["orchestrator_cli", "api", "--port", str(port)], **settings)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/healthz", trust_env=False).is_success
        except httpx.TransportError:
            return False

    wait_for(answers, within_seconds=30, describe=process.tail)
    return process, url
