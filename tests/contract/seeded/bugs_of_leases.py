"""Seeded bugs: tokens, leases, GPUs and runners."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection

from orchestrator.domain.job import JobEvent, LeaseMode, Resources
from orchestrator.domain.lease import Finish, LeaseGrant, LogChunk
from orchestrator.errors import NotLeading
from orchestrator.guardian.messages import Spawned, SpawnFailed
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.leader_ports import Term
from orchestrator.storage import claiming, endings, granting, leadership, ledger, statements, sweeps
from orchestrator.storage.engine import Database
from orchestrator.storage.leadership import SqlLeadership
from orchestrator.storage.ledger import SqlLedgerStore
from orchestrator.testing import runner_dump
from orchestrator.testing.runner_spans import load_spans
from tests.contract.conftest import MEMORY_MIB, TTL
from tests.contract.seeded.world import (
    BOTH,
    DEAD,
    World,
    bug,
    changed,
    grant,
    line_claim,
    replaced,
    rewritten,
    together,
)
from tests.support.guardian import Host
from tests.support.waiting import wait_for

FAR = "'2099-01-01 00:00:00.000000'"  # what a host whose clock is wrong takes for now


def _accept_every_finish(
    store: SqlLedgerStore, connection: Connection, node: str, finishes: Sequence[Finish]
) -> tuple[Finish, ...]:
    endings.end_attempts(store._database, connection, node, finishes)
    return ()


@bug("fenced-end", replaced(SqlLedgerStore, "_finish", _accept_every_finish), *BOTH)
def drop_the_token_check(world: World) -> None:
    """A worker that was taken for dead wakes up and reports the failure of its attempt, while another one runs."""
    stale, _ = world.lost_and_running_again()
    world.finish(stale, JobEvent.FAIL)


@bug("attempts-counted", replaced(SqlLedgerStore, "_finish", _accept_every_finish), *BOTH)
def accept_the_result_of_a_stale_attempt(world: World) -> None:
    """The same, with a success: it is written over the attempt that was lost."""
    stale, _ = world.lost_and_running_again()
    world.finish(stale, JobEvent.SUCCEED)


@bug("one-end", replaced(SqlLedgerStore, "_finish", _accept_every_finish))
def finish_without_a_state_guard(world: World) -> None:
    """Two reports of one attempt contradict each other."""
    job = world.start("a-0")
    lease = world.lease_of(job)
    world.finish(job, JobEvent.SUCCEED, lease=lease)
    world.finish(job, JobEvent.FAIL, lease=lease)


@bug("live-token", rewritten(statements, "LIVE_LEASES", (" AND expires_at > {now}", "")), *BOTH)
def trust_a_lease_past_its_end(world: World) -> None:
    """A worker that could not renew finishes before any leader came round to expire its lease."""
    job = world.start("a-0")
    world.clock.advance(DEAD)
    world.finish(job, JobEvent.SUCCEED)


@bug(
    "claim-under-live-lease",
    together(
        rewritten(statements, "LIVE_LEASES", (" AND state = 'active' AND expires_at > {now}", "")),
        rewritten(statements, "TAKE_READY", (" AND l.state = 'active' AND l.expires_at > {now}", "")),
    ),
)
def line_up_under_a_lease_that_has_ended(world: World) -> None:
    """A short job is claimed onto the line of a runner whose lease was given back."""
    job = world.start("a-0")
    lease = world.lease_of(job)
    world.finish(job, JobEvent.SUCCEED)
    world.stores.commit(releases=(lease,))
    world.clock.advance(timedelta(seconds=1))
    line_claim(world, lease)


@bug(
    "fenced-output",
    rewritten(
        statements, "INSERT_LOG", (" AND state = 'running' AND attempt = :attempt", ""),
        (" AND lease_id = :lease_id", ""),
    ),
    *BOTH,
)  # fmt: skip
def accept_the_output_of_a_stale_attempt(world: World) -> None:
    """A worker that was taken for dead sends what its runner printed meanwhile."""
    stale = world.start("a-0")
    lease = world.lease_of(stale)
    world.expire(lease)
    world.clock.advance(timedelta(seconds=10))
    world.stores.commit(logs=(LogChunk(stale.seq, stale.attempt, lease, 0, "late"),))


@bug("ended-lease-rests", rewritten(statements, "RENEW", (" AND state = 'active' AND expires_at > {now}", "")), *BOTH)
def renew_an_ended_lease(world: World) -> None:
    """A worker wakes up after its lease was expired and renews it."""
    job = world.start("a-0")
    lease = world.lease_of(job)
    world.expire(lease)
    world.clock.advance(timedelta(seconds=1))
    world.stores.ledger.renew("a", [lease], ttl=TTL)


@bug(
    "expired-past-end",
    rewritten(
        sweeps, "STILL_EXPIRED", (" AND renewals = :renewals", " AND :renewals = :renewals"),
        (" AND expires_at < {now_minus:grace}", " AND granted_at < {now_minus:grace}"),
    ),
    *BOTH,
)  # fmt: skip
def rescue_by_age_alone(world: World) -> None:
    """A long job whose worker renews its lease all the time is taken for lost because it began long ago."""
    job = world.start("a-0")
    lease = world.lease_of(job)
    for _ in range(4):
        world.clock.advance(TTL / 2)
        world.stores.ledger.renew("a", [lease], ttl=TTL)
    epoch = world.stores.lead()
    policy = endings.LossPolicy(max_lost=3, delay=timedelta(0), grace=TTL)
    world.stores.admission.expire_leases([(lease, 4)], policy=policy, epoch=epoch)


@bug("expired-past-end", rewritten(sweeps, "STILL_EXPIRED", ("{now_minus:grace}", f"{FAR} AND :grace = :grace")), *BOTH)
def expire_by_the_leaders_own_clock(world: World) -> None:
    """A leader whose host's clock is wrong takes a lease that was granted this moment for expired."""
    job = world.start("a-0")
    policy = endings.LossPolicy(max_lost=3, delay=timedelta(0), grace=timedelta(0))
    world.stores.admission.expire_leases([(world.lease_of(job), 0)], policy=policy, epoch=world.epoch)


