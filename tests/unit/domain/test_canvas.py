"""What a canvas says of the calls that it has not made: read from what Celery itself writes."""

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from celery import Celery, chain, chord, group
from celery.app.amqp import AMQP
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.canvas import Call, calls_behind, dependents, group_of, nearest_needs
from orchestrator.worker.canvas import place_of

Sent = list[tuple[str, dict[str, Any], dict[str, Any]]]  # name, headers, embed


class Recording(AMQP):  # type: ignore[misc]
    """Keeps what would be published."""

    def _create_task_sender(self) -> Any:
        self.app.sent = []

        def send(_producer: Any, name: str, message: Any, **_: Any) -> None:
            self.app.sent.append((name, dict(message.headers), message.body[2]))

        return send


@pytest.fixture
def app() -> Iterator[Any]:
    made = Celery("canvas_unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    made.amqp_cls = Recording

    def run(*_args: Any) -> None:
        """Be called never."""

    for name in ("job", "plain"):
        made.task(run, name=name, shared=False)
    yield made
    made.close()


def publish(app: Any, canvas: Any) -> Sent:
    canvas.apply_async()
    return list(app.sent)


def told(sent: Sent) -> dict[str, tuple[str, set[str]]]:
    """Return for each call that follows: its task, and by name and number what it needs."""
    calls: dict[str, Call] = {}
    for _name, headers, embed in sent:
        for call in calls_behind(headers["id"], embed, group_id=place_of(headers, embed).group_id):
            known = calls.get(call.id)
            needs = (*known.needs, *call.needs) if known else call.needs
            calls[call.id] = Call(call.id, call.task, call.args, call.kwargs, call.options, needs, call.group_id)
    tags = {headers["id"]: f"{name}{number}" for number, (name, headers, _) in enumerate(sent)}
    tags |= {call.id: f"{call.task}{call.args[0]}" for call in calls.values()}
    return {tags[call.id]: (call.group_id or "", {tags[need] for need in call.needs}) for call in calls.values()}


def test_a_chain_needs_one_after_the_other(app: Any) -> None:
    s = app.tasks["job"].s
    found = told(publish(app, chain(s(10), s(11), s(12))))

    assert {tag: needs for tag, (_, needs) in found.items()} == {"job11": {"job0"}, "job12": {"job11"}}


def test_a_group_within_a_chain_is_needed_by_what_follows_it(app: Any) -> None:
    """Celery makes a chord of it; each member needs what stands before the group."""
    s = app.tasks["job"].s
    found = told(publish(app, chain(s(10), group(s(11), chain(s(12), s(13))), s(14), s(15))))
    needs = {tag: needed for tag, (_, needed) in found.items()}

    assert needs == {
        "job11": {"job0"}, "job12": {"job0"}, "job13": {"job12"}, "job14": {"job11", "job13"}, "job15": {"job14"},
    }  # fmt: skip
    assert found["job11"][0] == found["job12"][0] == found["job13"][0] != ""


def test_each_member_of_a_chords_header_tells_of_its_body(app: Any) -> None:
    s = app.tasks["job"].s
    sent = publish(app, chord([s(10), chain(s(11), s(12))], chain(s(13), s(14))))
    found = told(sent)
    needs = {tag: needed for tag, (_, needed) in found.items()}

    assert needs == {"job12": {"job1"}, "job13": {"job0", "job12"}, "job14": {"job13"}}
    places = [place_of(headers, embed) for _, headers, embed in sent]
    assert len({place.root_id for place in places}) == 1
    assert places[0].root_id == places[0].group_id == sent[0][1]["group"]
    assert group_of(sent[1][2]) == places[0].group_id


def test_nested_chords_are_followed_to_their_ends(app: Any) -> None:
    s = app.tasks["job"].s
    found = told(publish(app, chain(s(9), chord([chord([s(10), s(11)], s(12)), s(13)], s(14)))))
    needs = {tag: needed for tag, (_, needed) in found.items()}

    assert needs == {
        "job10": {"job0"}, "job11": {"job0"}, "job12": {"job10", "job11"}, "job13": {"job0"},
        "job14": {"job12", "job13"},
    }  # fmt: skip


def test_a_task_alone_has_no_canvas_and_one_that_leads_on_is_its_root(app: Any) -> None:
    s = app.tasks["job"].s
    (_, alone, nothing), (_, first, embed) = publish(app, s(1)) + publish(app, chain(s(1), s(2)))[1:]

    assert place_of(alone, nothing).root_id is None
    assert place_of(first, embed).root_id == first["id"]
    assert calls_behind(alone["id"], nothing) == ()


def test_a_job_waits_for_plain_tasks_up_to_the_nearest_job(app: Any) -> None:
    job, plain = app.tasks["job"].s, app.tasks["plain"].s
    ((_, headers, embed),) = publish(app, chain(job(0), plain(1), plain(2), job(3), plain(4), job(5)))
    calls = calls_behind(headers["id"], embed)
    ids = [headers["id"], *(call.id for call in calls)]
    found = nearest_needs(calls, {call.id for call in calls if call.task == "job"})

    assert [(call.args[0], set(call.needs)) for call in found] == [
        (3, {ids[0], ids[1], ids[2]}),
        (5, {ids[3], ids[4]}),
    ]


def test_a_huge_canvas_is_looked_at_up_to_a_bound(app: Any) -> None:
    s = app.tasks["job"].s
    ((_, headers, embed),) = publish(app, chain(s(n) for n in range(20)))

    assert len(calls_behind(headers["id"], embed, most=5)) == 5


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40), st.sets(st.integers(0, 12)))
def test_dependents_are_what_reaches_an_end(pairs: list[tuple[int, int]], ended: set[int]) -> None:
    """Compared with a search that follows one edge at a time until nothing changes."""
    edges = [(str(child), str(need)) for child, need in pairs]
    starts = {str(number) for number in ended}
    reached: set[str] = set()
    for _ in edges:
        reached |= {child for child, need in edges if need in reached | starts}

    assert dependents(edges, starts) == reached


