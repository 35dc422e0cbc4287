"""The consumer bootstep that no GPU task gets round: it holds each one until the database has granted it a lease.

A thin adapter between Celery's consumer and the dispatcher. It replaces ``consumer.on_task_request`` in ``__init__``,
before Celery builds its strategies: immediate, ETA and rate-limited requests all end there. ``start`` and ``stop``
run again at every reconnect; what is held and what runs outlives them.
"""

import logging
import os
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from celery import bootsteps
from celery.apps.worker import install_worker_term_hard_handler
from celery.signals import task_revoked, task_unknown, worker_shutting_down
from kombu.asynchronous import get_event_loop
from kombu.common import ignore_errors

from orchestrator.config import Settings
from orchestrator.domain.cluster import GpuRecord, GpuSample, NodeState
from orchestrator.domain.lease import LedgerBatch, LedgerOutcome
from orchestrator.errors import UnknownJob
from orchestrator.observe import logs, traces
from orchestrator.ports import NodeRecord
from orchestrator.runtime import Runtime
from orchestrator.services.refill import Refill
from orchestrator.worker.busy import take_measured
from orchestrator.worker.dispatch import Dispatcher
from orchestrator.worker.gpu_task import GPUTask
from orchestrator.worker.ledger import Ledger
from orchestrator.worker.pool import RunnerPool
from orchestrator.worker.refiller import Refiller
from orchestrator.worker.requests import HEADER
from orchestrator.worker.results import ResultWriter
from orchestrator.worker.untold import Untold

logger = logging.getLogger(__name__)

FLUSH_INTERVAL: Final = 0.25
LOOK_INTERVAL: Final = 0.25
HEARTBEAT_INTERVAL: Final = 2.0
#: Celery's task events are published together, at most so many seconds after the first of them: a round trip to the
#: server in the event loop, that no job is to wait for.
EVENTS_INTERVAL: Final = 0.05
STOP_DEADLINE: Final = 10.0


