"""A plain worker in our image, where a Docker engine exists."""

import pytest
from pytest_celery import RESULT_TIMEOUT, CeleryTestSetup
from pytest_celery.vendors.worker.tasks import add

pytestmark = pytest.mark.smoke


def test_a_worker_in_a_container_outlives_its_broker(celery_setup: CeleryTestSetup) -> None:
    assert celery_setup.ready(ping=True, control=True)
    celery_setup.broker.restart()
    result = add.s(1, 2).apply_async(queue=celery_setup.worker.worker_queue)
    assert result.get(timeout=RESULT_TIMEOUT) == 3


def test_tasks_wait_for_a_killed_worker(celery_setup: CeleryTestSetup) -> None:
    celery_setup.worker.kill()
    result = add.s(1, 2).apply_async(queue=celery_setup.worker.worker_queue)
    celery_setup.worker.restart()
    assert result.get(timeout=RESULT_TIMEOUT) == 3
