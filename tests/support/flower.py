"""Flower beside a cluster, asked through its HTTP API."""

import json
import os
import urllib.parse
import urllib.request
from typing import Any

from tests.support.cluster import Cluster
from tests.support.servers import free_port
from tests.support.waiting import wait_for


class Flower:
    """A Flower process that knows the cluster's workers."""

    def __init__(self, cluster: Cluster) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        port = self.url.rpartition(":")[2]
        os.environ["FLOWER_UNAUTHENTICATED_API"] = "true"
        try:
            self.process = cluster.spawn("flower", ["orchestrator_cli", "flower", "--port", port])
        finally:
            del os.environ["FLOWER_UNAUTHENTICATED_API"]
        wait_for(self._answers, within_seconds=40, describe=self.process.tail)

    def page(self, path: str) -> str:
        """Return what it answers."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as response:  # noqa: S310 - http
            return str(response.read().decode())

    def get(self, path: str) -> Any:
        """Return a document."""
        return json.loads(self.page(path))

    def post(self, path: str, **fields: str) -> Any:
        """Send a form."""
        data = urllib.parse.urlencode(fields).encode()
        with urllib.request.urlopen(f"{self.url}{path}", data=data, timeout=10) as response:  # noqa: S310 - http
            return json.loads(response.read())

    def _answers(self) -> bool:
        try:
            return bool(self.get("/api/workers?refresh=1"))
        except OSError:
            assert self.process.popen.poll() is None, self.process.tail()
            return False
