"""``install(app)``: what makes a Celery app an orchestrator's app, in one line.

app = install(Celery("mine", include=["mine.tasks"]))
"""

import logging
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

from celery import Celery, current_app
from celery.signals import after_setup_logger

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings, load_settings
from orchestrator.observe import logs
from orchestrator.runtime import Runtime
from orchestrator.streams.client import broker_url
from orchestrator.transport import register
from orchestrator.worker.amqp import JobAMQP
from orchestrator.worker.lease_step import LeaseStep
from orchestrator.worker.upstream import follow_plain_tasks

POOL: Final = "orchestrator.worker.pool:RunnerPool"
BACKEND: Final = "orchestrator.worker.results:JobBackend"
SCHEDULER: Final = "orchestrator_beat.scheduler:LeaderScheduler"


def install(app: Celery) -> Celery:
    """Give the app our transport, pool, lease step, result backend and scheduler as defaults, and return it.

    Settings are read when the app is first used, not here; what the app's own configuration says wins.
    """
    register()
    settings = cache(load_settings)

    @cache
    def runtime() -> Runtime:
        return open_runtime(settings())

    app.orchestrator_settings = settings
    app.orchestrator_runtime = runtime
    app.amqp_cls = JobAMQP
    app.steps["consumer"].add(LeaseStep)
    follow_plain_tasks(app)
    after_setup_logger.connect(partial(_shape_log, app, settings), weak=False)
    app.add_defaults(lambda: _defaults(settings()))
    return app


def _shape_log(app: Celery, settings: Callable[[], Settings], logger: logging.Logger, **_: Any) -> None:
    """Celery has set its log up: worker and beat write as the settings say."""
    if settings().log_format == logs.JSON and current_app == app:
        process = "beat" if "beat" in sys.argv[:4] else "worker"
        logs.use_json(logger.handlers, host=settings().node, process=process)


def _defaults(settings: Settings) -> dict[str, Any]:
    url = settings.redis
    options = {"node": settings.node, "consumer_name": settings.node, "visibility": settings.visibility}
    return {
        "broker_url": broker_url(url),
        "broker_transport_options": options,
        "broker_connection_retry_on_startup": True,
        "result_backend": f"{BACKEND}+{_backend_url(url)}",
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": True,
        "task_default_queue": "default",
        "task_send_sent_event": False,
        "worker_pool": POOL,
        "worker_prefetch_multiplier": 4,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "beat_scheduler": SCHEDULER,
        "enable_utc": True,
        "timezone": "UTC",
    }


def _backend_url(url: str) -> str:
    return "socket://" + url.removeprefix("unix://") if url.startswith("unix://") else url
