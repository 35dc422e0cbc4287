"""The plan: who is admitted where, and why the others wait."""

import random
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.job import Resources
from orchestrator.scheduling.plan import Plan, Policy, WaitReason, keeper, plan
from orchestrator.scheduling.snapshot import AdmittedView, Candidate, GpuView, HostView, QueueView, Snapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MEMORY = 1000


def gpu(node: str, index: int, *, reserved: int = 0, exclusive: bool = False, healthy: bool = True) -> GpuView:
    return GpuView(f"{node}-{index}", index, "Sim", MEMORY, reserved, exclusive, healthy)


def host(
    node: str = "a",
    gpus: int = 4,
    *,
    busy: int = 0,
    look_ahead: int = 0,
    cpu_slots: int = 2,
    cpu_jobs: int = 0,
    accepts: bool = True,
    queues: tuple[str, ...] = ("gpu",),
) -> HostView:
    cards = tuple(gpu(node, index, exclusive=index < busy) for index in range(gpus))
    return HostView(node, accepts, cards, frozenset(queues), cpu_slots, cpu_jobs, look_ahead)


def job(seq: int, gpus: int = 1, *, mib: int | None = None, priority: int = 5, queue: str = "gpu") -> Candidate:
    return Candidate(seq, queue, "default", priority, Resources(gpus, mib))


def snapshot(
    hosts: list[HostView],
    jobs: list[Candidate],
    admitted: list[AdmittedView] | None = None,
    *,
    paused: tuple[str, ...] = (),
) -> Snapshot:
    names = sorted({queue for view in hosts for queue in view.queues} | {candidate.queue for candidate in jobs})
    queues = tuple(QueueView(name, name in paused) for name in names)
    return Snapshot(tuple(hosts), tuple(admitted or ()), tuple(jobs), queues)


def decide(
    hosts: list[HostView], jobs: list[Candidate], admitted: list[AdmittedView] | None = None, **kwargs: object
) -> Plan:
    return plan(snapshot(hosts, jobs, admitted, **kwargs), NOW, Policy())  # type: ignore[arg-type]


def placed(made: Plan) -> dict[int, str]:
    return {admission.seq: admission.node for admission in made.admissions}


def reasons(made: Plan) -> dict[int, WaitReason]:
    return {refusal.seq: refusal.reason for refusal in made.refusals}


def test_the_highest_priority_goes_first_then_the_oldest() -> None:
    """Priority 9 beats 0; among equals the seq decides."""
    made = decide([host(gpus=2)], [job(1, priority=1), job(2, priority=9), job(3, priority=5), job(4, priority=5)])

    assert [admission.seq for admission in made.admissions] == [2, 3]
    assert reasons(made) == {4: WaitReason.GPUS_BUSY, 1: WaitReason.BEHIND}


def test_a_job_goes_where_it_leaves_the_fewest_gpus_free() -> None:
    """Best fit keeps large blocks free for gangs."""
    made = decide([host("a", 8), host("b", 2), host("c", 4)], [job(1, 2), job(2, 4), job(3, 8)])

    assert placed(made) == {1: "b", 2: "c", 3: "a"}


def test_a_share_goes_onto_the_fullest_gpu_that_has_room() -> None:
    """Shares gather on few GPUs, so that whole ones stay whole."""
    cards = (gpu("a", 0), gpu("a", 1, reserved=700), gpu("a", 2, reserved=400))
    view = replace(host(gpus=0), gpus=cards)

    made = decide([view], [job(1, mib=300), job(2, mib=600), job(3, mib=500)])

    assert [(admission.seq, admission.gpus) for admission in made.admissions] == [
        (1, ("a-1",)),
        (2, ("a-2",)),
        (3, ("a-0",)),
    ]


def test_a_share_is_never_made_of_two_gpus() -> None:
    """F3: what is left of two GPUs together does not serve half a one; four quarters fill one, and a fifth waits."""
    cards = (gpu("a", 0, reserved=501), gpu("a", 1, reserved=501))
    made = decide([replace(host(gpus=0), gpus=cards)], [job(1, mib=500)])
    assert reasons(made) == {1: WaitReason.GPUS_BUSY}
    assert "at most 499 MiB of one are free" in made.refusals[0].words
    enough = (gpu("a", 0, reserved=501), gpu("a", 1, reserved=500))
    (admission,) = decide([replace(host(gpus=0), gpus=enough)], [job(1, mib=500)]).admissions
    assert admission.gpus == ("a-1",)

    made = decide([host(gpus=1)], [job(seq, mib=250) for seq in range(1, 6)])
    assert [admission.gpus for admission in made.admissions] == [("a-0",)] * 4
    assert reasons(made) == {5: WaitReason.GPUS_BUSY}


