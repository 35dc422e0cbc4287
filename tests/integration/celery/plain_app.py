"""A Celery app that knows nothing of this product: its broker is a URL, its settings are Celery's own."""

import json
import os
import time

from celery import Celery

app = Celery("plain", broker=os.environ["PLAIN_BROKER"], backend=os.environ["PLAIN_BACKEND"])
app.conf.update(json.loads(os.environ.get("PLAIN_CONF", "{}")))


@app.task
def add(x, y):
    """Return the sum."""
    return x + y


@app.task(bind=True)
def where(self):
    """Return the node that runs it."""
    return self.request.hostname


@app.task
def nap(seconds):
    """Take its time."""
    time.sleep(seconds)
    return seconds


@app.task(bind=True, acks_late=True)
def tell(self, seconds):
    """Take its time; return whether the message had been delivered before."""
    time.sleep(seconds)
    return bool(self.request.delivery_info.get("redelivered"))


@app.task(bind=True, acks_late=True)
def leave_line(self, path, seconds):
    """Say in a file that it runs, take its time; return what the request knows of earlier deliveries."""
    with open(path, "a") as file:
        file.write(f"{self.request.id}\n")
    time.sleep(seconds)
    return [bool((self.request.headers or {}).get("redelivered")), bool(self.request.delivery_info.get("redelivered"))]


@app.task(bind=True, ignore_result=True)
def sign(self, path, text):
    """Say in a file which node runs it."""
    with open(path, "a") as file:
        file.write(f"{self.request.hostname.partition('@')[0]}:{text}\n")
