"""What every process is made of: its settings, its clock and the outside world behind the ports."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.ports import (
    AccessStore,
    AdmissionStore,
    ClusterStore,
    JobStore,
    Leadership,
    LedgerStore,
    StreamPublisher,
    UsageStore,
    Wake,
)


@dataclass(frozen=True, slots=True)
class Runtime:
    """Built once a process by ``bootstrap.open_runtime``; tests build it from fakes."""

    settings: Settings
    clock: Clock
    jobs: JobStore
    ledger: LedgerStore
    cluster: ClusterStore
    admission: AdmissionStore
    leadership: Leadership
    usage: UsageStore
    access: AccessStore
    publisher: StreamPublisher
    wake: Wake
    close: Callable[[], None]
