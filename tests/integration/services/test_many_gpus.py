"""Random jobs on 64 GPUs of 8 hosts: the ledger never lets two have what is one's.

The hosts are threads of this process. Each accounts for its GPUs as a worker does, refills itself, claims and finishes
in batches, crashes now and then and comes back, and sees strangers on its GPUs; only the processes are missing. What
each would tell of itself is written down as ``runner_dump`` does: when it ran, and which GPUs and token its environment
names. Some claims name GPUs without looking who has them: then the ledger alone stands between two holders.
"""

import itertools
import json
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bootstrap import open_runtime
from orchestrator.config import Settings
from orchestrator.domain.cluster import Gpu, GpuHealth, GpuRecord, GpuSample, NodeState
from orchestrator.domain.entry import JobEntry
from orchestrator.domain.gpu_memory import NO_FOREIGN_USE, ForeignUse
from orchestrator.domain.history import RunnerSpan
from orchestrator.domain.job import JobEvent, JobKind, LeaseMode, Resources
from orchestrator.domain.lease import (
    Claim,
    ClaimedJob,
    ClaimOutcome,
    Finish,
    LeaseGrant,
    LedgerBatch,
    LedgerOutcome,
    Refusal,
)
from orchestrator.domain.request import TaskRequest
from orchestrator.job_context import FENCING_TOKEN
from orchestrator.ports import NodeRecord
from orchestrator.runtime import Runtime
from orchestrator.services.refill import Refill
from orchestrator.services.submit import SubmitService
from orchestrator.storage.engine import open_database
from orchestrator.storage.history import SqlHistory
from orchestrator.storage.schema import upgrade
from orchestrator.testing.fakes import MemoryStreams, MemoryWake
from orchestrator.testing.history import Expectations, verify
from orchestrator.testing.runner_spans import load_spans
from orchestrator.worker.confinement import confine
from orchestrator.worker.host import Host, Line, Shape, WaitingJob
from orchestrator.worker.launch import task_runner_spec
from orchestrator.worker.processes import RunnerKey
from orchestrator.worker.run_times import RunTimes

HOSTS, GPUS, MEMORY_MIB = 8, 8, 1000
TTL = timedelta(seconds=60)
DEADLINE_SECONDS = 280.0
PAUSE_SECONDS = 0.005
LONGEST_HOLD = 4  # rounds
CRASHES, STRANGERS, FAULTS = 0.004, 0.02, 0.1  # chance a round


@dataclass(eq=False)
class Run:
    """A claimed job, and how many rounds it still takes."""

    line: Line
    job: ClaimedJob
    rounds: int
    told: dict[str, Any] | None = None  # what its process says of itself, from when it runs


class World:
    """What the hosts share."""

    def __init__(self, runtime: Runtime, seed: int, dumps: Path) -> None:
        self.dumps = dumps
        self.pids = itertools.count(1)
        self.streams = MemoryStreams()
        self.runtime = replace(runtime, publisher=self.streams, wake=MemoryWake())
        self.seed = seed
        self.of_host: dict[str | None, deque[JobEntry]] = {node: deque() for node in (None, *map(str, range(HOSTS)))}
        self.resources: dict[int, Resources] = {}
        self.ended: set[int] = set()
        self.stale = 0
        self.blind: list[bool] = []  # whether each claim without looking was granted
        self.lock = threading.Lock()
        self.failure: BaseException | None = None
        self.stop = threading.Event()

    def deliver(self) -> None:
        """Hand what was published to the streams to the hosts."""
        with self.lock:
            entries, self.streams.entries = list(self.streams.entries.values()), {}
        for entry in entries:
            self.of_host[entry.node].append(entry)


