"""Runners of pools that sleep: their models lie in the host's memory, and their leases cover what is left on the GPU.

Whether a pool is asleep is told with each renewal. A runner without a job then puts its models to sleep; what its
processes still use of the GPU is measured, and a lease of that size takes the place of its own. To wake up it needs the
former size again, and asks for it with each renewal until there is room.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from orchestrator.domain.cluster import GpuSample
from orchestrator.domain.lease import PoolResize, Renewal
from orchestrator.worker.host import Host, Line
from orchestrator.worker.ledger import Ledger
from orchestrator.worker.lines import Lines

logger = logging.getLogger(__name__)

#: Readings of the GPUs after which one was certainly begun after the models had gone to sleep.
READINGS: Final = 2


class Sleeper:
    """Puts the runners of pools on this host to sleep and wakes them; runs in the worker's event loop."""

    ledger: Ledger  # set by the lease step

    def __init__(self, host: Host, lines: Lines) -> None:
        self._host, self._lines = host, lines
        self._slept: dict[int, int] = {}  # line -> readings to wait for

    def heed(self, renewal: Renewal) -> None:
        """Have the runners without a job follow their pools."""
        for line in self._host.lines.values():
            place, lease_id = line.pool, line.lease_id
            if place is None or place.member is None or place.leave is not None or lease_id not in renewal.live:
                continue
            if place.turning or line.jobs or line.closed:
                continue
            if lease_id in renewal.asleep and not place.asleep:
                place.turning = self._lines.turn(line, "sleep")
            elif lease_id not in renewal.asleep and place.asleep:
                place.turning = True
                self._ask(line, place.awake_mib, asleep=False)

    def on_turned(self, runner_id: str, message: Mapping[str, Any]) -> None:
        """A runner has put its models to sleep, or woken them, or could not."""
        line = next((one for one in self._host.lines.values() if self._lines.runner_id(one) == runner_id), None)
        if line is None or line.pool is None:
            return
        to, error = message.get("to"), message.get("error")
        if error is not None:
            logger.error("the models of pool runner %s cannot %s: %s", runner_id, to, error)
        if to == "sleep" and error is None:
            self._slept[line.key] = READINGS
        elif to == "sleep":
            line.pool.turning = False  # the next renewal tries again
        elif error is None:
            line.pool.turning = line.pool.asleep = False
        else:
            self._lines.end(line)

    def look(self, samples: Iterable[GpuSample]) -> None:
        """Take in a reading of the GPUs: give back what runners that sleep do not use any more."""
        by_gpu = {sample.gpu.uuid: sample for sample in samples}
        for key, readings in list(self._slept.items()):
            line = self._host.lines.get(key)
            self._slept[key] = readings - 1
            if line is not None and readings > 1:
                continue
            del self._slept[key]
            if line is not None and line.pool is not None:
                self._shrink(line, [by_gpu[uuid] for uuid in line.grant.gpus if uuid in by_gpu])

    def on_resized(
        self, asked_at: float, asked: Sequence[PoolResize], resized: Iterable[tuple[int, int | None]]
    ) -> None:
        """The database has given runners other leases, or has no room."""
        for one, (old, new) in zip(asked, resized, strict=True):
            line = next((line for line in self._host.lines.values() if line.lease_id == old and not line.closed), None)
            if line is None or line.pool is None:
                if new is not None:
                    self.ledger.add(releases=[new])  # its runner has ended meanwhile
                continue
            if new is None:
                line.pool.turning = False
                continue
            self._host.resize(line, one.grant.memory_mib or 0)
            self._lines.change_lease(line, new, asked_at)
            if one.asleep:
                logger.info("a runner sleeps, with %d MiB of its GPU, under lease %d", one.grant.memory_mib, new)
                line.pool.asleep, line.pool.turning = True, False
            elif not self._lines.turn(line, "wake"):
                self._lines.end(line)

    def _shrink(self, line: Line, samples: Sequence[GpuSample]) -> None:
        assert line.pool is not None
        before = line.grant.memory_mib or 0
        kept = sum(_used_mib(sample, self._lines.runner_id(line)) for sample in samples) or 1
        if line.jobs or not samples or kept >= before:
            logger.warning("a runner under lease %s frees nothing by sleeping: it uses %d MiB", line.lease_id, kept)
            line.pool.turning = False
            return
        line.pool.awake_mib = before
        self._ask(line, kept, asleep=True)

    def _ask(self, line: Line, memory_mib: int, *, asleep: bool) -> None:
        assert line.lease_id is not None
        grant = replace(line.grant, memory_mib=memory_mib)
        self.ledger.add(resizes=[PoolResize(line.lease_id, grant, asleep)])


def _used_mib(sample: GpuSample, runner_id: str | None) -> int:
    """Return what a runner uses of a GPU; all that is used, where the driver's processes cannot be told apart."""
    if not sample.processes:
        return sample.used_mib
    return sum(process.used_mib for process in sample.processes if process.runner == runner_id)
