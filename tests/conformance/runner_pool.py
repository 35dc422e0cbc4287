"""Celery's suite on this product's pool: its worker stays in the test's process, its tasks run in runners."""

import os
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.install import POOL, install
from orchestrator.storage.schema import upgrade
from tests.support.servers import RedisServer

NODE: Final = "conformance"
APP_MODULE: Final = "tests.conformance.runner_app"


def stage(app: Any, server: RedisServer) -> str:
    """Make the suite's app one of this product's, with a ledger of its own; return the pool's name."""
    home = server.directory / "orchestrator"
    home.mkdir(exist_ok=True)
    database, cards = f"sqlite:///{home / 'ledger.db'}", home / "gpus.toml"
    upgrade(database)
    write_gpus(cards, make_gpus(1, owner=NODE))
    os.environ |= {
        "ORCHESTRATOR_HOME": str(home),
        "ORCHESTRATOR_NODE": NODE,
        "ORCHESTRATOR_DATABASE_URL": database,
        "ORCHESTRATOR_REDIS_URL": server.url,
        "ORCHESTRATOR_SIMULATED_GPUS": str(cards),
    }
    adopt(app, os.environ)
    # Runners import their app by name: under the one where they find theirs, this process has the suite's.
    sys.modules[APP_MODULE] = ModuleType(APP_MODULE)
    sys.modules[APP_MODULE].__dict__["app"] = app
    return POOL


def adopt(app: Any, environment: Mapping[str, str]) -> Any:
    """Install this product in an app, and set what the suite relies on and an orchestrator's app has otherwise."""
    install(app)
    app.conf.update(
        broker_url=environment["TEST_BROKER"],
        result_backend=environment["TEST_BACKEND"],
        result_extended=True,
        task_acks_late=False,
        task_default_queue="celery",
    )
    return app