def _leave_the_lease(_database: Database, _connection: Connection, lease_ids: Sequence[int], *_: Any) -> list[int]:
    return list(lease_ids)


@bug("loss-ends-lease", replaced(sweeps, "end_leases", _leave_the_lease))
def lose_a_job_and_keep_its_lease(world: World) -> None:
    """A sweep has the job run again elsewhere and leaves the GPUs to its first holder."""
    job = world.start("a-0")
    world.expire(world.lease_of(job))


@bug(
    "gpu-row-agrees",
    rewritten(statements, "FREE_EXCLUSIVE", ("SET exclusive_lease_id = NULL, turn = turn + 1", "SET turn = turn + 1")),
    *BOTH,
)
def forget_the_gpu_row(world: World) -> None:
    """A lease ends and its GPU's row goes on to name it: the GPU is lost to everybody."""
    job = world.start("a-0")
    lease = world.lease_of(job)
    world.finish(job, JobEvent.SUCCEED)
    world.stores.commit(releases=(lease,))


@bug(
    "gpu-exclusive",
    together(
        rewritten(statements, "TAKE_EXCLUSIVE", (" AND exclusive_lease_id IS NULL AND reserved_mib = 0", "")),
        rewritten(statements, "INSERT_LEASE_GPUS", ("uuid, :live_exclusive,", "uuid, NULLIF(:live_exclusive, 1),")),
    ),
    *BOTH,
)
def grant_a_gpu_that_is_taken(world: World) -> None:
    """A host that forgot a lease of its own asks for the GPU again, and neither guard nor index stand in the way."""
    world.start("a-0")
    seq = world.stores.submit().seq
    world.stores.commit(claims=(grant(seq, LeaseGrant(("a-0",), LeaseMode.EXCLUSIVE, None)),))


