"""Examples that ship inside Celery's source distribution, byte for byte: the environment names the broker's URL."""

from pathlib import Path

import pytest
from celery import Celery, chain, chord

from orchestrator.transport import register
from tests.conformance import sources
from tests.support.servers import free_port
from tests.support.waiting import wait_for

from .conftest import PATIENCE, Deployment

pytestmark = pytest.mark.index
CACHE = sources.ROOT / "build" / "conformance" / "sources"


@pytest.fixture
def examples() -> Path:
    """Celery's examples, of the version that is installed."""
    return sources.fetch_one(CACHE, "celery") / "examples"


@pytest.mark.timeout(400)
def test_next_steps_runs_with_flower(deployment: Deployment, examples: Path) -> None:
    """The project of Celery's "Next Steps": canvas over a worker of its own, seen by Flower."""
    results = f"redis://127.0.0.1:{deployment.server.port}/1"
    deployment.code = examples / "next-steps"
    deployment.variables |= {"CELERY_BROKER_URL": deployment.broker, "CELERY_RESULT_BACKEND": results}
    flower = free_port()
    deployment.run("worker", "celery", "-A", "proj", "worker", "-c", "2", "-l", "INFO", "-E", "-n", "next@here")
    deployment.run("flower", "celery", "-A", "proj", "flower", f"--port={flower}", "--address=127.0.0.1")
    deployment.wait_for_log("worker", "next@here ready.")

    register()
    with Celery("client", broker=deployment.broker, backend=results, set_as_current=False) as client:
        add, mul, xsum = (client.signature(f"proj.tasks.{name}") for name in ("add", "mul", "xsum"))
        assert chain(add.clone((4, 4)), mul.clone((8,)), app=client)().get(timeout=PATIENCE) == 64
        header = [add.clone((number, number)) for number in range(10)]
        assert chord(header, xsum.clone(), app=client)().get(timeout=PATIENCE) == 90
        page = f"http://127.0.0.1:{flower}/workers"
        wait_for(
            lambda: "next@here" in deployment.wait_for_answer("flower", page),
            within_seconds=PATIENCE,
            describe=lambda: deployment.log("flower"),
        )


@pytest.mark.timeout(400)
def test_periodic_tasks_runs_with_beat(deployment: Deployment, examples: Path) -> None:
    deployment.code = examples / "periodic-tasks"
    deployment.variables |= {"CELERY_BROKER_URL": deployment.broker}
    deployment.run("worker", "celery", "-A", "myapp", "worker", "-c", "1", "-l", "INFO", "-n", "periodic@here")
    deployment.run("beat", "celery", "-A", "myapp", "beat", "-l", "INFO", "-s", str(deployment.site / "schedule"))
    deployment.wait_for_log("worker", "periodic@here ready.")
    deployment.wait_for_log("worker", "] hello")
