"""Make sure that nothing of the guardian that had this node before is alive."""

import logging
import os
import signal
import time
from collections.abc import Iterable
from typing import Final

from orchestrator.errors import RunnerLost
from orchestrator.guardian.journal import Journal, Record
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.leftovers import kill_remains, note_cleared
from orchestrator.guardian.processes import is_alive, read_process, send_signal

logger = logging.getLogger(__name__)

PAUSE_SECONDS: Final = 0.02
#: A guardian whose worker is dead ends by itself; one that has not done so for so long is stuck, and is killed.
PATIENCE_SECONDS: Final = 3.0


def clear_predecessor(journal: Journal, *, deadline: float, patience_seconds: float) -> list[Record]:
    """Take over the journal and end every process that it says may be alive.

    Args:
        journal: The node's journal, not locked yet.
        deadline: CLOCK_BOOTTIME instant after which it is given up.
        patience_seconds: What outlives KILL for so long is left alone.

    Returns:
        What is known of the runners of which something is alive all the same.

    Raises:
        RunnerLost: If another worker has this node.
    """
    _take_over(journal, deadline)
    ended: set[tuple[int, int]] = set()
    unfinished = find_unfinished(journal.read())
    until = min(deadline, boottime() + patience_seconds)
    while remains := kill_remains(unfinished):
        ended.update((process.pid, process.start_ticks) for process in remains)
        if boottime() > until:
            break
        time.sleep(PAUSE_SECONDS)
    stuck = [record for record in unfinished if kill_remains([record])] if remains else []
    for record in unfinished:
        if record not in stuck:
            note_cleared(journal, record)
    if len(ended) > len(remains):
        logger.warning("ended %d processes that an earlier guardian left behind", len(ended) - len(remains))
    for record in stuck:
        logger.error("runner %s of an earlier guardian cannot be ended; its GPUs stay locked", record["runner"])
    return stuck


def find_unfinished(records: Iterable[Record]) -> list[Record]:
    """Return, of every runner without an end, all that is known about it."""
    unfinished: dict[str, Record] = {}
    for record in records:
        if record["op"] in ("spawn", "began"):
            unfinished[record["mark"]] = unfinished.get(record["mark"], {}) | record
        elif record["op"] == "exit":
            unfinished.pop(record["mark"], None)
    return list(unfinished.values())


def _take_over(journal: Journal, deadline: float) -> None:
    waiting_since = boottime()
    while not journal.try_lock():
        starts = [record for record in journal.read() if record["op"] == "start"]
        if starts:
            _judge(starts[-1], boottime() - waiting_since)
        if boottime() > deadline:
            raise RunnerLost(f"{journal.path} is locked, and no worker is known to use it")
        time.sleep(PAUSE_SECONDS)


def _judge(start: Record, waited: float) -> None:
    if is_alive(start["worker"], start["worker_start_ticks"]):
        raise RunnerLost(f"the worker with pid {start['worker']} runs under this node's name")
    guardian = read_process(start["pid"])
    if waited > PATIENCE_SECONDS and guardian is not None and guardian.start_ticks == start["start_ticks"]:
        logger.warning("guardian %d outlived its worker and is killed", guardian.pid)
        send_signal(guardian, signal.SIGKILL)


def own_start(worker: int) -> Record:
    """Return what the ``start`` record says about this process and its worker."""
    mine, theirs = read_process(os.getpid()), read_process(worker)
    if mine is None or theirs is None:
        raise RunnerLost(f"the worker with pid {worker} is gone")
    return {
        "pid": mine.pid,
        "start_ticks": mine.start_ticks,
        "worker": worker,
        "worker_start_ticks": theirs.start_ticks,
    }
