"""No plain task is lost, and one runs twice only where at-least-once says so; each run is counted."""

import threading
from pathlib import Path

import pytest

from orchestrator.streams.scripts import script
from tests.chaos.plain.harness import PATIENCE, STREAM, Chaos
from tests.chaos.plain.wire import Cut, Wire
from tests.support.waiting import wait_for

PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always")
TASKS = 40
CUTS = 2
PROCESSES = 2


def test_a_killed_worker_loses_nothing_and_only_what_was_not_acknowledged_runs_again(chaos: Chaos) -> None:
    """Late acknowledgement: at least once, and twice only for what the dead worker had not acknowledged."""
    worker = chaos.worker("-c", "2")
    names = chaos.send(chaos.producer(), TASKS, seconds=0.05)
    chaos.wait_for_begun(TASKS // 4)
    chaos.kill(worker)
    left, before = chaos.unacknowledged(), chaos.count()
    assert set(names) - left <= set(before.ended)  # acknowledged means that it has ended
    chaos.worker("-c", "2")
    count = chaos.wait_for_ends(names)
    assert count.twice == left & set(before.begun)
    assert max(count.begun.values()) <= 2
    with chaos.server.client() as client:
        assert client.xinfo_groups(STREAM)[0]["pending"] == 0


def test_early_acknowledgement_runs_nothing_twice_and_loses_only_what_was_running(chaos: Chaos) -> None:
    """At most once: what was running when its worker died is lost, and nothing that only waited in it."""
    chaos.conf["task_acks_late"] = False
    worker = chaos.worker("-c", "2")
    names = chaos.send(chaos.producer(), TASKS, seconds=0.05)
    chaos.wait_for_begun(TASKS // 4)
    chaos.kill(worker)
    left, before = chaos.unacknowledged(), chaos.count()
    lost = set(names) - left - set(before.ended)
    chaos.worker("-c", "2")
    count = chaos.wait_for_ends([name for name in names if name not in lost])
    assert len(lost) <= 2 + 2  # those that ran, and those handed to the two processes ahead
    assert count.twice <= left & set(before.begun)  # begun, its acknowledgement not yet sent
    assert not lost & set(count.ended)


@pytest.mark.parametrize("redis_options", [PERSISTENT], ids=["persistent"])
def test_a_killed_broker_with_its_data_loses_nothing(chaos: Chaos) -> None:
    """A producer goes on sending over the outage; what it was sending then may be in the stream twice."""
    chaos.worker("-c", "2")
    app = chaos.producer()
    names: list[str] = []

    def produce() -> None:
        for _ in range(TASKS):
            names.extend(chaos.send(app, 1, seconds=0.05))

    producer = threading.Thread(target=produce)
    producer.start()
    chaos.wait_for_begun(TASKS // 4)
    chaos.server.kill()
    chaos.server.start()
    producer.join(60)
    assert len(names) == TASKS
    count = chaos.wait_for_ends(names)
    assert len(count.twice) <= 1 + PROCESSES, count.twice  # one that was being sent, and those taken and not reported


def test_a_killed_broker_without_its_data_loses_what_waited_in_it_and_nothing_else(
    chaos: Chaos, tmp_path: Path
) -> None:
    """What runs goes on and does not run again; the worker makes its group anew and takes what comes."""
    chaos.conf["worker_prefetch_multiplier"] = 1
    chaos.worker("-c", "1")
    gate = tmp_path / "gate"
    app = chaos.producer()
    names = chaos.send(app, 5, gate=str(gate))
    chaos.wait_for_begun(1)
    (running,) = chaos.count().begun
    chaos.server.kill()
    chaos.server.start()
    more = chaos.send(app, 5)
    gate.touch()
    count = chaos.wait_for_ends([running, *more])
    assert set(names) - set(count.begun) == set(names) - {running}
    assert not count.twice


@pytest.mark.parametrize("cut", Cut, ids=lambda cut: cut.value)
def test_cut_connections_lose_nothing(chaos: Chaos, cut: Cut) -> None:
    """Cuts in the blocking wait, in reads, in acknowledgements and in publications, on either side of the server's act.

    A task runs twice only when a publication's answer is lost, for the producer cannot know and sends again, or when a
    child had taken it and not yet reported that as its worker lost the connection that reads: Celery then forgets it.
    """
    with Wire(chaos.server.port) as wire:
        chaos.worker("-c", "2", port=wire.port)
        app = chaos.producer(wire.port)
        doubled: dict[str, int] = {}
        for what, marker in {
            "wait": b"XREAD",
            "read": script("take").sha.encode(),
            "acknowledgement": script("ack").sha.encode(),
            "publication": b"XADD",
        }.items():
            wire.arm(marker, cut, times=CUTS)
            names: list[str] = []

            def has_cut(names: list[str] = names) -> bool:
                names.extend(chaos.send(app, 5))
                chaos.wait_for_ends(names)
                return wire.left == 0

            wait_for(has_cut, within_seconds=PATIENCE, describe=f"every cut in a {what}")
            doubled[what] = len(chaos.count().twice & set(names))
        lost_answers, taken = (CUTS if cut is Cut.REPLY else 0), CUTS * PROCESSES
        bounds = {"wait": taken, "read": taken, "acknowledgement": 0, "publication": lost_answers}
        assert all(doubled[what] <= bound for what, bound in bounds.items()), doubled


def test_a_worker_cut_off_for_too_long_loses_its_entries_to_another(chaos: Chaos, tmp_path: Path) -> None:
    """Its task runs twice, and no other; the first run's end is no error."""
    with Wire(chaos.server.port) as wire:
        chaos.worker("-c", "1", "--prefetch-multiplier", "1", port=wire.port)
        gate = tmp_path / "gate"
        names = chaos.send(chaos.producer(), 3, gate=str(gate))
        chaos.wait_for_begun(1)
        (cut_off,) = chaos.count().begun
        wire.refuse()
        chaos.worker("-c", "4")
        chaos.wait_for_begun(len(names) + 1)
        gate.touch()
        wire.heal()
        count = chaos.wait_for_ends(names)
        assert count.twice == {cut_off}
        wait_for(lambda: chaos.count().ended[cut_off] == 2, within_seconds=PATIENCE, describe=chaos.logs)
