"""Where jobs go that want a model."""

import math
from typing import Any

from orchestrator.domain.job import Resources
from orchestrator.domain.wants import Wants
from orchestrator.scheduling.plan import Plan, Policy, WaitReason, plan
from orchestrator.scheduling.snapshot import AdmittedView, Candidate, HostView, ModelView, QueueView, Snapshot
from tests.unit.scheduling.test_plan import NOW, host, placed, reasons

QUEUE = "gpu"


def asks(seq: int, model: str = "llama", tenant: str = "default", priority: int = 5) -> Candidate:
    return Candidate(seq, QUEUE, tenant, priority, Resources(1, None, Wants(model=model)))


def loaded(node: str = "a", runners: int = 1, running: int = 0, **fields: Any) -> ModelView:
    told = {"pool": "chat", "model": "llama", "tenant": None, "load_seconds": 20.0, "run_seconds": 1.0}
    told |= {"queues": frozenset({QUEUE})} | fields
    return ModelView(node=node, runners=runners, running=running, **told)


def decide(
    hosts: list[HostView], jobs: list[Candidate], models: list[ModelView], admitted: tuple[AdmittedView, ...] = ()
) -> Plan:
    queues = (QueueView(QUEUE, paused=False),)
    return plan(Snapshot(tuple(hosts), admitted, tuple(jobs), queues, models=tuple(models)), NOW, Policy())


def test_a_job_goes_where_its_model_is_and_takes_no_gpu() -> None:
    """By the pool's name or by the model's, though other hosts have free GPUs and this one has none."""
    made = decide([host("a", 1, busy=1), host("b", 4)], [asks(1), asks(2, "chat")], [loaded(runners=2)])
    assert placed(made) == {1: "a", 2: "a"}
    assert {admission.gpus for admission in made.admissions} == {()}


def test_runners_get_one_job_ahead_and_more_if_they_end_them_fast() -> None:
    """The least busy ones first; what is on its way counts."""
    busy = [host("a", 1, busy=1), host("b", 1, busy=1)]
    jobs = [asks(seq) for seq in range(1, 9)]
    made = decide(busy, jobs, [loaded("a"), loaded("b", running=1)])
    assert placed(made) == {1: "a", 2: "a", 3: "b"}
    assert set(reasons(made).values()) == {WaitReason.MODEL_BUSY, WaitReason.BEHIND}
    fast = decide(busy[:1], jobs, [loaded("a", run_seconds=0.1)])
    assert len(placed(fast)) == 6
    wants = Resources(1, None, Wants(model="chat"))
    admitted = (AdmittedView(99, QUEUE, wants, "a", 5),)
    assert len(placed(decide(busy[:1], jobs, [loaded("a", run_seconds=0.1)], admitted))) == 1


def test_it_waits_as_long_as_a_load_takes_longer_and_no_more() -> None:
    free = [host("a", 1, busy=1), host("b", 4)]
    assert placed(decide(free, [asks(1)], [loaded(running=10)])) == {}
    assert reasons(decide(free, [asks(1)], [loaded(running=10)])) == {1: WaitReason.MODEL_BUSY}
    assert placed(decide(free, [asks(1)], [loaded(running=10, load_seconds=5.0)])) == {1: "b"}
    words = decide(free, [asks(1)], [loaded(running=10)]).refusals[0].words
    assert words == "the runners with llama are busy for about 11.0 s; a load takes 20.0 s"


def test_a_runner_serves_its_tenant_and_the_queues_of_its_host() -> None:
    hosts = [host("a", 1, busy=1), host("b", 1)]
    assert placed(decide(hosts, [asks(1, tenant="red")], [loaded(tenant="blue")])) == {1: "b"}
    assert placed(decide(hosts, [asks(1, tenant="blue")], [loaded(tenant="blue")])) == {1: "a"}
    assert placed(decide(hosts, [asks(1)], [loaded(queues=frozenset({"other"}))])) == {1: "b"}


def test_of_two_tenants_one_does_not_fail_with_the_other() -> None:
    """What was found out for one job holds for those that are alike, and a tenant makes a difference here."""
    hosts = [host("a", 1, busy=1)]
    made = decide(hosts, [asks(1, tenant="red"), asks(2, tenant="blue")], [loaded(tenant="blue")])
    assert placed(made) == {2: "a"}