@bug(
    "gpu-capacity",
    rewritten(
        statements, "TAKE_SHARED", ("reserved_mib = reserved_mib + :mib", "reserved_mib = :mib"),
        (" AND reserved_mib + foreign_mib + headroom_mib + :mib <= memory_mib", ""),
        (" AND reserved_mib + foreign_mib + :mib <= memory_mib * COALESCE((SELECT max_gpu_fraction FROM"
         " orchestrator_policy), 1)", ""),
    ),
    *BOTH,
)  # fmt: skip
def reserve_more_memory_than_there_is(world: World) -> None:
    """Two shares of most of a GPU's memory are granted together."""
    most = MEMORY_MIB * 2 // 3
    for _ in range(2):
        job = world.stores.submit(resources=Resources(1, most))
        world.stores.claim(job.seq, "a-0", mib=most)


def _grant_what_is_there(
    database: Database, connection: Connection, node: str, wanted: LeaseGrant, ttl: timedelta
) -> int | None:
    for uuid in wanted.gpus:
        lease = granting.take_gpus(database, connection, node, LeaseGrant((uuid,), wanted.mode, None), ttl)
        if lease is not None:
            return lease
    return None


@bug("gang-whole", replaced(claiming, "take_gpus", _grant_what_is_there))
def start_with_half_a_gang(world: World) -> None:
    """One of two GPUs is taken, and the job starts on the other."""
    world.start("a-0")
    seq = world.stores.submit(resources=Resources(2)).seq
    world.stores.commit(claims=(grant(seq, LeaseGrant(("a-0", "a-1"), LeaseMode.EXCLUSIVE, None)),))


@bug("gpu-tokens-grow", rewritten(statements, "TAKE_EXCLUSIVE", (" AND last_lease_id < :lease_id", "")), "mariadb")
def grant_a_token_out_of_order(world: World) -> None:
    """A grant got its number and was held up; meanwhile a later one took the GPU and gave it back."""
    early, late = (world.stores.submit().seq for _ in range(2))
    database = world.stores.database
    run = database.run

    def run_held_up(connection: Connection, statement: Any, values: Any = ()) -> Any:
        if statement is statements.TAKE_EXCLUSIVE and database.run is run_held_up:
            database.run = run  # type: ignore[method-assign]
            job = world.claim(late, "a-0")
            lease = world.lease_of(job)
            world.finish(job, JobEvent.SUCCEED)
            world.stores.commit(releases=(lease,))
        return run(connection, statement, values)

    database.run = run_held_up  # type: ignore[method-assign]
    world.stores.commit(claims=(grant(early, LeaseGrant(("a-0",), LeaseMode.EXCLUSIVE, None)),))


def _campaign_without_an_epoch(store: SqlLeadership, connection: Connection, values: dict[str, Any]) -> Term:
    run = store._database.run
    row = run(connection, leadership.ROW_FOR_UPDATE).first()
    if row is None or (row.live and row.holder != values["holder"]):
        return SqlLeadership.__dict__["_real_campaign"](store, connection, values)  # type: ignore[no-any-return]
    shared = changed(leadership.TAKE_OVER, ("epoch = epoch + 1", "epoch = epoch"))
    run(connection, shared, values | {"epoch": row.epoch})
    return store._begin(connection, values["holder"], row.epoch)


def _plant_shared_epochs(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SqlLeadership, "_real_campaign", SqlLeadership._campaign, raising=False)
    patch.setattr(SqlLeadership, "_campaign", _campaign_without_an_epoch)


@bug("one-leader", _plant_shared_epochs, *BOTH)
def two_leaders_of_one_epoch(world: World) -> None:
    """The row of a leader that was paused has expired; another takes over, and nothing tells the two terms apart."""
    world.clock.advance(DEAD)
    world.stores.leadership.campaign("another", ttl=TTL)


