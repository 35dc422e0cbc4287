"""A Flask application runs on this product's broker URL with worker, beat and Flower, without a change."""

from pathlib import Path
from typing import Any

import httpx

from tests.support.servers import free_port
from tests.support.waiting import wait_for

from .conftest import PATIENCE, Deployment


def finished(url: str, result_id: str) -> Any:
    """Wait for a result through the application's own page."""

    def answer() -> Any:
        reply = httpx.get(f"{url}/result/{result_id}", timeout=30).json()
        return reply if reply["ready"] else None

    return wait_for(answer, within_seconds=PATIENCE, describe=f"result {result_id}")


def test_a_flask_application_runs_with_worker_beat_and_flower(deployment: Deployment, tmp_path: Path) -> None:
    ticks = tmp_path / "ticks"
    ticks.touch()
    deployment.variables |= {
        "CELERY_URL": deployment.broker,
        "RESULT_URL": f"redis://127.0.0.1:{deployment.server.port}/1",
        "TICKS": str(ticks),
    }
    web, flower = free_port(), free_port()
    deployment.run("worker", "celery", "-A", "make_celery", "worker", "-c", "2", "-l", "INFO", "-E", "-n", "web@here")
    deployment.run("beat", "celery", "-A", "make_celery", "beat", "-l", "INFO", "-s", str(tmp_path / "schedule"))
    deployment.run("flower", "celery", "-A", "make_celery", "flower", f"--port={flower}", "--address=127.0.0.1")
    deployment.run("flask", "flask", "--app", "make_celery:flask_app", "run", "--port", str(web))
    deployment.wait_for_log("worker", "web@here ready.")
    deployment.wait_for_log("flask", "Running on")
    url = f"http://127.0.0.1:{web}"

    started = httpx.post(f"{url}/add", data={"a": 20, "b": 1}, timeout=60).json()["result_id"]
    assert finished(url, started) == {"ready": True, "successful": True, "value": "hello: 21"}
    progressing = httpx.post(f"{url}/block", data={"total": 3}, timeout=60).json()["result_id"]
    assert finished(url, progressing)["value"] == {"current": 3, "total": 3}

    wait_for(
        lambda: len(ticks.read_text().splitlines()) >= 2,
        within_seconds=PATIENCE,
        describe=lambda: deployment.log("beat"),
    )

    page = f"http://127.0.0.1:{flower}/workers"
    deployment.wait_for_answer("flower", page)

    def seen() -> bool:
        return "web@here" in httpx.get(page, timeout=30).text

    wait_for(seen, within_seconds=PATIENCE, describe=lambda: deployment.log("flower")[-3000:])
    later = httpx.post(f"{url}/add", data={"a": 1, "b": 2}, timeout=60).json()["result_id"]
    assert finished(url, later)["value"] == "hello: 3"
    told = deployment.wait_for_answer("flower", f"http://127.0.0.1:{flower}/task/{later}")
    assert "add_together" in told
    assert "web@here" in told