def test_a_gang_is_never_spread_over_hosts() -> None:
    """Three free GPUs on each of two hosts do not make four on one."""
    made = decide([host("a", 4, busy=1), host("b", 4, busy=1)], [job(1, 4)])

    assert made.admissions == ()
    assert made.refusals[0].reason is WaitReason.GPUS_BUSY
    assert "3 of 4 on a" in made.refusals[0].words


def test_small_jobs_do_not_starve_a_gang() -> None:
    """One host keeps its free GPUs for the first gang that fits nowhere; the other lets smaller jobs pass."""
    hosts = [host("a", 4, busy=1), host("b", 4, busy=1)]
    kept = keeper(1, ["a", "b"])

    made = decide(hosts, [job(1, 4), *(job(seq) for seq in range(2, 10))])

    assert set(placed(made).values()) == {"a", "b"} - {kept}
    assert len(made.admissions) == 3


def test_a_job_passes_beside_what_is_kept() -> None:
    """A gang of two needs two of the four GPUs; a share may go onto a GPU that the gang can do without."""
    cards = (gpu("a", 0), gpu("a", 1, exclusive=True), gpu("a", 2, exclusive=True), gpu("a", 3, reserved=100))
    view = replace(host(gpus=0), gpus=cards)

    made = decide([view], [job(1, 2), job(2, mib=100), job(3, 1)])

    assert placed(made) == {2: "a"}
    assert made.admissions[0].gpus == ("a-3",)
    assert reasons(made)[3] is WaitReason.BEHIND
    assert "kept for job number 1" in made.refusals[1].words


def test_a_job_without_gpus_is_never_held_up_by_jobs_with_gpus() -> None:
    """CPU slots are an account of their own."""
    made = decide([host(gpus=1, busy=1)], [job(1, priority=9), job(2, 0, priority=0), job(3, 0), job(4, 0)])

    assert placed(made) == {3: "a", 4: "a"}
    assert reasons(made) == {1: WaitReason.GPUS_BUSY, 2: WaitReason.CPUS_BUSY}


def test_a_host_that_ends_jobs_fast_takes_some_ahead() -> None:
    """Look-ahead admits beyond what is free, but only what the host could ever run."""
    made = decide([host(gpus=2, busy=2, look_ahead=2), host("b", 2, busy=2)], [job(1, 2), job(2, 3), job(3), job(4)])

    assert placed(made) == {1: "a", 3: "a"}
    assert reasons(made) == {2: WaitReason.TOO_LARGE, 4: WaitReason.GPUS_BUSY}


def test_a_gang_that_was_admitted_ahead_keeps_its_gpus() -> None:
    """Smaller jobs that came later do not take what it waits for."""
    made = decide([host(gpus=2, busy=1, look_ahead=1)], [job(2)], [AdmittedView(1, "gpu", Resources(2), "a")])

    assert made.admissions == ()
    assert reasons(made) == {2: WaitReason.BEHIND}


def test_what_is_on_its_way_counts() -> None:
    """Admitted jobs hold capacity: placed ones on their host, others where they fit best."""
    admitted = [AdmittedView(1, "gpu", Resources(2), "a"), AdmittedView(2, "gpu", Resources(1), None)]

    made = decide([host("a", 4), host("b", 1)], [job(3), job(4), job(5)], admitted)

    assert placed(made) == {3: "a", 4: "a"}


@pytest.mark.parametrize("node", ["a", None])
@pytest.mark.parametrize("look_ahead", [0, 2, 9])
def test_jobs_alike_count_as_if_told_one_by_one(node: str | None, look_ahead: int) -> None:
    """A view of several stands for as many views of one: room first, then look-ahead."""
    hosts = [host("a", 4, busy=1, look_ahead=look_ahead)]
    candidates = [job(seq) for seq in range(10, 20)]
    one_by_one = [AdmittedView(seq, "gpu", Resources(1), node) for seq in range(1, 6)]

    together = decide(hosts, candidates, [AdmittedView(1, "gpu", Resources(1), node, 5)])

    assert together == decide(hosts, candidates, one_by_one)
    assert len(together.admissions) == max(0, look_ahead - 2)


