"""How canvases are drawn."""

from typing import Any

from orchestrator_cli.tree import tree_lines


def job(job_id: str, **fields: Any) -> dict[str, Any]:
    return {"id": job_id, "root": None, "parent": None, "group": None, "needs": []} | fields


def drawn(*newest_first: dict[str, Any]) -> list[str]:
    return [place + (found["id"] if found else "") for place, found in tree_lines(newest_first)]


def test_a_chain_is_drawn_one_below_the_other_and_a_job_alone_by_itself() -> None:
    third = job("c", root="a", parent="b", needs=[{"id": "b", "state": "running"}])
    second = job("b", root="a", parent="a")

    assert drawn(job("x"), third, second, job("a", root="a")) == ["x", "a", "└─ b", "   └─ c"]


def test_a_fan_out_is_drawn_oldest_first_and_what_joins_it_under_its_first_need() -> None:
    members = [job(name, root="a", parent="a", group="g") for name in ("b", "c", "d")]
    body = job("e", root="a", parent="b", needs=[{"id": name, "state": "queued"} for name in ("b", "c", "d")])

    assert drawn(body, *reversed(members), job("a", root="a")) == ["a", "├─ b", "│  └─ e", "├─ c", "└─ d"]


def test_a_root_that_is_no_job_is_named() -> None:
    members = [job(name, root="g", group="g") for name in ("b", "c")]

    assert drawn(*reversed(members)) == ["group g", "├─ b", "└─ c"]
    assert drawn(job("b", root="p", parent="p")) == ["task p", "└─ b"]


def test_a_job_behind_a_plain_task_stands_under_the_nearest_job_that_it_waits_for() -> None:
    waiting = job("c", root="a", parent="plain", needs=[{"id": "plain", "state": None}, {"id": "a", "state": "queued"}])

    assert drawn(waiting, job("a", root="a")) == ["a", "└─ c"]


def test_what_a_lone_job_called_stands_under_it() -> None:
    assert drawn(job("b", root="a", parent="a"), job("a")) == ["a", "└─ b"]
    assert drawn(job("a"), job("b", root="a", parent="a")) == ["a", "└─ b"]