class LeaseStep(bootsteps.StartStopStep):
    """Holds GPU tasks until they are leased."""

    label = "Leases"

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        consumer.lease_step = self
        self._execute: Callable[[Any], None] = consumer.on_task_request
        self._timers: list[Any] = []
        self._runtime: Runtime = consumer.app.orchestrator_runtime()
        self._gpu_queues = frozenset(self._runtime.settings.queues)
        self._dispatcher: Dispatcher | None = None
        self._listener: Any = None
        self._plain_held = False
        self._events_due = False
        self._exporter = traces.Exporter(None)
        if not isinstance(consumer.pool, RunnerPool):
            self._refuse_gpu_queues(consumer)
            return
        self._pool = pool = consumer.pool
        results = ResultWriter(consumer.app.backend)
        dispatcher = Dispatcher(pool, self._runtime, results=results, execute=self._execute)
        dispatcher.ledger = self._make_ledger(consumer, dispatcher, results)
        dispatcher.sleeper.ledger = dispatcher.ledger
        dispatcher.care.on_change = lambda: self._heartbeat(dispatcher)
        dispatcher.care.lending.confirm = lambda lease_id, refusal: dispatcher.ledger.run_errand(
            partial(self._runtime.leases.confirm, lease_id, refusal)
        )
        dispatcher.care.note = lambda note: dispatcher.ledger.add(notes=[note])
        dispatcher.untold = Untold(consumer.app)
        dispatcher.refiller = Refiller(Refill(self._runtime, self._runtime.settings.node))
        dispatcher.on_new_gpus = lambda: self._register(consumer, dispatcher)
        pool.jobs = self._dispatcher = dispatcher
        consumer.on_task_request = self._gate(dispatcher)
        consumer.on_send_event_buffered = partial(self._publish_events_soon, consumer)
        consumer.cancel_active_requests = partial(_cancel_at_the_end, pool, consumer.cancel_active_requests)

    def start(self, consumer: Any) -> None:
        """Start the ledger thread, once; it outlives reconnects."""
        dispatcher = self._dispatcher
        if dispatcher is None:
            return
        if not dispatcher.ledger.is_alive():
            self._runtime.cluster.ensure_queues(sorted(self._gpu_queues))
            dispatcher.care.recall(self._runtime.cluster.gpu_standings(self._runtime.settings.node))
            task_revoked.connect(self._on_revoked, weak=False)
            task_unknown.connect(self._on_unknown, weak=False)
            worker_shutting_down.connect(partial(_make_next_term_cold, consumer.controller), weak=False)
            node = self._runtime.settings.node
            self._exporter = traces.set_up(self._runtime.settings.traces, host=node, process="worker")
            dispatcher.ledger.start()
            dispatcher.refiller.start()
            self._listener = self._runtime.wake.listen(lambda kind, data: self._on_wake(dispatcher, kind, data))

    def register_with_event_loop(self, consumer: Any, hub: Any) -> None:
        """Work in this event loop; called at every (re)connect, when Celery has emptied the old one's timers."""
        self._plain_held = False  # a new connection's queues have no credit that limits them
        self._events_due = False
        dispatcher = self._dispatcher
        if dispatcher is None:
            return
        for timer in self._timers:
            timer.cancel()
        settings = self._runtime.settings
        self._timers = [
            hub.call_repeatedly(FLUSH_INTERVAL, dispatcher.flush),
            hub.call_repeatedly(LOOK_INTERVAL, dispatcher.look_after),
            hub.call_repeatedly(settings.lease_ttl / 3, lambda: self._renew(dispatcher)),
            hub.call_repeatedly(HEARTBEAT_INTERVAL, lambda: self._heartbeat(dispatcher)),
        ]
        tick = lambda: self._tick(consumer, dispatcher)  # noqa: E731 - kept for identity: on_tick is a set
        hub.on_tick.discard(getattr(self, "_tick_callback", None))
        self._tick_callback = tick
        hub.on_tick.add(tick)
        consumer.connection.transport.after_read = dispatcher.tick  # claims what was delivered

    def stop(self, consumer: Any) -> None:
        """Nothing: the connection is lost or the worker stops; jobs go on either way."""

    def shutdown(self, consumer: Any) -> None:
        """The pool has ended: commit what is left and leave the cluster."""
        dispatcher = self._dispatcher
        if dispatcher is None:
            return
        ignore_errors(consumer, consumer._flush_events)
        dispatcher.refiller.stop()
        dispatcher.abandon()
        if self._listener is not None:
            self._listener.stop()
        if dispatcher.ledger.is_alive() and not dispatcher.ledger.stop(STOP_DEADLINE):
            logger.error("the database did not take the last results in time; their leases will expire")
        dispatcher.untold.stop()
        self._exporter.close()
        self._runtime.cluster.deregister_node(self._runtime.settings.node, os.getpid())

    def info(self, consumer: Any) -> dict[str, Any]:
        """Add leases and GPUs to ``inspect stats`` and Flower's worker page."""
        dispatcher = self._dispatcher
        if dispatcher is None:
            return {}
        gpus = [
            {
                "uuid": sample.gpu.uuid,
                "model": sample.gpu.model,
                "used_mib": sample.used_mib,
                "health": sample.health.value,
            }
            for sample in dispatcher.care.samples
        ]
        # Told over Redis: while the database does not answer, this is where a host says so besides its log.
        degraded = dispatcher.ledger.degraded
        leases = dispatcher.lines.lease_ids()
        node = self._runtime.settings.node
        return {"orchestrator": {"node": node, "degraded": degraded, "leases": leases, "gpus": gpus}}

    def _gate(self, dispatcher: Dispatcher) -> Callable[[Any], None]:
        execute = self._execute

        def on_task_request(request: Any) -> None:
            if isinstance(request.task, GPUTask):
                dispatcher.offer(request)
            else:
                execute(request)

        return on_task_request

    def _make_ledger(self, consumer: Any, dispatcher: Dispatcher, results: ResultWriter) -> Ledger:
        runtime = self._runtime
        settings = runtime.settings

        def before_outcome(batch: LedgerBatch, outcome: LedgerOutcome) -> None:
            results.write(batch.finishes, outcome.stale)

        def post(call: Callable[[], None]) -> None:
            hub = get_event_loop() or consumer.hub
            hub.call_soon(call)

        return Ledger(
            store=runtime.ledger,
            cluster=runtime.cluster,
            node=settings.node,
            ttl=settings.lease_ttl_delta,
            clock=runtime.clock,
            listener=dispatcher,
            post=post,
            before_outcome=before_outcome,
        )

    def _register(self, consumer: Any, dispatcher: Dispatcher) -> None:
        settings = self._runtime.settings
        gpus = tuple(_gpu_record(sample, settings) for sample in dispatcher.care.samples)
        record = NodeRecord(
            name=settings.node,
            boot_id=_boot_id(),
            worker=consumer.hostname,
            pid=os.getpid(),
            state=NodeState.UP,
            queues=tuple(sorted(self._consumed(consumer))),
            cpu_slots=consumer.pool.limit or 1,
            look_ahead=0,
            heartbeat_at=self._runtime.clock.now(),
            live=True,
            gpus=gpus,
            tasks=tuple(sorted(name for name in consumer.app.tasks if not name.startswith("celery."))),
            labels=settings.labels,
            cpus=settings.cpus,
            memory_mib=settings.memory_mib,
        )
        dispatcher.ledger.register(record)

    def _consumed(self, consumer: Any) -> frozenset[str]:
        return self._gpu_queues.intersection(consumer.app.amqp.queues.consume_from)

    def _tick(self, consumer: Any, dispatcher: Dispatcher) -> None:
        dispatcher.tick()
        connection = consumer.connection
        if connection is not None:
            credit = dispatcher.appetite.credit()
            for queue in self._consumed(consumer):
                connection.transport.set_credit(queue, credit)
            self._hold_plain_queues(consumer, hold=dispatcher.duty.draining)

    def _hold_plain_queues(self, consumer: Any, *, hold: bool) -> None:
        """While the host drains, plain tasks are left to other workers too."""
        if hold != self._plain_held:
            self._plain_held = hold
            for queue in set(consumer.app.amqp.queues.consume_from) - self._gpu_queues:
                consumer.connection.transport.set_credit(queue, 0 if hold else None)

    def _publish_events_soon(self, consumer: Any) -> None:
        if not self._events_due:
            self._events_due = True
            consumer.hub.call_later(EVENTS_INTERVAL, self._publish_events, consumer)

    def _publish_events(self, consumer: Any) -> None:
        self._events_due = False
        consumer._flush_events()

    def _renew(self, dispatcher: Dispatcher) -> None:
        lease_ids = dispatcher.lines.lease_ids()
        if lease_ids:
            dispatcher.ledger.renew(lease_ids, take_measured(dispatcher.lines.works()))

    def _heartbeat(self, dispatcher: Dispatcher) -> None:
        settled = dispatcher.duty.draining and not self._pool.unsettled()
        dispatcher.ledger.heartbeat(
            dispatcher.care.samples,
            look_ahead=dispatcher.pace.look_ahead(),
            standings=dispatcher.care.standings(),
            settled=settled,
        )

    def _on_wake(self, dispatcher: Dispatcher, kind: str, data: Mapping[str, Any]) -> None:
        hub = get_event_loop()
        if hub is None:
            return
        if kind == "cancel" and isinstance(data.get("job_id"), str):
            hub.call_soon(dispatcher.cancel, data["job_id"])
        elif kind in ("drain", "lend") and data.get("node") == self._runtime.settings.node:
            hub.call_soon(self._heartbeat, dispatcher)  # its answer says what the host is to do
        elif kind == "leave":
            hub.call_soon(self._renew, dispatcher)  # its answer says which runners are to leave their pools

    def _on_revoked(self, sender: Any = None, request: Any = None, terminated: bool = False, **_: Any) -> None:
        """Celery dropped a revoked task before it came to the gate: the job must not come back with its next entry."""
        dispatcher = self._dispatcher
        if dispatcher is not None and isinstance(sender, GPUTask) and not terminated:
            dispatcher.ledger.run_errand(partial(self._cancel, request.id, "revoked"))

    def _on_unknown(self, sender: Any = None, name: str = "", id: str = "", message: Any = None, **_: Any) -> None:
        """No task of this name is registered here: Celery dropped the entry, and its job must not wait for ever."""
        if self._dispatcher is not None and message is not None and HEADER in message.headers:
            node, reason = self._runtime.settings.node, f"the worker's app has no task {name!r}"
            self._dispatcher.ledger.run_errand(partial(self._runtime.letters.bury, id, by=node, reason=reason))

    def _cancel(self, job_id: str, reason: str) -> None:
        try:
            self._runtime.jobs.request_cancel(job_id, by="celery", reason=reason)
        except UnknownJob:
            logger.info("task %s, %s, has no job", job_id, reason, extra=logs.about(job_id=job_id))

    def _refuse_gpu_queues(self, consumer: Any) -> None:
        taken = sorted(self._consumed(consumer))
        if taken:
            logger.critical(
                "this worker takes nothing from %s: pool %s cannot give a job its own GPUs; start it with "
                "-P orchestrator.worker.pool:RunnerPool, or without -P",
                ", ".join(taken),
                type(consumer.pool).__module__,
            )
            consumer.app.amqp.queues.deselect(taken)
        execute = self._execute

        def on_task_request(request: Any) -> None:
            if isinstance(request.task, GPUTask):
                about = logs.about(job_id=request.id)
                logger.error("GPU task %s came through another queue; it is put back", request.id, extra=about)
                request.reject(requeue=True)
            else:
                execute(request)

        consumer.on_task_request = on_task_request


def _cancel_at_the_end(pool: RunnerPool, cancel_active_requests: Callable[[], None]) -> None:
    """A cold shutdown cancels each request, as revoking does; but these jobs are to run again."""
    pool.end_at_once()
    cancel_active_requests()


def _make_next_term_cold(worker: Any, sig: str = "", how: str = "", **_: Any) -> None:
    """Whoever sends TERM twice does not want to wait; Celery alone would let the second one pass without effect."""
    if (sig, how) == ("SIGTERM", "Warm"):
        install_worker_term_hard_handler(worker, sig="SIGTERM")


def _gpu_record(sample: GpuSample, settings: Settings) -> GpuRecord:
    return GpuRecord(
        gpu=sample.gpu,
        node=settings.node,
        health=sample.health,
        used_mib=sample.used_mib,
        reserved_mib=0,
        exclusive_lease_id=None,
        utilization_percent=sample.utilization_percent,
        temperature_celsius=sample.temperature_celsius,
        power_watts=sample.power_watts,
        foreign=sample.foreign,
        headroom_mib=settings.gpu_headroom_mib,
    )


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else socket.gethostname()
