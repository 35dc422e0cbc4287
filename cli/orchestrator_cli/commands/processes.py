"""The processes of an installation: ``orch worker|beat|api|flower``.

Worker, beat and Flower are Celery's own commands with our app and sensible defaults; options after ``--`` go to them.
"""

import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

import click

from orchestrator.config import Settings, load_settings

APP: Final = "orchestrator_tasks.app"
PASSED_ON: Final = {"ignore_unknown_options": True, "allow_interspersed_args": True}


@click.command(context_settings=PASSED_ON)
@click.option("--app", "-A", default=APP, show_default=True, help="The Celery app.")
@click.option("--queues", "-Q", default=None, help="Queues to take jobs from.  [default: every queue of the settings]")
@click.option("--concurrency", "-c", type=click.IntRange(1), help="CPU-only jobs at once.  [default: CPUs]")
@click.option("--node", help="This host's name.  [default: ORCHESTRATOR_NODE, else the host name]")
@click.option("--loglevel", "-l", default=None, help="[default: ORCHESTRATOR_LOG_LEVEL]")
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def worker(
    app: str, queues: str | None, concurrency: int | None, node: str | None, loglevel: str | None, more: Sequence[str]
) -> None:
    """Run the worker of this GPU host."""
    if node:
        os.environ["ORCHESTRATOR_NODE"] = node
    settings = load_settings()
    _check_limits(settings)
    arguments = ["-Q", queues or ",".join([*settings.queues, "default"]), "-n", f"orchestrator@{settings.node}", "-E"]
    arguments += ["-l", loglevel or settings.log_level]
    arguments += ["-c", str(concurrency)] if concurrency else []
    _become_celery(app, "worker", [*arguments, *more])


@click.command(context_settings=PASSED_ON)
@click.option("--app", "-A", default=APP, show_default=True, help="The Celery app.")
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def beat(app: str, more: Sequence[str]) -> None:
    """Run beat: one of several leads, and the leader's sweeps keep the installation healthy."""
    settings = load_settings()
    _become_celery(app, "beat", ["-l", settings.log_level, "--pidfile=", *more])


@click.command()
@click.option("--host", help="Address to bind.  [default: ORCHESTRATOR_API_HOST]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to bind.  [default: ORCHESTRATOR_API_PORT]")
def api(host: str | None, port: int | None) -> None:
    """Serve the HTTP API."""
    from orchestrator.api.serve import serve
    from orchestrator.bootstrap import open_runtime

    chosen = {name: value for name, value in (("api_host", host), ("api_port", port)) if value is not None}
    runtime = open_runtime(load_settings(**chosen))
    try:
        serve(runtime)
    finally:
        runtime.close()


@click.command(context_settings=PASSED_ON)
@click.option("--app", "-A", default=APP, show_default=True, help="The Celery app.")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: ORCHESTRATOR_FLOWER_PORT]")
@click.argument("more", nargs=-1, type=click.UNPROCESSED)
def flower(app: str, port: int | None, more: Sequence[str]) -> None:
    """Run Flower on the same broker."""
    settings = load_settings()
    address = ["--address=127.0.0.1", f"--port={port or settings.flower_port}"]
    _become_celery(app, "flower", [*address, *more])


COMMANDS = [worker, beat, api, flower]


def _become_celery(app: str, verb: str, arguments: Sequence[str]) -> NoReturn:
    """Go on as Celery's own command, in this process: signals and exit codes are Celery's."""
    _check(load_settings())
    os.execv(sys.executable, [sys.executable, "-m", "celery", "-A", app, verb, *arguments])


def _check(settings: Settings) -> None:
    from orchestrator.bootstrap import open_runtime

    open_runtime(settings).close()  # a malformed URL is one line here, and a traceback in Celery


def _check_limits(settings: Settings) -> None:
    from orchestrator.worker.confinement import confine

    confine(settings)  # likewise a limit that this host does not let us set
