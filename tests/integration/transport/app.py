"""A Celery app of plain tasks, for real workers; runs leave a line in Redis, written by the process that ran them."""

import os
import sys
import time

import redis
from celery import Celery

from orchestrator.transport import register

register()

app = Celery("plain")
app.conf.update(
    broker_url=os.environ["TEST_BROKER"],
    result_backend=os.environ["TEST_BACKEND"],
    broker_transport_options={
        name.removeprefix("TEST_OPTION_").lower(): float(value) if value.replace(".", "").isdigit() else value
        for name, value in os.environ.items()
        if name.startswith("TEST_OPTION_")
    },
    accept_content=["json"],
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_default_queue="celery",
    worker_prefetch_multiplier=int(os.environ.get("TEST_MULTIPLIER", "4")),
    worker_send_task_events=True,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    result_expires=600,
)


def note(name):
    """Leave a line that a test can count."""
    client = redis.Redis.from_url(os.environ["TEST_NOTES"])
    client.rpush("notes", f"{name} {os.getpid()}")
    client.close()


@app.task(name="plain.add")
def add(x, y):
    return x + y


@app.task(name="plain.total")
def total(numbers):
    return sum(numbers)


@app.task(name="plain.named")
def named(name):
    note(name)
    return name


@app.task(name="plain.slow", bind=True)
def slow(self, name, seconds):
    """Run until the time is over; says when it starts and when it ends."""
    note(f"start-{name}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.02)
    note(f"end-{name}")
    return bool((self.request.delivery_info or {}).get("redelivered"))


@app.task(name="plain.flaky", bind=True, max_retries=3)
def flaky(self, failures):
    """Fail so many times, then say on which retry it went well."""
    if self.request.retries < failures:
        raise self.retry(countdown=0.2)
    return self.request.retries


@app.task(name="plain.lost", bind=True)
def lost(self):
    """Kill the child process the first time."""
    if not (self.request.delivery_info or {}).get("redelivered"):
        os._exit(3)
    return "second"


if __name__ == "__main__":
    app.worker_main(sys.argv[1:])