@pytest.mark.parametrize(
    ("hosts", "candidate", "paused", "reason"),
    [
        ([host()], job(1), ("gpu",), WaitReason.QUEUE_PAUSED),
        ([host(queues=("other",))], job(1), (), WaitReason.NO_CONSUMER),
        ([host(accepts=False)], job(1), (), WaitReason.HOSTS_AWAY),
        ([host(gpus=2)], job(1, 3), (), WaitReason.TOO_LARGE),
        ([host(gpus=2)], job(1, mib=MEMORY + 1), (), WaitReason.TOO_LARGE),
        ([host(gpus=2, busy=2)], job(1), (), WaitReason.GPUS_BUSY),
        ([host(cpu_jobs=2)], job(1, 0), (), WaitReason.CPUS_BUSY),
    ],
)
def test_every_refusal_says_why(
    hosts: list[HostView], candidate: Candidate, paused: tuple[str, ...], reason: WaitReason
) -> None:
    """The reason is typed, and the words are for people."""
    made = decide(hosts, [candidate], paused=paused)

    assert reasons(made) == {1: reason}
    assert made.refusals[0].words


def test_a_sick_gpu_is_nothing() -> None:
    """GPUs that are not healthy are neither free nor big enough."""
    view = replace(host(gpus=0), gpus=(gpu("a", 0, healthy=False), gpu("a", 1)))

    assert placed(decide([view], [job(1), job(2)])) == {1: "a"}
    assert reasons(decide([view], [job(1, 2)])) == {1: WaitReason.TOO_LARGE}


def test_a_pass_is_bounded() -> None:
    """What is over the bound is left to the next pass and says so."""
    made = plan(snapshot([host()], [job(1), job(2), job(3)]), NOW, Policy(most_admissions=1))

    assert placed(made) == {1: "a"}
    assert set(reasons(made).values()) == {WaitReason.LATER}


def test_hosts_that_plan_alone_agree_on_who_keeps_gpus() -> None:
    """Each host plans for itself with the others as peers: exactly one of them keeps its free GPUs for the gang."""
    hosts = [host(node, 4, busy=1) for node in "abcde"]
    jobs = [job(1, 4), job(2), job(3), job(4)]
    keeping = []
    for view in hosts:
        peers = tuple(other for other in hosts if other is not view)
        made = plan(snapshot([view], jobs), NOW, Policy(peers=peers))
        if not made.admissions:
            keeping.append(view.node)

    assert keeping == [keeper(1, [view.node for view in hosts])]


def test_a_peer_that_is_too_small_keeps_nothing() -> None:
    """GPUs are kept only where the job could ever run."""
    small = host("b", 1)
    other_queue = host("c", 8, queues=("other",))

    made = plan(snapshot([host("a", 4, busy=1)], [job(1, 4), job(2)]), NOW, Policy(peers=(small, other_queue)))

    assert made.admissions == ()


# Properties

QUEUES = ("gpu", "night", "cpu")


def test_what_is_used_without_a_lease_is_no_room_and_is_said() -> None:
    """A share gets what is left beside it, a whole GPU has to be clean; the others are used meanwhile."""
    used = replace(gpu("a", 0), foreign_mib=600, clean=False)
    alone = replace(host("a", 0), gpus=(used,))
    made = decide([alone], [job(1, 1), job(2, 1, mib=400), job(3, 1, mib=100)])

    assert [(one.seq, one.gpus) for one in made.admissions] == [(2, ("a-0",))]
    words = {refusal.seq: refusal.words for refusal in made.refusals}
    assert words[1] == "it asks for a GPU; free: 0 of 1 on a; in use without a lease: 1 on a"
    assert words[3].endswith("at most 0 MiB of one are free, on a; up to 600 MiB of one are in use without a lease")
    beside = replace(alone, gpus=(used, gpu("a", 1)))
    assert [one.gpus for one in decide([beside], [job(1, 1)]).admissions] == [("a-1",)]


def test_headroom_is_not_lent_out_in_shares() -> None:
    card = replace(gpu("a", 0), headroom_mib=100)
    made = decide([replace(host("a", 0), gpus=(card,))], [job(1, 1, mib=900), job(2, 1, mib=1000)])

    assert [one.seq for one in made.admissions] == [1]
    assert [(one.seq, one.reason) for one in made.refusals] == [(2, WaitReason.TOO_LARGE)]
    whole = decide([replace(host("a", 0), gpus=(card,))], [job(1, 1)])
    assert [one.gpus for one in whole.admissions] == [("a-0",)]


