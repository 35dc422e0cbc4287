"""A plain Celery app whose task writes down every run of it, outside Redis."""

import json
import os
import time

from celery import Celery

app = Celery("chaos", broker=os.environ["CHAOS_BROKER"])
app.conf.update(json.loads(os.environ["CHAOS_CONF"]))
RUNS = os.environ["CHAOS_RUNS"]


def note(kind, name):
    """Append a line; one write of a short line is never torn."""
    with open(RUNS, "ab", buffering=0) as runs:
        runs.write(f"{kind} {name} {os.getppid()}\n".encode())


@app.task(bind=True, name="chaos.work")
def work(self, seconds=0.0, gate=None):
    """Take its time, or wait for a file."""
    note("begin", self.request.id)
    time.sleep(seconds)
    while gate and not os.path.exists(gate):
        time.sleep(0.05)
    note("end", self.request.id)
