"""Whose process it is that uses a GPU, and what simulated GPUs say of that."""

import os
import pwd
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from orchestrator.domain.cluster import GpuProcess, GpuSample
from orchestrator.gpus.simulated import SimulatedDriver, make_gpus, write_gpus
from orchestrator.gpus.simulated_use import set_use
from orchestrator.guardian.attribution import attribute, identify, sees_every_process
from orchestrator.guardian.processes import read_process
from orchestrator.guardian.tree import Forest, Tree
from tests.support.waiting import wait_for

(CARD,) = make_gpus(1, owner="attribution")


def on_card(*processes: GpuProcess) -> tuple[GpuSample, ...]:
    return (replace(CARD, processes=processes),)


def start_of(pid: int) -> int:
    process = read_process(pid)
    assert process is not None
    return process.start_ticks


def gone() -> int:
    """Return the pid of a process that has ended."""
    return int(subprocess.run(["sh", "-c", "echo $$"], stdout=subprocess.PIPE, check=True, text=True).stdout)


def nobody(pid: int, start: int) -> None:
    """Nobody's process."""


def test_a_process_is_known_by_its_start_and_its_account() -> None:
    me = os.getpid()
    (sample,) = identify(on_card(GpuProcess(me, 100), GpuProcess(gone(), 7)), pids_are_ours=True)

    assert sample.processes[0] == GpuProcess(me, 100, start_of(me), pwd.getpwuid(os.getuid()).pw_name)
    assert sample.processes[1].start_ticks is None


def test_pids_of_another_namespace_are_nobodys(tmp_path: Path) -> None:
    """A driver tells the pids of the host: in a container the same number may be anybody's."""
    (told,) = on_card(GpuProcess(os.getpid(), 100))
    assert identify([replace(told, tells_processes=True)], pids_are_ours=False) == (CARD,)
    assert not sees_every_process(tmp_path)
    assert not sees_every_process(tmp_path / "nothing")


def test_a_process_belongs_to_the_runner_in_whose_tree_it_is() -> None:
    me, parent = os.getpid(), os.getppid()
    processes = (GpuProcess(me, 100, start_of(me)), GpuProcess(parent, 50, start_of(parent)))
    runners = {(me, start_of(me)): "r7"}
    (sample,) = attribute(on_card(*processes), lambda pid, start: runners.get((pid, start)))

    assert [process.runner for process in sample.processes] == ["r7", None]


def test_a_process_that_is_gone_or_is_another_one_by_now_counts_for_nobody() -> None:
    me = os.getpid()
    there = on_card(GpuProcess(gone(), 9), GpuProcess(me, 5, start_of(me) - 1), GpuProcess(me, 5))
    assert attribute(there, nobody) == (CARD,)


def test_a_process_is_its_trees_by_any_ancestor_and_stays_so_when_it_has_lost_them() -> None:
    """Whoever was seen below a runner is known again, by pid and start, after its parents are gone."""
    forest, tree = Forest(), Tree("mark")
    command = ["sh", "-c", "sleep 60 & echo $!; wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        try:
            tree.leader, start = leader.pid, start_of(child)
            assert forest.owner(child, start, [tree]) == "mark"
            assert forest.owner(child, start + 1, [tree]) is None, "another process with its pid"
            assert forest.owner(os.getppid(), start_of(os.getppid()), [tree]) is None
            leader.kill()
            leader.wait(20)
            tree.leader = None
            assert forest.owner(child, start, [tree]) == "mark"
        finally:
            leader.kill()
            os.kill(child, signal.SIGKILL)


def test_what_processes_use_of_simulated_gpus_is_free_when_they_are_gone(tmp_path: Path) -> None:
    file = tmp_path / "gpus.toml"
    write_gpus(file, [replace(CARD, used_mib=10)])
    driver, uuid = SimulatedDriver(file), CARD.gpu.uuid
    set_use(file, {uuid: 100})
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": uuid}
    command = [sys.executable, "-m", "orchestrator.gpus.simulated_use", str(file), "500:0", "700:60"]
    with subprocess.Popen(command, env=environment) as user:
        wait_for(lambda: driver.sample()[0].used_mib == 810, within_seconds=20, describe=lambda: str(driver.sample()))
        assert set(driver.sample()[0].processes) == {GpuProcess(os.getpid(), 100), GpuProcess(user.pid, 700)}
        user.kill()
    set_use(file, {})
    assert driver.sample() == (replace(CARD, used_mib=10),)
