"""Jobs with conditions on GPUs and host: they go where those hold, or wait."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.job import Resources
from orchestrator.domain.wants import Alternative, Wants
from orchestrator.scheduling.hosts import Host
from orchestrator.scheduling.plan import Plan, Policy, WaitReason, plan
from orchestrator.scheduling.snapshot import Candidate, GpuView, HostView, QueueView, Snapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
MODELS = ("NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-40GB", "NVIDIA L40S")
MEMORIES = {MODELS[0]: 80, MODELS[1]: 40, MODELS[2]: 48}


def cards(node: str, *models: str, busy: int = 0, profiles: tuple[str | None, ...] = ()) -> tuple[GpuView, ...]:
    profiles = profiles or (None,) * len(models)
    return tuple(
        GpuView(f"{node}-{i}", i, model, MEMORIES[model], 0, i < busy, healthy=True, mig_profile=profile)
        for i, (model, profile) in enumerate(zip(models, profiles, strict=True))
    )


def host(node: str, *models: str, busy: int = 0, profiles: tuple[str | None, ...] = (), **more: object) -> HostView:
    return HostView(node, True, cards(node, *models, busy=busy, profiles=profiles), frozenset({"gpu"}), 2, 0, 0, **more)  # type: ignore[arg-type]


def decide(hosts: list[HostView], *asked: Resources) -> Plan:
    jobs = tuple(Candidate(seq, "gpu", "default", 5, resources) for seq, resources in enumerate(asked, start=1))
    return plan(Snapshot(tuple(hosts), (), jobs, (QueueView("gpu", paused=False),)), NOW, Policy())


def nodes(made: Plan) -> dict[int, str]:
    return {admission.seq: admission.node for admission in made.admissions}


def test_a_type_is_found_wherever_it_is() -> None:
    hosts = [host("a", *MODELS[1:]), host("b", MODELS[0], MODELS[0])]
    made = decide(
        hosts, Resources(2, wants=Wants(models=("H100",))), Resources(1, wants=Wants(models=("L40S", "H100")))
    )

    assert nodes(made) == {1: "b", 2: "a"}


def test_a_job_waits_for_its_type_and_lets_others_pass() -> None:
    hosts = [host("a", *MODELS[:1], busy=1), host("b", MODELS[1])]
    made = decide(hosts, Resources(1, wants=Wants(models=("H100",))), Resources(1))

    assert nodes(made) == {2: "b"}
    (refusal,) = made.refusals
    assert (refusal.reason, refusal.words) == (
        WaitReason.GPUS_BUSY,
        "it asks for a GPU of type H100; free: 0 of 1 on a",
    )


def test_what_no_host_has_now_is_too_large() -> None:
    (refusal,) = decide([host("a", MODELS[1])], Resources(1, wants=Wants(min_memory_mib=41))).refusals
    assert refusal.reason is WaitReason.TOO_LARGE
    assert "of at least 41 MiB" in refusal.words


def test_labels_choose_the_host_and_its_name_is_one() -> None:
    hosts = [host("a", MODELS[0], labels=(("zone", "x"),)), host("b", MODELS[0], labels=(("zone", "y"),))]
    made = decide(
        hosts, Resources(1, wants=Wants(labels=(("zone", "y"),))), Resources(1, wants=Wants(labels=(("node", "a"),)))
    )
    assert nodes(made) == {1: "b", 2: "a"}


def test_instances_go_to_those_who_ask_for_their_profile_only() -> None:
    """F7: whole-GPU requests, and shares, skip them."""
    split = host("a", *(MODELS[1],) * 3, profiles=("3g.20gb", "2g.10gb", "2g.10gb"))
    small = Resources(1, wants=Wants(mig_profile="2g.10gb"))
    made = decide([split], Resources(1), Resources(1, 10), small, small, small)

    assert sorted(nodes(made)) == [3, 4]
    taken = {admission.seq: admission.gpus for admission in made.admissions}
    assert sorted(taken[3] + taken[4]) == ["a-1", "a-2"]
    assert {refusal.seq: refusal.reason for refusal in made.refusals} == {
        1: WaitReason.TOO_LARGE,
        2: WaitReason.TOO_LARGE,
        5: WaitReason.GPUS_BUSY,
    }


def test_cpus_and_memory_of_a_host_are_used_up() -> None:
    """GPUs are left, but not the CPUs that the third job is counted with."""
    big = host("a", *(MODELS[0],) * 4, cpus=16, cpus_taken=4, memory_mib=100, memory_taken_mib=0)
    wants = Wants(cpus=6, host_memory_mib=30)
    made = decide([big], *(Resources(1, wants=wants),) * 3, Resources(1))

    assert sorted(nodes(made)) == [1, 2, 4]
    assert made.refusals[0].reason is WaitReason.GPUS_BUSY
    assert made.refusals[0].words == (
        "it asks for a GPU with 6 CPUs with 30 MiB of the host's memory; free: 0 CPUs and 40 MiB on a"
    )


def test_a_job_without_gpus_is_counted_too() -> None:
    made = decide([host("a", cpus=4)], *(Resources(0, wants=Wants(cpus=3)),) * 2)
    assert nodes(made) == {1: "a"}


def test_the_first_alternative_that_is_free_is_taken() -> None:
    hosts = [host("a", MODELS[0], busy=1), host("b", MODELS[1], MODELS[1]), host("c", MODELS[2])]
    wants = Wants(models=("H100",), alternatives=(Alternative(2, models=("A100",)), Alternative(1, models=("L40S",))))
    made = decide(hosts, *(Resources(1, wants=wants),) * 3)

    assert [(admission.node, len(admission.gpus)) for admission in made.admissions] == [("b", 2), ("c", 1)]
    assert made.refusals[0].words.startswith("it asks for a GPU of type H100, or 2 GPUs on one host of type A100, or ")


@pytest.mark.parametrize(
    ("asked", "lacking"),
    [
        (Resources(2), []),
        (Resources(3), [(1 / 3, "has 2")]),
        (Resources(1, 80), []),
        (Resources(1, 100), [(0.2, "has 80 MiB on the largest GPU")]),
        (Resources(2, wants=Wants(models=("H100",))), [(0.5, "has 1")]),
        (Resources(1, wants=Wants(models=("V100",))), [(1.0, "has no such GPU")]),
        (Resources(1, 60, Wants(models=("A100",))), [(1 / 3, "has 40 MiB on the largest such GPU")]),
        (Resources(1, wants=Wants(mig_profile="1g.10gb")), []),
        (Resources(1, wants=Wants(labels=(("zone", "y"),))), [(1.0, "is not labelled zone=y")]),
        (Resources(0, wants=Wants(cpus=4)), []),
        (
            Resources(0, wants=Wants(cpus=8, host_memory_mib=200)),
            [(0.5, "offers 4 CPUs"), (0.5, "offers 100 MiB of memory")],
        ),
    ],
)
def test_what_a_host_lacks_is_told_and_a_host_that_lacks_nothing_could_grant_it(
    asked: Resources, lacking: list[tuple[float, str]]
) -> None:
    """However busy it is; the same decides what is refused at submit and what a plan calls too large."""
    view = host("a", *MODELS[:2], MODELS[2], busy=3, profiles=(None, None, "1g.10gb"), labels=(("zone", "x"),))
    one = Host(replace(view, cpus=4, cpus_taken=4, memory_mib=100, memory_taken_mib=100), 0)
    found = list(one.lacking(asked))
    assert [lack.words for lack in found] == [words for _part, words in lacking]
    assert [lack.part for lack in found] == pytest.approx([part for part, _words in lacking])
    assert one.could_ever(asked) is (not lacking)


def test_a_host_without_a_cpu_slot_runs_no_job_without_gpus() -> None:
    none = Host(replace(host("a", cpus=8), cpu_slots=0), 0)
    assert [lack.words for lack in none.lacking(Resources(0, wants=Wants(cpus=1)))] == ["has no CPU slots"]


@st.composite
def clusters(draw: st.DrawFn) -> list[HostView]:
    return [
        host(
            node,
            *draw(st.lists(st.sampled_from(MODELS), max_size=4)),
            labels=draw(st.sampled_from([(), (("zone", "x"),), (("zone", "y"),)])),
            cpus=draw(st.integers(0, 16)),
        )
        for node in "abcd"[: draw(st.integers(1, 4))]
    ]


_wants = st.builds(
    Wants,
    models=st.sampled_from([(), ("H100",), ("A100", "L40S")]),
    min_memory_mib=st.sampled_from([None, 45, 60]),
    labels=st.sampled_from([(), (("zone", "x"),)]),
    cpus=st.integers(0, 6),
)


@given(clusters(), st.lists(st.tuples(st.integers(0, 3), st.none() | _wants), max_size=12))
def test_no_job_ever_lands_where_its_conditions_do_not_hold(
    hosts: list[HostView], asked: list[tuple[int, Wants | None]]
) -> None:
    """F6; and no host is asked for more CPUs than it offers, nor any GPU twice."""
    wanted = [Resources(gpus, wants=wants) for gpus, wants in asked]
    made = decide(hosts, *wanted)
    views = {view.node: view for view in hosts}
    gpus = {gpu.uuid: gpu for view in hosts for gpu in view.gpus}
    used = [uuid for admission in made.admissions for uuid in admission.gpus]

    assert len(used) == len(set(used))
    cpus = dict.fromkeys(views, 0)
    for admission in made.admissions:
        resources = wanted[admission.seq - 1]
        assert len(admission.gpus) == resources.gpus
        if resources.wants is not None:
            cpus[admission.node] += resources.wants.cpus
            assert resources.wants.accepts_labels(dict(views[admission.node].labels))
            for uuid in admission.gpus:
                assert resources.wants.accepts_gpu(gpus[uuid].model, gpus[uuid].memory_mib, None)
    assert all(cpus[node] <= view.cpus for node, view in views.items())
    assert len(made.admissions) + len(made.refusals) == len(wanted)
