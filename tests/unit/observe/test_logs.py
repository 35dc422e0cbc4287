"""Logs as JSON: every line is one object with the fields that a log store searches."""

import io
import json
import logging
from datetime import datetime
from typing import Any

import pytest

from orchestrator.observe import logs


@pytest.fixture
def lines() -> tuple[logging.Logger, io.StringIO]:
    """A logger that writes JSON into memory."""
    stream = io.StringIO()
    logger = logging.Logger("orchestrator.worker.pool")
    logger.addHandler(logging.StreamHandler(stream))
    logs.use_json(logger.handlers, host="gpu-1", process="worker")
    return logger, stream


def read(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return the objects that were written."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_what_is_about_a_job_names_its_claim(lines: tuple[logging.Logger, io.StringIO]) -> None:
    """Job, attempt and fencing token are fields, beside host, process, level and an instant in UTC."""
    logger, stream = lines
    logger.warning("job %s is slow", "j-1", extra=logs.about(job_id="j-1", attempt=2, token=7))

    (line,) = read(stream)
    instant = datetime.fromisoformat(line.pop("time"))
    assert instant.utcoffset() is not None
    assert line.pop("pid") > 0
    assert line == {
        "level": "WARNING",
        "logger": "orchestrator.worker.pool",
        "message": "job j-1 is slow",
        "host": "gpu-1",
        "process": "worker",
        "job_id": "j-1",
        "attempt": 2,
        "token": 7,
    }


def test_what_celery_says_of_a_task_names_it_without_its_arguments(lines: tuple[logging.Logger, io.StringIO]) -> None:
    """Celery gives its records the arguments too; they stay out."""
    logger, stream = lines
    data = {"id": "j-2", "name": "train", "args": "['secret']", "kwargs": "{'password': 1}"}
    logger.info("Task %(name)s[%(id)s] received", data, extra={"data": data})

    (line,) = read(stream)
    assert (line["job_id"], line["task"], line["message"]) == ("j-2", "train", "Task train[j-2] received")
    assert not {"data", "args", "kwargs"} & set(line)
    assert "secret" not in stream.getvalue()
    assert "password" not in stream.getvalue()


def test_lines_and_tracebacks_stay_on_one_line(lines: tuple[logging.Logger, io.StringIO]) -> None:
    """A log store reads line by line."""
    logger, stream = lines
    try:
        raise ValueError("wrong\nin two lines")
    except ValueError:
        logger.exception("it failed: ü")

    (line,) = read(stream)
    assert "ValueError: wrong\nin two lines" in line["exc_info"]
    assert "ü" in stream.getvalue()
