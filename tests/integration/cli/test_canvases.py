"""Canvases on the command line."""

import re

import pytest

from orchestrator.domain.ids import uuid7
from orchestrator.domain.request import TaskRequest
from orchestrator.runtime import Runtime
from orchestrator.services.submit import SubmitService
from tests.integration.cli.conftest import Orch
from tests.support.cli_fields import FIELDS


@pytest.fixture
def canvas(runtime: Runtime) -> list[str]:
    """Three jobs, one after the other; the last is of a group, which its id names."""
    ids = [uuid7(runtime.clock.now()) for _ in range(3)]
    first = TaskRequest(task="a", id=ids[0], root_id=ids[0])
    second = TaskRequest(task="b", id=ids[1], root_id=ids[0], parent_id=ids[0], needs=(ids[0],))
    group = f"group-{ids[2]}"
    third = TaskRequest(task="c", id=ids[2], root_id=ids[0], parent_id=ids[1], needs=(ids[1],), group_id=group)
    SubmitService(runtime).submit([first, second, third])
    return ids


def test_ps_draws_canvases_as_trees(orch: Orch, canvas: list[str]) -> None:
    alone = orch("submit", "--", "true").out.strip()
    lines = orch("ps", "--tree").out.splitlines()
    places = [line[: found.end()] for line in lines if (found := re.search(r"[0-9a-f-]{36}", line))]

    first = places.index(canvas[0])
    assert places[first : first + 3] == [canvas[0], f"└─ {canvas[1]}", f"   └─ {canvas[2]}"]
    assert alone in places[:first]
    assert any(canvas[1] in line and "1 task" in line for line in lines)
    document = orch("ps", "--root", canvas[0], "--json").document
    assert [job["id"] for job in document] == canvas[::-1]
    assert set(document[0]) == FIELDS["ps"]
    assert [job["id"] for job in orch("ps", "--group", f"group-{canvas[2]}", "--json").document] == [canvas[2]]


def test_cancel_ends_a_canvas_or_a_group(orch: Orch, canvas: list[str]) -> None:
    group = orch("cancel", "--group", f"group-{canvas[2]}", "--json").document
    tree = orch("cancel", "--tree", canvas[1])

    assert [set(job) for job in group] == [FIELDS["cancel"]]
    assert [job["id"] for job in group] == [canvas[2]]
    assert (tree.code, sorted(tree.out.split())) == (0, sorted([canvas[0], canvas[1], "cancelled", "cancelled"]))
    assert "cancelled with its canvas" in orch("why", canvas[1]).out
    assert orch("cancel").code == 2
    assert orch("cancel", "--tree", "nobody").code == orch("cancel", "nobody").code != 0
