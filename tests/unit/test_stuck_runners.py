"""When a runner is given up: by instants, with a tree that KILL does not end."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator.guardian.handoff import Handoff
from orchestrator.guardian.journal import Journal
from orchestrator.guardian.kernel import boottime, read_boot_id
from orchestrator.guardian.locks import DeviceLock, Note
from orchestrator.guardian.messages import Exited, GuardianEvent, RunnerSpec, Spawned, Stuck
from orchestrator.guardian.processes import Process, read_process
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.guardian.wards import Wards

GPU = "GPU-0"
PID = 1 << 22  # beyond what Linux gives a process by default


class Forest:
    """One tree with one process, which does not heed KILL while it ``lasts``."""

    def __init__(self) -> None:
        self.lasts, self.kills = True, 0

    def is_gone(self, tree: Any, trees: Any) -> bool:
        return not self.lasts

    def find(self, trees: Any) -> dict[str, list[Process]]:
        alive = [Process(PID, 1, PID, PID, 1, alive=True)] if self.lasts else []
        return {tree.mark: alive for tree in trees}

    def kill(self, tree: Any, trees: Any) -> None:
        self.kills += 1


class World:
    """A guardian's wards with one runner on a GPU."""

    def __init__(self, home: Path) -> None:
        settings = GuardianSettings("a", home, lock_dir=home, isolation="process", kill_wait_seconds=10)
        me = read_process(os.getpid())
        assert me is not None
        self._home, self.note = home, Note("m", me.pid, me.start_ticks, read_boot_id())
        self.forest, self.told = Forest(), list[GuardianEvent]()
        self.journal = Journal(settings.find_journal())
        nursery = SimpleNamespace(fork=lambda spec, mark, descriptors: [os.close(one) for one in descriptors])
        doubles: Any = (nursery, self.forest)
        self.wards = Wards(settings, *doubles, self.journal, self.note, self.told.append, Handoff(512), lambda: None)
        spec = RunnerSpec("r1", ("sleep",), None, {}, "/", (GPU,), True, 1, None, {})
        self.wards.add(spec, [])
        self.wards.on_fork_message({"op": "forked", "runner": "r1", "pid": PID, "start_ticks": 1})
        self.wards.on_status("r1")
        assert self.told == [Spawned("r1", PID, 1, "process")]
        self.told.clear()

    def is_locked(self) -> bool:
        """Somebody else could not have the GPU."""
        lock = DeviceLock(self._home, GPU, cast(Note, self.note), exclusive=True)
        try:
            return not lock.try_acquire()
        finally:
            lock.release()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_runner_that_outlives_kill_is_told_once_and_killed_on_with_its_gpu_locked(world: World) -> None:
    world.wards.end("r1", "killed", 5)
    begun = boottime()

    world.wards.step(begun + 6)
    world.wards.step(begun + 15.5)
    assert world.told == [], "KILL was sent at 6 at the earliest"
    assert world.forest.kills == 2
    for later in (16.5, 20, 30):
        world.wards.step(begun + later)
    assert world.told == [Stuck("r1", (GPU,), (PID,))]
    assert (world.wards.stuck, world.forest.kills, world.is_locked()) == (["r1"], 5, True)


def test_its_end_is_told_as_such_when_it_comes_at_last(world: World) -> None:
    """Whoever was told that it is stuck hears no exit of it."""
    world.wards.end("r1", "killed", 0)
    begun = boottime()
    world.wards.step(begun)
    world.wards.step(begun + 11)
    world.told.clear()

    world.forest.lasts = False
    world.wards.on_fork_message({"op": "exited", "pid": PID, "status": 9, "peak_rss_mib": 1})

    assert world.told == [Stuck("r1", (GPU,), (), is_over=True)]
    assert (len(world.wards), world.is_locked()) == (0, False)
    assert [record["op"] for record in world.journal.read()] == ["spawn", "began", "kill", "stuck", "exit"]


def test_one_that_dies_in_time_has_exited(world: World) -> None:
    world.wards.end("r1", "killed", 0)
    begun = boottime()
    world.wards.step(begun)
    world.forest.lasts = False
    world.wards.on_fork_message({"op": "exited", "pid": PID, "status": 9, "peak_rss_mib": 1})

    assert world.told == [Exited("r1", None, 9, "killed", 1)]