@st.composite
def gpus(draw: st.DrawFn, node: str) -> tuple[GpuView, ...]:
    cards = []
    for index in range(draw(st.integers(0, 5))):
        exclusive = draw(st.booleans())
        reserved = 0 if exclusive else draw(st.sampled_from([0, 0, 200, 900]))
        card = gpu(node, index, reserved=reserved, exclusive=exclusive, healthy=draw(st.integers(0, 4)) > 0)
        foreign, headroom = draw(st.sampled_from([0, 0, 0, 50, 400])), draw(st.sampled_from([0, 0, 100]))
        cards.append(replace(card, foreign_mib=foreign, clean=foreign < 100, headroom_mib=headroom))
    return tuple(cards)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    hosts = [
        HostView(
            node=node,
            accepts=draw(st.integers(0, 5)) > 0,
            gpus=draw(gpus(node)),
            queues=frozenset(draw(st.sets(st.sampled_from(QUEUES), min_size=1))),
            cpu_slots=draw(st.integers(0, 3)),
            cpu_jobs=draw(st.integers(0, 2)),
            look_ahead=draw(st.sampled_from([0, 0, 1, 3])),
        )
        for node in "abcd"[: draw(st.integers(0, 4))]
    ]
    wants = st.one_of(
        st.integers(0, 5).map(Resources), st.sampled_from([100, 500, 900, 1200]).map(lambda mib: Resources(1, mib))
    )
    candidates = [
        job(seq, priority=draw(st.integers(0, 9)), queue=draw(st.sampled_from(QUEUES)))._replace(resources=draw(wants))
        for seq in range(1, draw(st.integers(0, 25)) + 1)
    ]
    admitted = [
        AdmittedView(seq, draw(st.sampled_from(QUEUES)), draw(wants), draw(st.sampled_from([None, "a", "b", "c"])))
        for seq in range(100, 100 + draw(st.integers(0, 6)))
    ]
    paused = draw(st.sets(st.sampled_from(QUEUES), max_size=1))
    return Snapshot(
        tuple(hosts), tuple(admitted), tuple(candidates), tuple(QueueView(name, name in paused) for name in QUEUES)
    )


@settings(max_examples=300)
@given(snapshots(), st.integers(0, 30))
def test_every_candidate_is_admitted_or_refused_exactly_once(given_snapshot: Snapshot, most: int) -> None:
    made = plan(given_snapshot, NOW, Policy(most_admissions=most))

    decided = Counter([admission.seq for admission in made.admissions] + [refusal.seq for refusal in made.refusals])
    assert decided == Counter(candidate.seq for candidate in given_snapshot.candidates)
    assert len(made.admissions) <= most


@settings(max_examples=300)
@given(snapshots())
def test_no_gpu_is_promised_beyond_what_it_has(given_snapshot: Snapshot) -> None:
    """Counted again from the plan's own words: whole GPUs once and only when idle, shares up to the memory left."""
    made = plan(given_snapshot, NOW, Policy())
    jobs = {candidate.seq: candidate for candidate in given_snapshot.candidates}
    cards = {card.uuid: card for view in given_snapshot.hosts for card in view.gpus}
    whole: Counter[str] = Counter()
    shared: defaultdict[str, int] = defaultdict(int)
    ahead: Counter[str] = Counter()
    for admission in made.admissions:
        resources = jobs[admission.seq].resources
        if resources.gpus and not admission.gpus:
            ahead[admission.node] += 1
            continue
        assert len(admission.gpus) == resources.gpus
        assert all(uuid.startswith(f"{admission.node}-") for uuid in admission.gpus)
        for uuid in admission.gpus:
            if resources.gpu_memory_mib is None:
                whole[uuid] += 1
            else:
                shared[uuid] += resources.gpu_memory_mib
    assert all(
        count == 1 and not cards[uuid].exclusive and not cards[uuid].reserved_mib and cards[uuid].clean
        for uuid, count in whole.items()
    )
    assert all(
        card.reserved_mib + card.foreign_mib + mib <= card.memory_mib - card.headroom_mib and not card.exclusive
        for card, mib in ((cards[uuid], mib) for uuid, mib in shared.items())
    )
    assert not whole.keys() & shared.keys()
    assert all(cards[uuid].healthy for uuid in (*whole, *shared))
    assert all(count <= view.look_ahead for view in given_snapshot.hosts for count in [ahead[view.node]])


