"""Canvases that many processes build, run and cancel at once: nothing that waits is forgotten."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from orchestrator.domain.ids import uuid7
from orchestrator.domain.job import TERMINAL_STATES, JobState
from orchestrator.storage.history import SqlHistory
from orchestrator.testing.history import Expectations, verify
from tests.contract.conftest import Stores, new_job

CHORDS = 6
MEMBERS = 6


class Chord:
    """A chord whose members are submitted, cancelled and joined by different threads."""

    def __init__(self, stores: Stores, seed: int) -> None:
        self.stores, self.draw = stores, random.Random(seed)
        self.group, self.body = (uuid7(datetime.now(UTC)) for _ in range(2))
        self.members = [uuid7(datetime.now(UTC)) for _ in range(MEMBERS)]
        self.fails = self.draw.random() < 0.7

    def submit(self, member: str) -> None:
        head = new_job(id=member, root_id=self.group, group_id=self.group)
        self.stores.jobs.submit([head, new_job(id=self.body, root_id=self.group, needs=(member,))])

    def cancel(self, member: str) -> None:
        if self.stores.jobs.get(member) is not None:
            self.stores.jobs.request_cancel(member, by="test", reason="x")

    def steps(self) -> list[Callable[[], None]]:
        made: list[Callable[[], None]] = [lambda member=member: self.submit(member) for member in self.members]  # type: ignore[misc]
        if self.fails:
            unlucky = self.draw.choice(self.members)
            made += [lambda: self.cancel(unlucky)] * 3
        self.draw.shuffle(made)
        return made


def test_a_body_ends_if_a_member_was_cancelled_however_the_submits_and_cancels_meet(stores: Stores) -> None:
    """Without a sweep that looks for what was forgotten: whoever comes second sees the other."""
    chords = [Chord(stores, seed) for seed in range(CHORDS)]
    steps = [step for chord in chords for step in chord.steps()]
    random.Random(1).shuffle(steps)
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(step) for step in steps]:
            done.result(60)

    for chord in chords:
        states = [stores.job(member).state for member in chord.members]
        expected = JobState.CANCELLED if JobState.CANCELLED in states else JobState.BLOCKED
        assert stores.job(chord.body).state is expected
    report = SqlHistory(stores.database).read(lambda view: verify(view, Expectations(settled=False)))
    assert report.is_clean, str(report)


def test_a_canvas_that_is_cancelled_while_it_grows_ends_whole(stores: Stores) -> None:
    """Each running member calls more; from the cancellation on, what it calls is stored cancelled."""
    stores.register("a", 1)
    root = new_job()
    stores.jobs.submit([root])
    assert stores.claim(stores.job(root.id).seq, "a-0").granted

    def call(_number: int) -> str:
        child = new_job(root_id=root.id, parent_id=root.id)
        stores.jobs.submit([child])
        return child.id

    with ThreadPoolExecutor(6) as pool:
        before = [pool.submit(call, number) for number in range(10)]
        outcome = pool.submit(stores.jobs.cancel_canvas, root.id, whole=True, by="test", reason="x")
        after = [pool.submit(call, number) for number in range(10)]
        children = [done.result(60) for done in (*before, *after)]
        outcome.result(60)

    states = {stores.job(child).state for child in children}
    assert states == {JobState.CANCELLED}
    assert stores.job(root.id).cancel_requested_at is not None
    assert states <= TERMINAL_STATES
