"""Which GPUs go together, on a host and among hosts."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuSample
from orchestrator.domain.job import JobKind, Resources
from orchestrator.scheduling.plan import Policy, plan
from orchestrator.scheduling.snapshot import Candidate, GpuView, HostView, QueueView, Snapshot
from orchestrator.scheduling.topology import Bond, Place, bond, choose
from orchestrator.worker.host import Host, Shape, WaitingJob
from orchestrator.worker.run_times import RunTimes

PAIRS = ((0, 2), (1, 3))


def places(count: int, links: Iterable[tuple[int, int]] = (), numa: Iterable[int | None] = ()) -> list[Place]:
    """Return GPUs ``0`` and so on, joined by these links."""
    nodes = [*numa, *[None] * count]
    joined: dict[int, set[str]] = {index: set() for index in range(count)}
    for left, right in links:
        joined[left].add(str(right))
        joined[right].add(str(left))
    return [Place(str(index), nodes[index], frozenset(joined[index])) for index in range(count)]


@st.composite
def hosts(draw: st.DrawFn) -> list[Place]:
    count = draw(st.integers(2, 8))
    pairs = list(combinations(range(count), 2))
    nodes = draw(st.lists(st.sampled_from([None, 0, 1]), min_size=count, max_size=count))
    return places(count, draw(st.lists(st.sampled_from(pairs), unique=True)), nodes)


@settings(max_examples=1000)
@given(hosts(), st.data())
def test_no_set_is_closer_than_the_one_chosen(free: list[Place], data: st.DataObject) -> None:
    """F9: a linked set whenever there is one, else one on a NUMA node whenever there is one; in the order given."""
    count = data.draw(st.integers(1, len(free)))
    chosen = choose(free, count)

    by_uuid = {place.uuid: place for place in free}
    assert list(chosen) == [place.uuid for place in free if place.uuid in chosen]
    assert len(chosen) == count
    assert bond([by_uuid[uuid] for uuid in chosen]) == min(map(bond, combinations(free, count)))


@settings(max_examples=200)
@given(st.integers(12, 16), st.data())
def test_a_linked_pair_is_found_on_a_host_of_any_size(count: int, data: st.DataObject) -> None:
    pairs = list(combinations(range(count), 2))
    free = places(count, data.draw(st.lists(st.sampled_from(pairs), min_size=1, unique=True)))
    by_uuid = {place.uuid: place for place in free}
    for wanted in (2, 8):
        assert len(set(choose(free, wanted))) == wanted
    assert bond([by_uuid[uuid] for uuid in choose(free, 2)]) is Bond.LINKED


def test_a_pair_is_taken_as_one_and_a_single_gpu_breaks_up_none() -> None:
    assert choose(places(4, PAIRS), 2) == ("0", "2")
    assert choose(places(5, PAIRS), 1) == ("4",)
    assert choose([place for place in places(4, PAIRS) if place.uuid != "2"], 1) == ("0",)


def test_where_nothing_is_told_the_first_ones_are_taken() -> None:
    assert choose(places(4), 2) == ("0", "1")
    everything = places(8, combinations(range(8), 2))
    assert choose(everything, 3) == ("0", "1", "2"), "one switch joins them all"


def test_gpus_of_a_numa_node_go_together_where_none_are_linked() -> None:
    assert choose(places(4, numa=[0, 1, 1, 0]), 2) == ("0", "3")
    assert choose(places(4, [(0, 1)], numa=[0, 1, 1, 0]), 2) == ("0", "1"), "a link is closer"


def view(node: str, links: Iterable[tuple[int, int]]) -> HostView:
    cards = tuple(
        GpuView(f"{node}{p.uuid}", int(p.uuid), "S", 1000, 0, False, True, links=tuple(node + uuid for uuid in p.links))
        for p in places(4, links)
    )
    return HostView(node, True, cards, frozenset({"gpu"}), 1, 0, 0)


def test_a_plan_goes_to_the_host_whose_free_gpus_are_linked() -> None:
    """Among hosts with as many free GPUs; a job for one GPU goes to the first of them."""

    def placed(gpus: int, *views: HostView) -> tuple[str | None, tuple[str, ...]]:
        job = Candidate(1, "gpu", "default", 5, Resources(gpus))
        given_snapshot = Snapshot(views, (), (job,), (QueueView("gpu", False),))
        (admission,) = plan(given_snapshot, datetime(2026, 1, 1, tzinfo=UTC), Policy()).admissions
        return admission.node, admission.gpus

    assert placed(2, view("a", ()), view("b", PAIRS)) == ("b", ("b0", "b2"))
    busy = tuple(replace(card, exclusive=card.index == 2) for card in view("b", PAIRS).gpus)
    smaller = replace(view("b", ()), gpus=busy)
    assert placed(2, view("a", PAIRS), smaller) == ("b", ("b1", "b3")), "the best fit comes first"
    assert placed(1, view("a", ()), view("b", PAIRS))[0] == "a"


def test_a_host_grants_a_linked_pair() -> None:
    host = Host(cpu_slots=1, run_times=RunTimes(look_ahead_seconds=0.5, most_ahead=64))
    cards = [Gpu(p.uuid, int(p.uuid), "S", 1000, "1", links=tuple(p.links)) for p in places(5, PAIRS)]
    host.update_gpus(GpuSample(gpu, 0, GpuHealth.HEALTHY, (), None, None, None) for gpu in cards)
    granted = []
    for seq, gpus in ((1, 1), (2, 2), (3, 2)):
        shape = Shape(Resources(gpus), "a", JobKind.TASK, "task", 5)
        host.add_waiting(WaitingJob(seq, f"job-{seq}", shape, seq))
        ((line, _jobs),) = host.choose()
        granted.append(line.grant.gpus)

    assert granted == [("4",), ("0", "2"), ("1", "3")]
