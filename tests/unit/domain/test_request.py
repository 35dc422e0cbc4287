"""Requests: what is accepted, what is refused, and that every fault is named at once."""

import json
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.ids import is_job_id, uuid7
from orchestrator.domain.job import JobKind, LeaseMode, NewJob, Resources
from orchestrator.domain.redaction import HIDDEN, LONGEST, show_arguments, show_keywords
from orchestrator.domain.request import COMMAND_TASK, CommandRequest, Limits, Request, TaskRequest, new_job
from orchestrator.errors import InvalidJob, PayloadTooLarge

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ID = uuid7(NOW)
LIMITS = Limits()


def command(**options: Any) -> CommandRequest:
    return CommandRequest(**({"argv": ("/usr/bin/train", "--fast")} | options))


def make(request: Request, limits: Limits = LIMITS) -> NewJob:
    return new_job(request, id=ID, limits=limits)


def faults(request: Request, limits: Limits = LIMITS) -> dict[str, str]:
    with pytest.raises(InvalidJob) as caught:
        make(request, limits)
    return dict(fault.split(": ", 1) for fault in caught.value.faults)


def test_a_command_becomes_a_job_with_the_installations_defaults() -> None:
    """Nothing but argv is needed."""
    job = make(command())

    assert (job.id, job.name, job.task, job.kind) == (ID, "train", COMMAND_TASK, JobKind.COMMAND)
    assert job.payload == {"argv": ["/usr/bin/train", "--fast"], "env": {}, "cwd": None}
    assert (job.queue, job.priority, job.grace_seconds, job.tenant) == ("gpu", 5, 10.0, "default")
    assert job.resources == Resources(0, None)


def test_a_task_becomes_a_job_that_celery_recognises() -> None:
    """Its own id is kept, its arguments are the payload, its canvas ids are in the entry's headers."""
    own = "4b1ff7ba-9f5c-4bd1-8f27-6f0c58a4e9d6"
    request = TaskRequest(
        task="mine.train",
        args=(1, "two"),
        kwargs={"epochs": 3},
        embed={"chain": None},
        headers={"root_id": "r", "parent_id": None, "group": "g", "eta": "x", "retries": 2},
        id=own,
        time_limit_seconds=60,
    )

    job = make(request)

    assert (job.id, job.name, job.kind) == (own, "mine.train", JobKind.TASK)
    assert job.payload["args"] == [1, "two"]
    assert job.payload["headers"]["eta"] == "x"
    assert job.headers == {
        "root_id": "r",
        "group": "g",
        "retries": 2,
        "argsrepr": "(1, 'two')",
        "kwargsrepr": "{'epochs': 3}",
        "timelimit": [60, None],
    }


def test_a_share_of_a_gpu_is_one_gpu() -> None:
    """``gpus`` may be left out, or be 1; anything else contradicts it."""
    assert make(command(gpu_memory_mib=500)).resources == Resources(1, 500)
    assert make(command(gpu_memory_mib=500, gpus=1)).resources.mode is LeaseMode.SHARED
    for gpus in (0, 2):
        assert "gpu_memory_mib" in faults(command(gpu_memory_mib=500, gpus=gpus))