@settings(max_examples=200)
@given(snapshots())
def test_admitted_jobs_leave_room_for_each_other(given_snapshot: Snapshot) -> None:
    """Whole-GPU jobs on their way and new ones together never need more idle GPUs than a host has."""
    made = plan(given_snapshot, NOW, Policy())
    jobs = {candidate.seq: candidate for candidate in given_snapshot.candidates}
    for view in given_snapshot.hosts:
        idle = sum(card.healthy and not card.exclusive and not card.reserved_mib for card in view.gpus)
        new = sum(
            len(admission.gpus)
            for admission in made.admissions
            if admission.node == view.node and jobs[admission.seq].resources.gpu_memory_mib is None
        )
        # A share on its way may go beside another one, or fit no card of the host: it need not take an idle GPU.
        placed = [item.resources for item in given_snapshot.admitted if item.node == view.node]
        on_their_way = [resources.gpus for resources in placed if resources.gpu_memory_mib is None]
        whole_on_their_way = [count for count in on_their_way if 0 < count <= idle]
        assert not new or new + min(whole_on_their_way, default=0) <= idle


@given(snapshots())
def test_nothing_is_admitted_to_a_paused_queue_or_an_unfit_host(given_snapshot: Snapshot) -> None:
    made = plan(given_snapshot, NOW, Policy())
    jobs = {candidate.seq: candidate for candidate in given_snapshot.candidates}
    hosts = {view.node: view for view in given_snapshot.hosts}
    paused = {queue.name for queue in given_snapshot.queues if queue.paused}
    for admission in made.admissions:
        candidate, view = jobs[admission.seq], hosts[admission.node]
        assert candidate.queue not in paused
        assert view.accepts
        assert candidate.queue in view.queues
        healthy = [card for card in view.gpus if card.healthy]
        assert len(healthy) >= candidate.resources.gpus
        assert max((card.memory_mib for card in healthy), default=0) >= (candidate.resources.gpu_memory_mib or 0)
        assert candidate.resources.gpus or view.cpu_slots


@given(snapshots(), st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(given_snapshot: Snapshot, shuffler: random.Random) -> None:
    def shuffled(items: tuple[object, ...]) -> tuple[object, ...]:
        copy = list(items)
        shuffler.shuffle(copy)
        return tuple(copy)

    hosts = tuple(replace(view, gpus=shuffled(view.gpus)) for view in given_snapshot.hosts)  # type: ignore[arg-type]
    other = Snapshot(
        shuffled(hosts),  # type: ignore[arg-type]
        shuffled(given_snapshot.admitted),  # type: ignore[arg-type]
        shuffled(given_snapshot.candidates),  # type: ignore[arg-type]
        shuffled(given_snapshot.queues),  # type: ignore[arg-type]
    )
    assert plan(other, NOW, Policy()) == plan(given_snapshot, NOW, Policy())


@given(snapshots())
def test_a_job_that_fits_an_idle_untouched_cluster_is_admitted(given_snapshot: Snapshot) -> None:
    """The first in order, when it could ever run and everything is idle, is always admitted."""
    if not given_snapshot.candidates:
        return
    untouched: dict[str, Any] = {"exclusive": False, "reserved_mib": 0, "foreign_mib": 0, "clean": True}
    hosts = tuple(
        replace(view, cpu_jobs=0, gpus=tuple(replace(card, **untouched) for card in view.gpus))
        for view in given_snapshot.hosts
    )
    made = plan(replace(given_snapshot, hosts=hosts, admitted=()), NOW, Policy())
    first = min(given_snapshot.candidates, key=lambda candidate: (-candidate.priority, candidate.seq))
    reason = reasons(made).get(first.seq)
    hopeless = {WaitReason.QUEUE_PAUSED, WaitReason.NO_CONSUMER, WaitReason.HOSTS_AWAY, WaitReason.TOO_LARGE}
    assert reason is None or reason in hopeless


@pytest.mark.parametrize("per_host", [1, 8])
def test_the_work_of_a_plan_grows_with_hosts_and_jobs_and_not_with_their_product(per_host: int) -> None:
    """Four times as many of both: four times the calls, and some for the heaps; sixteen would be the product."""
    small, large = (_calls(_crowd(per_host, count)) for count in (250, 1000))
    assert large < 6 * small


def _crowd(per_host: int, count: int) -> Snapshot:
    hosts = [host(f"h{number:04}", per_host, queues=("gpu", "night")) for number in range(count // per_host)]
    sizes = [1, 2, 4] if per_host > 1 else [1]
    jobs = [
        job(seq, sizes[seq % len(sizes)], mib=500 if seq % 7 == 0 and sizes[seq % len(sizes)] == 1 else None)
        for seq in range(1, count + 1)
    ]
    return snapshot(hosts, jobs)


def _calls(picture: Snapshot) -> int:
    """Count the calls that a plan makes, of Python's functions and of C's."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        made = plan(picture, NOW, Policy())
    finally:
        sys.setprofile(before)
    assert len(made.admissions) + len(made.refusals) == len(picture.candidates)
    return calls