def test_a_call_that_several_paths_lead_to_waits_for_what_is_told_later(app: Any) -> None:
    """The end of a chord's inner group is found by one path before the calls of another path that it waits for."""
    plain, job = app.tasks["plain"].s, app.tasks["job"].s
    inner = chain(plain(3), group(plain(4), plain(5)))
    (_, headers, embed), *_ = publish(app, chain(plain(1), group(plain(2), inner), plain(6), job(7)))
    calls = calls_behind(headers["id"], embed)
    (found,) = nearest_needs(calls, {call.id for call in calls if call.task == "job"})

    tags = {headers["id"]: 1} | {call.id: call.args[0] for call in calls}
    assert {tags[need] for need in found.needs} == {1, 2, 3, 4, 5, 6}


_nodes = st.integers(0, 9)


@given(
    st.dictionaries(_nodes, st.lists(_nodes, max_size=4, unique=True), max_size=10),
    st.sets(_nodes),
    st.randoms(use_true_random=False),
)
def test_nearest_needs_go_through_plain_calls_in_any_order(
    needs: dict[int, list[int]], jobs: set[int], random: Random
) -> None:
    """Compared with a search that goes one step at a time; what people make of ids may even run in a circle."""
    order = list(needs)
    random.shuffle(order)
    calls = [Call(str(n), "any", (), {}, {}, tuple(map(str, needs[n])), None) for n in order]
    found = {int(call.id): set(map(int, call.needs)) for call in nearest_needs(calls, set(map(str, jobs)))}

    expected = {}
    for job in jobs & set(needs):
        reached = set(needs[job])
        for _ in needs:
            reached |= {need for n in reached - jobs for need in needs.get(n, ())}
        expected[job] = reached
    assert found == expected
