"""Which streams a channel reads next, and how much."""

import pytest

from orchestrator.transport.credit import Credit
from orchestrator.transport.reads import Plan, Read


def plan_of(*queues: str, node: str | None = None) -> Plan:
    plan = Plan(prefix="", steps=[0, 3], node=node)
    plan.set_queues(queues)
    return plan


def streams(plan: Plan, *queues: str) -> list[str]:
    return [source.stream.removeprefix("stream:orchestrator:") for source in plan.sources(frozenset(queues))]


def test_a_host_reads_its_own_then_what_was_handed_back_then_by_priority() -> None:
    assert streams(plan_of("q", node="n"), "q") == ["q@n:front", "q@n", "q:front", "q", "q:p3:front", "q:p3"]


def test_priority_goes_before_the_order_of_queues() -> None:
    assert streams(plan_of("a", "b"), "a", "b") == [
        "a:front",
        "a",
        "b:front",
        "b",
        "a:p3:front",
        "a:p3",
        "b:p3:front",
        "b:p3",
    ]


def test_queues_take_turns() -> None:
    plan = plan_of("a", "b")
    plan.rotate()
    assert streams(plan, "a", "b")[:2] == ["b:front", "b"]


def test_a_read_waits_only_where_every_stream_was_seen_drained() -> None:
    plan = plan_of("a")
    sources = plan.sources(frozenset(["a"]))
    assert not plan.has_no_news(sources)
    plan.entries(Read(sources, frozenset(["a"])), [[], b"0-0 5-1 0-0 0-0"])
    assert plan.has_no_news(sources)
    assert plan.wait_command(sources, 1000)[-4:] == ["0-0", "5-1", "0-0", "0-0"]
    plan.entries(Read(sources, frozenset(["a"])), [[b"2 5-2 m{}"], b"0-0 - - -"])
    assert not plan.has_no_news(sources)


def test_entries_come_back_with_their_streams() -> None:
    plan = plan_of("a")
    sources = plan.sources(frozenset(["a"]))
    first, second = plan.entries(Read(sources, frozenset(["a"])), [[b"1 7-0 m{ }", b"2 8-0 ?"], b"- - - -"])
    assert (first.source.stream, first.id, first.kind, first.value, first.redelivered) == (
        sources[0].stream,
        "7-0",
        "m",
        b"{ }",
        True,
    )
    assert (second.id, second.kind, second.value, second.redelivered) == ("8-0", "?", b"", False)


def test_queues_under_credit_have_budgets_of_their_own() -> None:
    plan = plan_of("cpu", "gpu")
    command = plan.take_command("me", plan.sources(frozenset(["cpu", "gpu"])), {None: 4, "gpu": 2})
    assert command[2] == 8
    group, consumer, *numbers = command[11:]
    assert (group, consumer) == ("orchestrator", "me")
    assert numbers == [2, 4, 2, 1, 1, 2, 2, 1, 1, 2, 2]


def test_credit_counts_what_is_on_its_way() -> None:
    credit = Credit()
    credit.set("gpu", 5)
    credit.set_aside({"gpu": 3})
    assert credit.available("gpu") == 2
    credit.spend("gpu")
    credit.return_aside({"gpu": 3})
    assert credit.available("gpu") == 4
    credit.set("gpu", None)
    assert "gpu" not in credit


def test_credit_is_never_negative() -> None:
    credit = Credit()
    with pytest.raises(ValueError, match="negative"):
        credit.set("gpu", -1)
    credit.set("gpu", 0)
    credit.spend("gpu")
    assert credit.left() == {"gpu": 0}
