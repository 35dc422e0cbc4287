"""Serving the API in a process of its own: ``orch api``."""

import asyncio
import contextlib
import gc
import logging
import resource
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from orchestrator.api.app import create_app
from orchestrator.api.own_token import OwnToken, own_token
from orchestrator.config import Settings
from orchestrator.errors import ApiUnavailable
from orchestrator.home import write_client
from orchestrator.observe import logs, traces
from orchestrator.runtime import Runtime

logger = logging.getLogger(__name__)


class _Server(uvicorn.Server):
    """Answers the requests that wait for output before it closes their connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        stopping: threading.Event,
        exporter: traces.Exporter,
        on_start: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._stopping, self._exporter, self._on_start = stopping, exporter, on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        self._stopping.set()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End; the signal that asked for it ends this process right after."""
        await super().shutdown(sockets)
        await asyncio.to_thread(self._exporter.close)


def serve(runtime: Runtime) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are answered.

    Raises:
        InvalidSettings: If the settings do not allow to serve.
        ApiUnavailable: If it could not be started.
    """
    settings = runtime.settings
    own = own_token(settings)
    app = create_app(runtime, token=own.secret, of_home=own.file is not None)
    logs.set_up(settings.log_level, settings.log_format, host=settings.node, process="api")
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        log_config=None,  # as everything else in this process
        log_level=settings.log_level.lower(),
        access_log=False,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    _make_room_for_followers()
    exporter = traces.set_up(settings.traces, host=settings.node, process="api")
    server = _Server(config, app.state.services.stopping, exporter, lambda: _tell_clients(settings, own))
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it has ended in order
        server.run()
    if not server.started:
        raise ApiUnavailable(f"the API could not be started at {settings.api_host}:{settings.api_port}")


def _tell_clients(settings: Settings, own: OwnToken) -> None:
    """Tell the clients of this home where the API is, now that this process alone answers there."""
    if own.file is None:
        return
    # A warning, for that is told by default: without it nobody knows why the API refuses whoever has no token.
    logger.warning("no api_token is set: the API's token is in %s, where this home's command line finds it", own.file)
    try:
        write_client(settings.home, settings.client_url)
    except OSError as error:
        logger.warning("the command line has to be told ORCHESTRATOR_API_URL and its token: %s", error)


def _make_room_for_followers() -> None:
    """Allow as many connections as the system does, and look for garbage less often among what thousands of them hold.

    What is there by now stays for good. Most else is freed by its reference count; a pass over everything, which stops
    all requests for as long as it takes, was due after every 70,000 allocations.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