def test_every_fault_is_reported_at_once() -> None:
    """One answer says everything that is to be changed."""
    request = command(
        argv=(),
        environment={"LD_PRELOAD": "x"},
        cwd="relative",
        name="a\nb",
        queue="no spaces",
        gpus=-1,
        priority=10,
        time_limit_seconds=-5,
        grace_seconds=float("nan"),
        max_attempts=0,
        run_at=datetime(2026, 1, 1),  # noqa: DTZ001
        key="k" * 129,
        tenant="",
        id="not-a-uuid",
    )

    assert set(faults(request)) == {
        "argv", "environment", "cwd", "name", "queue", "gpus", "priority", "time_limit_seconds", "grace_seconds",
        "max_attempts", "run_at", "key", "tenant", "id",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"argv": ("",)}, "argv"),
        ({"argv": ("a", "b\0c")}, "argv"),
        ({"argv": ("a", 1)}, "argv"),
        ({"argv": "train.sh"}, "argv"),
        ({"argv": ("a", "\ud800")}, "argv"),
        ({"environment": {"1A": "x"}}, "environment"),
        ({"environment": {"A": 1}}, "environment"),
        ({"environment": {"A": "x\0"}}, "environment"),
        ({"environment": {"CUDA_VISIBLE_DEVICES": "0"}}, "environment"),
        ({"environment": {"NVIDIA_VISIBLE_DEVICES": "all"}}, "environment"),
        ({"environment": {"ORCHESTRATOR_FENCING_TOKEN": "1"}}, "environment"),
        ({"environment": {"LD_LIBRARY_PATH": "/x"}}, "environment"),
        ({"environment": ["A=1"]}, "environment"),
        ({"cwd": "/a\0"}, "cwd"),
        ({"gpus": True}, "gpus"),
        ({"gpus": "2"}, "gpus"),
        ({"gpus": 1.5}, "gpus"),
        ({"gpu_memory_mib": 0}, "gpu_memory_mib"),
        ({"priority": -1}, "priority"),
        ({"time_limit_seconds": 0}, "time_limit_seconds"),
        ({"time_limit_seconds": float("inf")}, "time_limit_seconds"),
        ({"time_limit_seconds": True}, "time_limit_seconds"),
        ({"time_limit_seconds": 10, "soft_time_limit_seconds": 10}, "soft_time_limit_seconds"),
        ({"grace_seconds": -1}, "grace_seconds"),
        ({"run_at": "tomorrow"}, "run_at"),
        ({"run_at": NOW, "deadline": NOW}, "deadline"),
        ({"name": "x" * 129}, "name"),
        ({"key": ""}, "key"),
        ({"submitted_by": None}, "submitted_by"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], field: str) -> None:
    """Types are checked as strictly as ranges: requests come from outside."""
    assert set(faults(command(**options))) == {field}


UNSEEN = ["\0", "\x1b[2J", "\n", "\t", "\x7f", "\x9b", "\u061c", "\u200f", "\u2028", "\u202e", "\u2066", "\ud800"]


@pytest.mark.parametrize("unseen", UNSEEN, ids=ascii)
def test_what_people_cannot_see_is_in_no_text_that_they_are_to_recognise(unseen: str) -> None:
    """Controls of terminals and of the direction of writing; a program's own arguments are its own."""
    for field, text in (("key", f"night{unseen}ly"), ("cwd", f"/data/{unseen}"), ("name", f"a{unseen}")):
        assert set(faults(command(**{field: text}))) == {field}
    for field in ("root_id", "parent_id", "group_id"):
        assert set(faults(TaskRequest(task="mine.train", **{field: f"id{unseen}"}))) == {field}
    assert set(faults(TaskRequest(task="mine.train", needs=(f"id{unseen}",)))) == {"needs"}
    if unseen not in ("\0", "\ud800"):
        assert make(command(argv=("printf", unseen), environment={"A": unseen})).payload["argv"] == ["printf", unseen]


def test_other_scripts_and_signs_are_text() -> None:
    for key in ("nächtlich", "每晚", "לילי", "ночью", "🌙", "a b"):
        assert make(command(key=key)).idempotency_key == key


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"task": ""}, "task"),
        ({"task": "a b"}, "task"),
        ({"task": "t" * 256}, "task"),
        ({"args": "abc"}, "args"),
        ({"kwargs": {1: 2}}, "kwargs"),
        ({"headers": []}, "headers"),
        ({"args": (object(),)}, "payload"),
        ({"args": ("\ud800",)}, "payload"),
    ],
)
def test_a_task_that_cannot_be_stored_is_refused(options: dict[str, Any], field: str) -> None:
    """Names, containers, and everything that JSON cannot say."""
    assert set(faults(TaskRequest(**({"task": "mine.train"} | options)))) == {field}


def test_the_payload_is_bounded_in_bytes_as_stored() -> None:
    """UTF-8 counts, not characters."""
    small = Limits(max_payload_bytes=100)
    assert make(command(argv=("echo", "x" * 50)), small)
    with pytest.raises(PayloadTooLarge) as caught:
        make(command(argv=("echo", "é" * 50)), small)
    assert (caught.value.limit_bytes, caught.value.size_bytes > 100) == (100, True)