@bug("fenced-sweeps", rewritten(sweeps, "EPOCH_FOR_SHARE", ("epoch = :epoch", "epoch >= :epoch")), *BOTH)
def sweep_after_the_term(world: World) -> None:
    """A leader that was paused in the middle of a sweep goes on after another one has taken over."""
    job = world.stores.submit(run_at=world.clock.now() + timedelta(seconds=1))
    paused = world.epoch
    world.clock.advance(DEAD)
    world.stores.leadership.campaign("another", ttl=TTL)
    with contextlib.suppress(NotLeading):
        world.stores.admission.release_due(limit=9, epoch=paused)
    assert job.created


#: What a bug changes in processes that no patch reaches.
OUTSIDE = {"armed": False}


@bug("runner-exclusive", lambda patch: patch.setitem(OUTSIDE, "armed", True))
def release_before_the_runner_is_dead(world: World) -> None:
    """The lease is given back when the job says that it is done; its process still uses the GPU."""
    file = world.directory / "dumps.jsonl"
    first = world.start("a-0")
    lease = world.lease_of(first)
    runner = _run(file, first.id, lease, "600")
    wait_for(lambda: file.exists() and file.read_text(), within_seconds=20, describe="the first line")
    if not OUTSIDE["armed"]:
        _end(runner)
    world.finish(first, JobEvent.SUCCEED)
    world.stores.commit(releases=(lease,))
    second = world.start("a-0")
    assert _run(file, second.id, world.lease_of(second), "0").wait(20) == 0
    _end(runner)
    world.expect(spans=load_spans([file]), skew=None)  # the database's clock is a script's


def _run(file: Any, job: str, token: int, seconds: str) -> subprocess.Popen[bytes]:
    said = {"ORCHESTRATOR_JOB_ID": job, "ORCHESTRATOR_ATTEMPT": "1", "ORCHESTRATOR_FENCING_TOKEN": str(token)}
    environment = os.environ | said | {"CUDA_VISIBLE_DEVICES": "a-0"}
    return subprocess.Popen([sys.executable, runner_dump.__file__, str(file), seconds], env=environment)


def _end(runner: subprocess.Popen[bytes]) -> None:
    runner.kill()
    runner.wait(20)


@bug("runner-exclusive", lambda patch: patch.setitem(OUTSIDE, "armed", True))
def start_without_the_device_lock(world: World) -> None:
    """Two workers play one host, and their guardians do not look at the same lock: both start a runner on one GPU."""
    with contextlib.ExitStack() as started:
        for name in ("one", "two"):
            locks = world.directory / (name if OUTSIDE["armed"] else "locks")
            host = Host(GuardianSettings(node=name, home=world.directory, lock_dir=locks, lock_wait_seconds=0.2))
            started.callback(host.close)
            host.spawn(argv=("sleep", "600"), gpus=("g",))
            host.expect(Spawned if name == "one" or OUTSIDE["armed"] else SpawnFailed)
    world.expect(spans=load_spans([world.directory / "journal"]))


@bug("runner-under-lease", lambda patch: patch.setitem(OUTSIDE, "armed", True))
def keep_a_runner_past_its_lease(world: World) -> None:
    """A lease is expired; nobody ends the process that runs under it, and its job goes on elsewhere."""
    job = world.start("a-0")
    lease = world.lease_of(job)
    file = world.directory / "dumps.jsonl"
    began = world.clock.now().timestamp()
    world.expire(lease)
    ended = world.clock.now().timestamp() + (60 if OUTSIDE["armed"] else -20)
    told = {"boot": "x", "pid": 7, "ticks": 1, "job": job.id, "attempt": 1, "token": lease, "gpus": ["a-0"]}
    lines = [told | {"what": "start", "at": 1.0, "wall": began}, told | {"what": "end", "at": 99.0, "wall": ended}]
    file.write_text("\n".join(ledger.dump(line) for line in lines))
    world.expect(spans=load_spans([file]))
