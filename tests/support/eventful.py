"""An installation in which everything that a metric tells of has happened, without a worker."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from fastapi.testclient import TestClient

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuSample
from orchestrator.domain.gpu_memory import ForeignUse
from orchestrator.domain.job import FailureClass, Job, JobEvent, LeaseMode, Resources
from orchestrator.domain.lease import Claim, Finish, LeaseGrant, LedgerBatch, PoolJoin
from orchestrator.domain.pool import Leave
from orchestrator.domain.sweep import SweepTally
from orchestrator.ports import LossPolicy
from orchestrator.runtime import Runtime
from orchestrator.scheduling.pools import Decision
from orchestrator.services.lead import Leader
from orchestrator.streams.client import connect
from orchestrator.streams.keys import GROUP, stream_of
from tests.support.running import GPU_MIB, TTL, Running, confirming, register
from tests.support.waiting import wait_for

SHORT = timedelta(seconds=0.2)


class Eventful:
    """Has things happen through one api and one runtime; host ``alpha`` has six GPUs."""

    def __init__(self, api: TestClient, runtime: Runtime) -> None:
        self._api, self._runtime = api, runtime

    def everything(self) -> None:
        """Have all of it happen."""
        self.samples()
        self.runs()
        self.leases()
        self.pools()
        self.leader()
        self.losses()
        self.deliveries()
        assert self._api.patch("/policy", json={"safe_mode": True}).status_code == 200

    def samples(self) -> None:
        """A host tells of its GPUs, and of trouble with the database."""
        register(self._runtime, "alpha", 6)
        cards = [Gpu(f"alpha-{index}", index, "Sim", GPU_MIB, "1") for index in range(6)]
        read = [GpuSample(card, 1000, GpuHealth.HEALTHY, (), 50, 60, 70) for card in cards]
        read[5] = replace(read[5], foreign=ForeignUse(300, ("somebody",), clean=False))
        self._runtime.cluster.heartbeat("alpha", read, look_ahead=0, trouble_seconds=1.0)

    def runs(self) -> None:
        """Two jobs succeed, one is tried again, one becomes a dead letter, and one runs."""
        for _ in range(2):
            self._ended("alpha-0", JobEvent.SUCCEED)
        self._ended("alpha-1", JobEvent.RETRY, delay_seconds=3600.0)
        self._ended("alpha-2", JobEvent.BURY, error="lost", failure_class=FailureClass.LOST)
        self._start("alpha-3")
        self._submit()  # and one waits

    def leases(self) -> None:
        """One lease without a job is granted, one finds no GPU free, one could never be granted."""
        with confirming(self._runtime):
            granted = self._api.post("/leases", json={"gpu_memory": "1GiB"})
        assert granted.status_code == 201, granted.text
        assert self._api.post("/leases", json={"gpus": 6}).json()["type"].endswith("no-gpu-free")
        assert self._api.post("/leases", json={"gpus": 60}).json()["type"].endswith("unsatisfiable-request")

    def pools(self) -> None:
        """A pool has a runner with a job, loses another one to others, and has failed to load a third."""
        runtime = self._runtime
        body = {"name": "chat", "min": 1, "max": 3}
        assert self._api.post("/pools", json=body).status_code == 201
        pool = runtime.pools.standing("chat").pool
        leases = [self._join(gpu) for gpu in ("alpha-1", "alpha-2")]
        decision = Decision(replace(pool, failures=2), leave=((leases[1], Leave.DRAIN),))
        assert runtime.pools.apply(decision, epoch=self._epoch())
        seq = self._admitted()
        claim = Claim(1, (seq,), Resources(1), lease_id=leases[0])
        assert runtime.ledger.commit("alpha", LedgerBatch(claims=(claim,)), ttl=TTL).claims[0].granted

    def leader(self) -> None:
        """Somebody leads, sweeps, and fails at it once."""
        Leader(self._runtime, "test").step()
        failed = SweepTally()
        failed.note(3, seconds=0.5, error="for the test")
        self._runtime.sweep_log.note({"admit": failed}, epoch=self._epoch())

    def losses(self) -> None:
        """A lease expires, and its holder finishes its job all the same."""
        runtime = self._runtime
        running = self._start("alpha-0", ttl=SHORT)
        policy = LossPolicy(max_lost=3, delay=timedelta(0), grace=timedelta(0))

        def expired() -> int:
            found = runtime.admission.expired_leases(limit=9, grace=policy.grace)
            return runtime.admission.expire_leases(found, policy=policy, epoch=self._epoch())

        wait_for(expired, within_seconds=10, describe="the lease to expire")
        running.end()

    def deliveries(self) -> None:
        """One entry is delivered and not acknowledged, one is delivered to nobody."""
        client = connect(self._runtime.settings.redis)
        stream = stream_of("gpu")
        for _ in range(2):
            client.xadd(stream, {"for": "the test"})
        assert client.xreadgroup(GROUP, "somebody", {stream: ">"}, count=1)
        client.close()

    def _epoch(self) -> int:
        return self._runtime.leadership.campaign("test", ttl=timedelta(seconds=60)).epoch

    def _admitted(self) -> int:
        seq = self._submit().seq
        self._runtime.ledger.admit([(seq, "alpha")])
        return seq

    def _submit(self) -> Job:
        answer = self._api.post("/jobs/submit", json={"argv": ["true"], "gpus": 1})
        assert answer.status_code == 201, answer.text
        job = self._runtime.jobs.get(answer.json()["id"])
        assert job is not None
        return job

    def _start(self, gpu: str, *, ttl: timedelta = TTL) -> Running:
        return Running(self._runtime, self._submit().id, gpus=(gpu,), ttl=ttl)

    def _ended(self, gpu: str, event: JobEvent, **values: Any) -> None:
        running = self._start(gpu)
        running.end(event, **values)
        running.release()

    def _join(self, gpu: str) -> int:
        runtime, seq = self._runtime, self._admitted()
        claim = Claim(1, (seq,), Resources(1), LeaseGrant((gpu,), LeaseMode.EXCLUSIVE, None))
        (outcome,) = runtime.ledger.commit("alpha", LedgerBatch(claims=(claim,)), ttl=TTL).claims
        assert outcome.lease_id is not None
        done = Finish(seq, 1, outcome.lease_id, JobEvent.SUCCEED)
        join = PoolJoin(outcome.lease_id, "chat", 1, "no-load", 1.0)
        runtime.ledger.commit("alpha", LedgerBatch(finishes=(done,), joins=(join,)), ttl=TTL)
        return outcome.lease_id
