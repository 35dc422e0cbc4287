"""What every process is made of: its settings, its clock and the outside world behind the ports."""

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.access_ports import AccessStore
from orchestrator.clock import Clock
from orchestrator.config import Settings
from orchestrator.control_ports import JobControl, JobPurge, PolicyStore, QueueControl
from orchestrator.dead_letter_ports import DeadLetterStore
from orchestrator.event_ports import EventStore
from orchestrator.leader_ports import Leadership, SweepLog
from orchestrator.lease_ports import AdHocLeases
from orchestrator.metric_ports import JobTimes, StreamGauge, Tallies
from orchestrator.pool_ports import PoolStore
from orchestrator.ports import AdmissionStore, ClusterStore, JobStore, LedgerStore, UsageStore
from orchestrator.schedule_ports import Firings
from orchestrator.stream_ports import StreamPublisher, Wake


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
    firings: Firings
    usage: UsageStore
    letters: DeadLetterStore
    control: JobControl
    purges: JobPurge
    queues: QueueControl
    policy: PolicyStore
    events: EventStore
    sweep_log: SweepLog
    access: AccessStore
    times: JobTimes
    tallies: Tallies
    leases: AdHocLeases
    pools: PoolStore
    publisher: StreamPublisher
    streams: StreamGauge
    wake: Wake
    close: Callable[[], None]
