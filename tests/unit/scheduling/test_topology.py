"""Which GPUs go together, on a host and among hosts."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuSample
from orchestrator.domain.job import JobKind, Resources
from orchestrator.domain.wants import Wants
from orchestrator.scheduling.plan import Policy, plan
from orchestrator.scheduling.snapshot import Candidate, GpuView, HostView, QueueView, Snapshot
from orchestrator.scheduling.topology import Bond, Place, bond, choose, closest_bond
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
    """However many others are free there; a job for one GPU goes to the first of those with the fewest."""

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
    two = replace(view("a", ()), gpus=view("a", ()).gpus[:2])
    assert placed(2, two, view("b", PAIRS)) == ("b", ("b0", "b2")), "a pair is worth more than a gap filled"
    assert placed(2, two, view("b", ()))[0] == "a"


KINDS = ("H100", "A100")


@st.composite
def clusters(draw: st.DrawFn) -> list[HostView]:
    """Draw hosts of linked GPUs of two kinds, some taken; some hosts are labelled, some are of another queue."""
    made = []
    for node in "abcd"[: draw(st.integers(2, 4))]:
        cards = tuple(
            GpuView(
                f"{node}{place.uuid}",
                int(place.uuid),
                draw(st.sampled_from(KINDS)),
                1000,
                0,
                draw(st.booleans()),
                True,
                numa=place.numa,
                links=tuple(sorted(node + uuid for uuid in place.links)),
            )
            for place in draw(hosts())
        )
        queues = draw(st.sampled_from([{"gpu"}, {"gpu", "other"}, {"other"}]))
        labels = draw(st.sampled_from([(), (("zone", "x"),)]))
        made.append(HostView(node, True, cards, frozenset(queues), 1, 0, 0, labels))
    return made


wanted = st.builds(
    Wants, models=st.sampled_from([(), ("H100",), KINDS]), labels=st.sampled_from([(), (("zone", "x"),)])
)


@settings(max_examples=1000)
@given(clusters(), st.lists(st.tuples(st.integers(2, 3), st.none() | wanted), min_size=1, max_size=6))
def test_a_plan_gives_a_job_the_closest_gpus_that_are_free_anywhere(
    views: list[HostView], asked: list[tuple[int, Wants | None]]
) -> None:
    """F9: a linked pair whenever one is free on a host that may serve the job, however well another host would fit."""
    jobs = tuple(
        Candidate(n, "gpu", "default", 5, Resources(gpus, None, wants)) for n, (gpus, wants) in enumerate(asked)
    )
    snapshot = Snapshot(tuple(views), (), jobs, (QueueView("gpu", False),))
    made = plan(snapshot, datetime(2026, 1, 1, tzinfo=UTC), Policy())
    free = {view.node: [gpu for gpu in view.gpus if not gpu.exclusive] for view in views if "gpu" in view.queues}
    labels = {view.node: dict(view.labels) for view in views}
    refused = min((refusal.seq for refusal in made.refusals), default=len(asked))  # GPUs are kept for the first of them

    for admission in made.admissions:
        if admission.seq > refused:
            break
        gpus, wants = asked[admission.seq]
        conditions = wants or Wants()
        serving = [
            [gpu for gpu in cards if conditions.accepts_gpu(gpu.model, gpu.memory_mib, None)]
            for node, cards in free.items()
            if conditions.accepts_labels(labels[node])
        ]
        best = min(bond(places_of(chosen)) for cards in serving for chosen in combinations(cards, gpus))
        taken = [gpu for gpu in free[admission.node] if gpu.uuid in admission.gpus]
        assert (len(taken), bond(places_of(taken))) == (gpus, best)
        free[admission.node] = [gpu for gpu in free[admission.node] if gpu not in taken]


def places_of(cards: Iterable[GpuView]) -> list[Place]:
    return [Place(card.uuid, card.numa, frozenset(card.links)) for card in cards]


@settings(max_examples=1000)
@given(hosts(), st.data())
def test_what_will_hold_the_chosen_together_is_known_without_choosing(free: list[Place], data: st.DataObject) -> None:
    count = data.draw(st.integers(2, max(2, len(free))))
    by_uuid = {place.uuid: place for place in free}
    assert closest_bond(free, count) == bond([by_uuid[uuid] for uuid in choose(free, count)])


@settings(max_examples=1000)
@given(hosts(), st.data())
def test_a_host_grants_a_linked_pair_whenever_one_is_free(cards: list[Place], data: st.DataObject) -> None:
    """F9, of the worker's own account: whatever it has granted before."""
    host = Host(cpu_slots=1, run_times=RunTimes(look_ahead_seconds=0.5, most_ahead=64))
    gpus = [Gpu(p.uuid, int(p.uuid), "S", 1000, "1", numa=p.numa, links=tuple(sorted(p.links))) for p in cards]
    host.update_gpus(GpuSample(gpu, 0, GpuHealth.HEALTHY, (), None, None, None) for gpu in gpus)
    free = dict(zip((p.uuid for p in cards), cards, strict=True))
    for seq in range(data.draw(st.integers(1, 4))):
        count = data.draw(st.integers(1, 2))
        host.add_waiting(WaitingJob(seq, f"job-{seq}", Shape(Resources(count), "a", JobKind.COMMAND, "run", 5), seq))
        chosen = host.choose()
        assert bool(chosen) == (len(free) >= count)
        if not chosen:
            return
        ((line, _jobs),) = chosen
        best = min(map(bond, combinations(free.values(), count)))
        assert bond([free.pop(uuid) for uuid in line.grant.gpus]) == best


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
