"""Serving the API in a process of its own: ``orch api``."""

import logging

import uvicorn

from orchestrator.api.app import create_app
from orchestrator.runtime import Runtime


def serve(runtime: Runtime) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered.

    Raises:
        InvalidSettings: If the settings do not allow to serve.
    """
    settings = runtime.settings
    app = create_app(runtime, token=settings.bearer_token())
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    uvicorn.run(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