def test_a_host_alone_leaves_jobs_to_the_runners_of_other_hosts() -> None:
    """A refill sees one host and every model: it starts nothing cold that another host's runner has loaded."""
    made = decide([host("b", 4)], [asks(1)], [loaded("a")])
    assert reasons(made) == {1: WaitReason.MODEL_BUSY}


def test_jobs_wait_for_runners_that_sleep_and_do_not_load_their_model_again() -> None:
    """That they wait is what wakes the runners; those that are awake go on taking jobs."""
    free = [host("a", 4)]
    made = decide(free, [asks(1)], [loaded(runners=0, asleep=1)])
    assert (placed(made), reasons(made)) == ({}, {1: WaitReason.MODEL_BUSY})
    assert placed(decide(free, [asks(1)], [loaded(runners=1, asleep=1)])) == {1: "a"}
    other = decide(free, [asks(1, "another")], [loaded(runners=0, asleep=1)])
    assert placed(other) == {1: "a"}


class Traffic:
    """One warm runner on host a, free GPUs on host b, and a virtual clock; each request is a pass of its own."""

    def __init__(self, *, run_seconds: float, load_seconds: float, most: int = 1) -> None:
        self._run, self._load, self._most = run_seconds, load_seconds, most
        self._hosts = [host("a", 1, busy=1), host("b", 8)]
        self._free_at = 0.0  # when the runner has done what it was given
        self._waiting: list[Candidate] = []
        self.warm: list[int] = []
        self.cold: dict[int, float] = {}  # by seq, how long it would have waited

    def at(self, now: float, *seqs: int) -> None:
        """Have requests come at an instant, and place what waits."""
        self._waiting += [asks(seq) for seq in seqs]
        running = math.ceil(max(0.0, self._free_at - now) / self._run - 1e-9)
        view = loaded(running=running, run_seconds=self._run, load_seconds=self._load, most=self._most)
        made = decide(self._hosts, self._waiting, [view])
        queue = running * self._run
        for candidate in self._waiting:
            if placed(made).get(candidate.seq) == "a":
                self.warm.append(candidate.seq)
                self._free_at = max(now, self._free_at) + self._run
            elif candidate.seq in placed(made):
                self.cold[candidate.seq] = queue
            queue += self._run if candidate.seq not in self.cold else 0.0
        self._waiting = [candidate for candidate in self._waiting if candidate.seq not in placed(made)]

    def drain(self, now: float) -> None:
        """Let time pass until nobody waits."""
        while self._waiting:
            now += self._run
            self.at(now)


def test_with_a_short_queue_requests_go_to_the_warm_runner() -> None:
    """F50: of 100 that come a little faster than they are done, 99 at least; here all, as the queue costs no load."""
    traffic = Traffic(run_seconds=1.0, load_seconds=20.0)
    for seq in range(1, 101):
        traffic.at(0.9 * seq, seq)
    traffic.drain(90.0)
    assert len(traffic.warm) >= 99
    assert traffic.cold == {}


def test_requests_load_the_model_elsewhere_once_the_queue_costs_more_than_that() -> None:
    """F50: of a burst, those that would wait for longer than a load takes; a pool that may grow does that instead."""
    burst = Traffic(run_seconds=1.0, load_seconds=20.0)
    burst.at(0.0, *range(1, 26))
    assert sorted(burst.cold) == [21, 22, 23, 24, 25]
    burst.drain(0.0)
    assert burst.warm == list(range(1, 21))

    growing = Traffic(run_seconds=1.0, load_seconds=20.0, most=2)
    growing.at(0.0, *range(1, 26))
    assert growing.cold == {}


def test_who_waits_for_a_model_is_told_why_and_others_pass() -> None:
    """Of more requests than GPUs elsewhere, the first that could not load it waits for a GPU, and those behind it."""
    hosts = [host("a", 1, busy=1), host("b", 1)]
    made = decide(hosts, [asks(seq) for seq in range(1, 9)], [loaded(load_seconds=4.0)])
    assert placed(made) == {1: "a", 2: "a", 5: "b"}
    told = reasons(made)
    assert [told[seq] for seq in (3, 4, 6, 7)] == [
        WaitReason.MODEL_BUSY,
        WaitReason.BEHIND,
        WaitReason.GPUS_BUSY,
        WaitReason.BEHIND,
    ]
