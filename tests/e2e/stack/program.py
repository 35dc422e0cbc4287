"""Stands in for our own parts in the tests of the stack: serves, leaves helpers behind, and fails when told to.

``FAKE_FAIL`` names a part that ends at once, ``FAKE_DEAF`` one that ignores TERM.
"""

import http.server
import os
import signal
import subprocess
import sys
from pathlib import Path

HOME = Path(os.environ["ORCHESTRATOR_HOME"])


class Handler(http.server.BaseHTTPRequestHandler):
    """200 on /healthz; on /readyz only once the worker has said so."""

    def do_GET(self) -> None:
        is_ready = self.path == "/healthz" or (self.path == "/readyz" and (HOME / "worker.ready").exists())
        self.send_response(200 if is_ready else 503)
        self.end_headers()
        self.wfile.write(b'{"detail": "no live worker"}')


def main(part: str) -> None:
    """Play one part."""
    (HOME / f"{part}.environment").write_text("\n".join(f"{k}={v}" for k, v in os.environ.items()))
    if os.environ.get("FAKE_FAIL") == part:
        sys.exit(f"{part} fails as it was told to")
    if part == "db":
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("FAKE_DEAF") == part else lambda *_: sys.exit(0))
    if part == "api":
        http.server.HTTPServer(("127.0.0.1", int(os.environ["ORCHESTRATOR_API_PORT"])), Handler).serve_forever()
    if part == "worker":
        # Out of the worker's session, with nothing of its environment: as a daemonised job would be.
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True, env={})
        (HOME / "orphan.pid").write_text(str(child.pid))
        (HOME / "worker.ready").touch()
    while True:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1])
