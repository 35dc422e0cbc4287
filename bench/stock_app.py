"""Stock Celery for comparison: Redis broker, acks_late, Redis results, no-op tasks."""

import os

from celery import Celery

URL = os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379/1")

app = Celery("stock", broker=URL, backend=URL)
app.conf.update(
    task_acks_late=True,
    task_serializer="json",
    result_serializer="json",
    accept_content=["json"],
    worker_prefetch_multiplier=4,
    broker_connection_retry_on_startup=True,
)


@app.task(name="stock.noop")
def noop(value: object = None) -> object:
    """Return the argument."""
    return value