def test_a_circular_payload_is_refused() -> None:
    nested: list[Any] = []
    nested.append(nested)
    assert "payload" in faults(TaskRequest(task="t", args=(nested,)))


@pytest.mark.parametrize(
    ("cwd", "allowed"),
    [("/data/x", True), ("/data", True), ("/data/../etc", False), ("/database", False), ("/", False), (None, False)],
)
def test_commands_run_only_where_they_may(cwd: str | None, allowed: bool) -> None:
    """A path is compared as the system reads it, not as it is spelt."""
    limits = Limits(allowed_cwd=("/data",))
    if allowed:
        assert make(command(cwd=cwd), limits).payload["cwd"] == cwd
    else:
        assert set(faults(command(cwd=cwd), limits)) == {"cwd"}


def test_equal_work_has_an_equal_digest() -> None:
    """What runs counts; where and for whom does not."""
    assert make(command()).digest == make(command(tenant="b", gpus=2, priority=1)).digest
    assert make(command()).digest != make(command(argv=("/usr/bin/train",))).digest
    assert make(command()).digest != make(command(cwd="/x")).digest
    same, other = (make(TaskRequest(task="t", args=(value,))).digest for value in (1, 2))
    assert same == other


def test_the_entry_of_a_command_shows_no_argument() -> None:
    """Arguments often hold secrets, and entries are shown to everybody who can read Redis."""
    job = make(command(argv=("/opt/sync", "--token", "hunter2"), environment={"PASSWORD": "hunter3"}))

    assert "hunter" not in json.dumps(job.headers)
    assert job.headers["argsrepr"] == "('sync', 2 arguments)"


def test_the_entry_of_a_task_shows_no_secret() -> None:
    """By name, by look, and by not looking into containers."""
    shown = show_keywords({"api_key": "a1", "password": "b2", "url": "redis://u:c3@h/0", "config": {"token": "d4"}})
    assert not {"a1", "b2", "c3", "d4"} & {secret for secret in ("a1", "b2", "c3", "d4") if secret in shown}
    assert shown.count(HIDDEN) == 3
    assert "hunter" not in show_arguments([["hunter"], {"a": "hunter"}, "sk-hunter2hunter2"])


@given(
    st.lists(st.one_of(st.text(), st.integers(), st.none(), st.lists(st.integers()))),
    st.dictionaries(st.text(), st.text(max_size=500), max_size=50),
)
def test_what_is_shown_is_bounded(args: list[Any], kwargs: dict[str, str]) -> None:
    assert len(show_arguments(args)) <= LONGEST
    assert len(show_keywords(kwargs)) <= LONGEST


def test_the_faults_survive_a_process_boundary() -> None:
    with pytest.raises(InvalidJob) as caught:
        make(command(gpus=-1))
    assert pickle.loads(pickle.dumps(caught.value)).faults == caught.value.faults  # noqa: S301


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


FIELDS = [
    "environment", "cwd", "name", "queue", "gpus", "gpu_memory_mib", "priority", "time_limit_seconds",
    "soft_time_limit_seconds", "grace_seconds", "max_attempts", "run_at", "deadline", "key", "tenant", "id",
]  # fmt: skip


@given(st.fixed_dictionaries({"argv": json_values}, optional=dict.fromkeys(FIELDS, json_values)))
def test_whatever_comes_in_is_a_job_or_a_typed_refusal(options: dict[str, Any]) -> None:
    """No value of any type gets past the checks as another error."""
    try:
        job = make(CommandRequest(**options))
    except InvalidJob:
        return
    assert all(isinstance(argument, str) for argument in job.payload["argv"])
    assert 0 <= job.priority <= 9
    assert is_job_id(job.id)


def test_a_deadline_follows_the_start() -> None:
    job = make(command(run_at=NOW, deadline=NOW + timedelta(hours=1)))
    assert (job.run_at, job.deadline) == (NOW, NOW + timedelta(hours=1))