class SimulatedHost:
    """A host without processes."""

    def __init__(self, world: World, node: str) -> None:
        self._world, self._node, self._runtime = world, node, world.runtime
        self._random = random.Random(f"{world.seed}/{node}")
        self._gpus = [Gpu(f"{node}-{index}", index, "Sim", MEMORY_MIB, "1") for index in range(GPUS)]
        self._refill = Refill(world.runtime, node)
        self._lives = 0
        self._foreign: dict[str, ForeignUse] = {}
        self._arrivals = 0
        self._confinement = confine(world.runtime.settings)
        self._dump = (world.dumps / f"{node}.jsonl").open("w")
        self._held: dict[int, tuple[WaitingJob, int]] = {}  # seq -> the round in which it came
        self._begin()

    def _begin(self) -> None:
        """Come to life, knowing nothing of an earlier one but what the streams deliver again."""
        self._lives += 1
        now = self._runtime.clock.now()
        cards = tuple(GpuRecord(gpu, self._node, GpuHealth.HEALTHY, 0, 0, None, 0) for gpu in self._gpus)
        record = NodeRecord(self._node, "boot", self._node, self._lives, NodeState.UP, ("gpu",), 2, 0, now, True, cards)
        self._runtime.cluster.register_node(record)
        times = RunTimes(look_ahead_seconds=0.5, most_ahead=4)
        times.note("task", 0.01)
        self._host = Host(cpu_slots=2, run_times=times)
        self._lines: dict[int, deque[Run]] = {}
        self._round = 0
        self._foreign = {}
        self._tell_gpus()
        held, self._held = self._held, {}
        for waiting, _since in held.values():
            self._hold(waiting)

    def run(self) -> None:
        """Work until everything has ended."""
        try:
            while not self._world.stop.is_set():
                if not self._step():
                    self._world.stop.wait(PAUSE_SECONDS)
        except BaseException as error:  # noqa: BLE001 - told by the test's own thread
            self._world.failure = error
            self._world.stop.set()

    def _step(self) -> bool:
        """Do one round; return whether there was anything to do."""
        self._round += 1
        if self._random.random() < CRASHES:
            self._crash()
        if self._random.random() < STRANGERS:
            uuid = self._random.choice(self._gpus).uuid
            used = self._random.choice([0, 200, 700])
            self._foreign[uuid] = ForeignUse(used, (), used < 500)
            self._tell_gpus()
        self._take_entries()
        if self._random.random() < FAULTS:
            self._claim_blindly()
        finishes, releases = self._end_some()
        late = [seq for seq, (_job, since) in self._held.items() if self._round - since > LONGEST_HOLD]
        withdrawn = [job.seq for job in self._host.remove_waiting(set(late))]
        for seq in withdrawn:
            del self._held[seq]
        claims, lines = self._claims()
        batch = LedgerBatch(
            finishes=finishes, releases=releases, withdrawals=tuple(withdrawn), claims=tuple(claims.values())
        )
        if batch != LedgerBatch():
            self._settle(batch, lines, self._runtime.ledger.commit(self._node, batch, ttl=TTL))
        room = self._host.free_gpus() + self._host.free_cpu_slots() + 4 - self._host.waiting_count
        admitted = self._refill(room) if room > 0 else 0
        self._world.deliver()
        return batch != LedgerBatch() or bool(admitted or self._lines)

    def _take_entries(self) -> None:
        for node in (self._node, None):
            entries = self._world.of_host[node]
            while entries and self._host.waiting_count < 16:
                try:
                    entry = entries.popleft()
                except IndexError:
                    break  # another host was faster
                self._arrivals += 1
                shape = Shape(self._world.resources[entry.seq], "default", JobKind.TASK, "task", 5)
                self._hold(WaitingJob(entry.seq, entry.job_id, shape, self._arrivals))

    def _hold(self, waiting: WaitingJob) -> None:
        if waiting.seq not in self._held:
            self._held[waiting.seq] = (waiting, self._round)
            self._host.add_waiting(waiting)

    def _end_some(self) -> tuple[tuple[Finish, ...], tuple[int, ...]]:
        """End the jobs whose time is over: the front of each line; then the lines that are empty."""
        finishes, releases = [], []
        for key, runs in list(self._lines.items()):
            front = runs[0]
            front.rounds -= 1
            if front.rounds > 0:
                continue
            runs.popleft()
            self._tell(front, "end")
            if runs:
                self._tell(runs[0], "start")
            event = self._random.choice([JobEvent.SUCCEED] * 8 + [JobEvent.FAIL, JobEvent.REQUEUE])
            assert front.line.lease_id is not None
            finishes.append(Finish(front.job.seq, front.job.attempt, front.line.lease_id, event))
            self._host.take_out(front.line, front.job.seq)
            if not runs:
                del self._lines[key]
                releases.append(front.line.lease_id)
                self._host.close(front.line)
        return tuple(finishes), tuple(releases)

    def _claims(self) -> tuple[dict[int, Claim], dict[int, Line]]:
        claims, lines = {}, {}
        for line, jobs in self._host.choose():
            seqs = tuple(job.seq for job in jobs)
            grant = None if line.lease_id is not None else line.grant
            claims[line.key] = Claim(line.key, seqs, line.shape.resources, grant=grant, lease_id=line.lease_id)
            lines[line.key] = line
        return claims, lines

    def _settle(self, batch: LedgerBatch, lines: dict[int, Line], outcome: LedgerOutcome) -> None:
        stale = {finish.job_seq for finish in outcome.stale}
        over = {f.job_seq for f in batch.finishes if f.event in (JobEvent.SUCCEED, JobEvent.FAIL)} - stale
        with self._world.lock:
            self._world.ended |= over
        for claim in outcome.claims:
            self._claimed(lines[claim.key], claim)

    def _claimed(self, line: Line, claim: ClaimOutcome) -> None:
        line.lease_id = claim.lease_id if claim.lease_id is not None else line.lease_id
        for seq, refusal in claim.refused:
            self._host.take_out(line, seq)
            waiting, _since = self._held[seq]
            if refusal is Refusal.GPUS_TAKEN:
                self._host.add_waiting(waiting)
            else:
                del self._held[seq]
        for job in claim.granted:
            del self._held[job.seq]
            run = Run(line, job, self._random.randint(1, 4))
            runs = self._lines.setdefault(line.key, deque())
            runs.append(run)
            if runs[0] is run:
                self._tell(run, "start")
        if not line.jobs:
            self._host.close(line)

    def _claim_blindly(self) -> None:
        """Claim a job that waits here on any GPUs; hand it back at once if it is granted."""
        wanted = [job for job, _since in self._held.values() if job.shape.resources.gpus]
        if not wanted:
            return
        job = self._random.choice(sorted(wanted, key=lambda one: one.seq))
        resources = job.shape.resources
        gpus = tuple(gpu.uuid for gpu in self._random.sample(self._gpus, resources.gpus))
        grant = LeaseGrant(gpus, resources.mode, resources.gpu_memory_mib)
        claim = Claim(1, (job.seq,), resources, grant=grant)
        (outcome,) = self._runtime.ledger.commit(self._node, LedgerBatch(claims=(claim,)), ttl=TTL).claims
        with self._world.lock:
            self._world.blind.append(bool(outcome.granted))
        if outcome.lease_id is None:
            return
        (granted,) = outcome.granted
        finish = Finish(granted.seq, granted.attempt, outcome.lease_id, JobEvent.REQUEUE)
        batch = LedgerBatch(finishes=(finish,), releases=(outcome.lease_id,))
        self._runtime.ledger.commit(self._node, batch, ttl=TTL)
        self._host.remove_waiting({job.seq})
        del self._held[job.seq]

    def _crash(self) -> None:
        """Forget what runs and come back; what the earlier life still reports is refused."""
        ghosts = [run for runs in self._lines.values() for run in runs]
        for runs in self._lines.values():  # a worker's processes die with it
            self._tell(runs[0], "end")
        self._begin()
        finishes = tuple(
            Finish(run.job.seq, run.job.attempt, run.line.lease_id, JobEvent.SUCCEED)
            for run in ghosts
            if run.line.lease_id is not None
        )
        outcome = self._runtime.ledger.commit(self._node, LedgerBatch(finishes=finishes), ttl=TTL)
        assert outcome.stale == finishes
        with self._world.lock:
            self._world.stale += len(finishes)

    def _tell(self, run: Run, what: str) -> None:
        """Write what a job's process does when it begins and when it ends, from the environment that it is given."""
        if run.told is None:
            grant, token = run.line.grant, run.line.lease_id
            assert token is not None
            key = RunnerKey(grant.gpus, "default", grant.mode is LeaseMode.EXCLUSIVE)
            of_all = {"app": "app", "hostname": self._node, "inherited": {}, "confinement": self._confinement}
            spec = task_runner_spec("r", key, token=token, **of_all)
            gpus = [gpu for gpu in spec.environment["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
            process = {"pid": next(self._world.pids), "ticks": 0, "boot": "simulated"}
            job = {"job": run.job.id, "attempt": run.job.attempt, "token": int(spec.environment[FENCING_TOKEN])}
            run.told = process | job | {"gpus": gpus}
        line = run.told | {"what": what, "at": time.clock_gettime(time.CLOCK_BOOTTIME), "wall": time.time()}
        self._dump.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Give back the last leases, and let others read what the processes wrote."""
        self._crash()
        self._dump.close()

    def _tell_gpus(self) -> None:
        bare = [GpuSample(gpu, 0, GpuHealth.HEALTHY, (), None, None, None) for gpu in self._gpus]
        samples = [replace(one, foreign=self._foreign.get(one.gpu.uuid, NO_FOREIGN_USE)) for one in bare]
        self._runtime.cluster.heartbeat(self._node, samples, look_ahead=0)
        self._host.update_gpus(samples)


def random_job(draw: random.Random) -> dict[str, Any]:
    """Return what a job asks for: mostly a GPU or a share of one, sometimes a gang or none."""
    kind = draw.random()
    if kind < 0.45:
        return {"gpu_memory_mib": draw.choice([100, 250, 250, 500, 900])}
    if kind < 0.85:
        return {"gpus": 1}
    return {"gpus": draw.choice([0, 2, 2, 3, 4, 8])}


def lead(world: World, count: int) -> None:
    """Submit every job a few at a time, and do of the leader's work what nobody else does, until all have ended."""
    draw, service = random.Random(world.seed), SubmitService(world.runtime)
    epoch = world.runtime.leadership.campaign("test", ttl=timedelta(seconds=600)).epoch
    left = count
    waited = 0.0
    while len(world.ended) < count and not world.stop.is_set():
        if left and len(world.resources) - len(world.ended) < 400:
            wants = [random_job(draw) for _ in range(min(100, left))]
            left -= len(wants)
            with world.lock:  # nobody looks at an entry before its resources are known
                requests = [TaskRequest(task="task", priority=draw.randint(3, 7), **one) for one in wants]
                submitted = service.submit(requests)
                world.resources |= {
                    job.seq: Resources(one.get("gpus", 1), one.get("gpu_memory_mib"))
                    for job, one in zip(submitted, wants, strict=True)
                }
        world.runtime.admission.release_due(limit=200, epoch=epoch)
        world.stop.wait(0.02)
        waited += 0.02
        assert waited < DEADLINE_SECONDS, f"{len(world.ended)} of {count} ended"


def check(url: str, spans: Sequence[RunnerSpan]) -> None:
    """Every invariant holds of what the database and the processes recorded, and every GPU was in use."""
    database = open_database(url)
    try:
        history = SqlHistory(database)
        report = history.read(lambda view: verify(view, Expectations(spans, settled=True)))
        unused = history.read(lambda view: [gpu.uuid for gpu in view.gpus() if not any(view.holds(gpu.uuid))])
    finally:
        database.close()
    assert report.is_clean, str(report)
    assert not unused
    assert {gpu for span in spans for gpu in span.gpus} == {f"{node}-{n}" for node in range(HOSTS) for n in range(GPUS)}


@pytest.fixture(
    params=[
        pytest.param(("sqlite", 1_500), id="sqlite-1500"),
        pytest.param(("sqlite", 10_000), id="sqlite-10000", marks=(pytest.mark.matrix, pytest.mark.timeout(330))),
        pytest.param(("mariadb", 10_000), id="mariadb-10000", marks=(pytest.mark.matrix, pytest.mark.timeout(330))),
    ]
)
def case(request: pytest.FixtureRequest) -> tuple[str, int]:
    """An empty database, and how many jobs it is to see."""
    kind, count = request.param
    return str(request.getfixturevalue(f"{kind}_url")), count


@pytest.fixture
def world(case: tuple[str, int], tmp_path: Path) -> Iterator[World]:
    upgrade(case[0])
    settings = Settings(home=tmp_path, database_url=case[0], redis_url="redis://127.0.0.1:1/0", lost_delay=0)
    runtime = open_runtime(settings)
    runtime.cluster.ensure_queues(["gpu"])
    yield World(runtime, seed=7, dumps=tmp_path)
    runtime.close()


def test_random_jobs_on_64_gpus_never_overlap(world: World, case: tuple[str, int], tmp_path: Path) -> None:
    """F1: every job ends well or as it was told to, and every holder of every GPU is accounted for, at any instant.

    In the ledger, and in what each job's own process saw.
    """
    url, count = case
    hosts: Sequence[SimulatedHost] = [SimulatedHost(world, str(number)) for number in range(HOSTS)]
    threads = [threading.Thread(target=host.run, name=f"host-{n}", daemon=True) for n, host in enumerate(hosts)]
    for thread in threads:
        thread.start()
    try:
        lead(world, count)
    finally:
        world.stop.set()
        for thread in threads:
            thread.join(30)
    if world.failure is not None:
        raise world.failure
    for host in hosts:
        host.close()
    spans = load_spans([tmp_path])
    check(url, spans)
    assert len({span.job_id for span in spans}) == count
    assert all(span.end is not None for span in spans)
    assert len(world.ended) == count
    assert world.stale > 0
    assert set(world.blind) == {True, False}
