"""How many more jobs this host could use, and how many it lets be delivered."""

from typing import Final

from orchestrator.worker.duty import Duty
from orchestrator.worker.host import Host
from orchestrator.worker.pace import Pace

#: Jobs that may wait here even when nothing is free.
LEAST_HELD: Final = 16


class Appetite:
    """What is free here, and what will be before long."""

    def __init__(self, host: Host, pace: Pace, duty: Duty) -> None:
        self._host, self._pace, self._duty = host, pace, duty

    def wanted(self) -> int:
        """Return how many more entries this host could use now."""
        return max(0, self._capacity() - self._host.waiting_count) if self._duty.accepting else 0

    def credit(self) -> int:
        """Return how many entries may be delivered: some more than fit, so that a large job hides no small one."""
        held = max(LEAST_HELD, self._capacity())
        return max(0, held - self._host.waiting_count) if self._duty.accepting else 0

    def asks_now(self) -> bool:
        """Tell whether it is time to ask for more: many at a time, as each asking costs a look at the whole host."""
        wanted = self.wanted()
        return wanted > self._pace.look_ahead() // 2 or (wanted > 0 and not self._host.waiting_count)

    def _capacity(self) -> int:
        host = self._host
        return host.free_gpus() + host.free_pool_lines() + host.free_cpu_slots() + self._pace.look_ahead()
