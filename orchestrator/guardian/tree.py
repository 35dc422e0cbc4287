"""Which process belongs to which runner, and how to end a whole tree.

The guardian is the child subreaper, so everything that a runner ever started is below it. A process that left its
parent is still told by its session, its process group or the mark in its environment. One that left all of these
belongs to nobody, and is ended at once: no lease could account for it.
"""

import logging
import os
import signal
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from orchestrator.guardian.messages import RUNNER_ID
from orchestrator.guardian.processes import (
    Process,
    descend,
    has_environment,
    list_children,
    read_process,
    read_processes,
    read_variable,
    send_signal,
)

logger = logging.getLogger(__name__)

#: Looks at a tree in one go, each finding what was forked since the one before.
PASSES: Final = 20
CHASES: Final = 200


@dataclass(slots=True)
class Tree:
    """The processes of one runner, as far as they have been seen."""

    mark: str
    leader: int | None = None
    members: set[tuple[int, int]] = field(default_factory=set)  # pid and start ticks

    def claims(self, process: Process) -> bool:
        """The process carries one of the tree's signs, its parent aside."""
        if (process.pid, process.start_ticks) in self.members:
            return True
        return self.leader is not None and self.leader in (process.pid, process.sid, process.pgid)


class Forest:
    """The trees of all runners."""

    def __init__(self, spared: Collection[int] = ()) -> None:
        """Start empty; ``spared`` are the guardian's own helpers."""
        self.spared = set(spared)
        self._root = os.getpid()

    def is_gone(self, tree: Tree, trees: Iterable[Tree]) -> bool:
        """Nothing of a tree whose leader is gone is left.

        Looking at all of /proc proves nothing: what forks and exits is missed between two reads. But the topmost
        process of what is left is our own child, and no child leaves this list before we reap it.
        """
        by_mark = {other.mark: other for other in trees if other is not tree}
        for pid in list_children(self._root):
            if pid in self.spared:
                continue
            process = read_process(pid)
            if process is None or not process.alive or _recognise(process, by_mark) is None:
                return False
        return True

    def find(self, trees: Iterable[Tree]) -> dict[str, list[Process]]:
        """Return the living processes of every tree by its mark, and end those that belong to none."""
        by_mark = {tree.mark: tree for tree in trees}
        found: dict[str, list[Process]] = {mark: [] for mark in by_mark}
        for process, mark in self._attribute(by_mark):
            if mark is not None:
                by_mark[mark].members.add((process.pid, process.start_ticks))
                if process.alive:
                    found[mark].append(process)
            elif process.alive and process.ppid == self._root:
                logger.warning("process %d left its runner without a trace and is ended", process.pid)
                send_signal(process, signal.SIGKILL)
        return found

    def owner(self, pid: int, start_ticks: int, trees: Iterable[Tree]) -> str | None:
        """Return the mark of the tree that a process belongs to, which will know it again; None for a stranger.

        Climbs from the process to its ancestors: reading all of /proc every second would hold up deadlines.
        """
        by_mark = {tree.mark: tree for tree in trees}
        seen: set[int] = set()
        process = read_process(pid)
        if process is None or process.start_ticks != start_ticks:
            return None
        found: Process | None = process
        while found is not None and found.pid not in seen and found.pid not in (self._root, *self.spared):
            mark = _recognise(found, by_mark)
            if mark is not None:
                by_mark[mark].members.add((pid, start_ticks))
                return mark
            seen.add(found.pid)
            found = read_process(found.ppid)
        return None

    def kill(self, tree: Tree, trees: Collection[Tree]) -> None:
        """Send SIGKILL to all of a tree, until no look finds anything new."""
        signalled: set[tuple[int, int]] = set()
        for _ in range(PASSES):
            alive = self.find(trees)[tree.mark]
            fresh = [process for process in alive if (process.pid, process.start_ticks) not in signalled]
            if not fresh:
                break
            _kill_group(tree, alive)
            for process in fresh:
                send_signal(process, signal.SIGKILL)
                signalled.add((process.pid, process.start_ticks))
        self._chase(tree)

    def _chase(self, tree: Tree) -> None:
        """Kill what forks and exits faster than /proc can be read: an orphan is our own child, the newest last."""
        for _ in range(CHASES):
            for pid in reversed(list_children(self._root)):
                process = None if pid in self.spared else read_process(pid)
                if process is not None and process.alive:
                    if _recognise(process, {tree.mark: tree}) is None:
                        continue
                    send_signal(process, signal.SIGKILL)
                    break
            else:
                return

    def _attribute(self, by_mark: Mapping[str, Tree]) -> list[tuple[Process, str | None]]:
        owner_of: dict[int, str | None] = {}
        owners = []
        helpers = frozenset(self.spared)
        processes = read_processes()
        below = descend(processes, self._root, without=helpers)
        for helper in helpers:  # runners are the fork server's children; one that is unknown yet is being started
            below += descend(processes, helper, without=helpers)
        for process in below:
            mark = owner_of.get(process.ppid) or _recognise(process, by_mark)
            owner_of[process.pid] = mark
            owners.append((process, mark))
        return owners


def find_remains(marks: Collection[str]) -> list[Process]:
    """Return the living processes, wherever they are, whose environment carries one of these marks."""
    if not marks:
        return []
    return [p for p in read_processes().values() if p.alive and read_variable(p.pid, RUNNER_ID) in marks]


def find_session_remains(leader: int, start_ticks: int, marks: Collection[str]) -> list[Process]:
    """Return what lives of a runner whose guardian is gone, told by its session and process group.

    A pid is not given away while a session or group bears it. So if it is another process's now, nothing is left; if it
    is nobody's, later owners may have come and gone: only what bears the mark, or shows no environment at all, is
    taken.
    """
    processes = read_processes()
    first = processes.get(leader)
    if first is not None:
        if first.start_ticks != start_ticks:
            return []
        return [p for p in processes.values() if p.alive and leader in (p.pid, p.sid, p.pgid)]
    return [
        p
        for p in processes.values()
        if p.alive
        and leader in (p.sid, p.pgid)
        and p.start_ticks >= start_ticks
        and (read_variable(p.pid, RUNNER_ID) in marks or not has_environment(p.pid))
    ]


def _recognise(process: Process, by_mark: Mapping[str, Tree]) -> str | None:
    for tree in by_mark.values():
        if tree.claims(process):
            return tree.mark
    mark = read_variable(process.pid, RUNNER_ID)
    return mark if mark in by_mark else None


def _kill_group(tree: Tree, alive: Iterable[Process]) -> None:
    """Kill the leader's group in one call, which no fork inside it can outrun."""
    if any(process.pgid == tree.leader for process in alive) and tree.leader is not None:
        try:
            os.killpg(tree.leader, signal.SIGKILL)
        except ProcessLookupError:
            return
