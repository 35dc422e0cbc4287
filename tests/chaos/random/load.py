"""The jobs of a randomized run: who submits them, and how each may end."""

import collections
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.client import Client, RemoteError
from orchestrator.domain.job import JobState
from orchestrator.domain.request import CommandRequest, Request, TaskRequest
from orchestrator.errors import Unavailable
from orchestrator.services.cancel import CancelService
from tests.chaos.random.plan import Wish
from tests.chaos.support import FaultCluster
from tests.support.cluster import DUMP

#: How a job of a kind may end, whatever dies around it; every other kind succeeds.
MAY_END: Final[Mapping[str, frozenset[JobState]]] = {
    "fails": frozenset({JobState.FAILED}),
    "fails_twice": frozenset({JobState.FAILED}),
    "cancelled": frozenset({JobState.CANCELLED, JobState.SUCCEEDED}),
}
SUCCEEDS: Final = frozenset({JobState.SUCCEEDED})
SHARE_MIB: Final = 6000
PAUSE_SECONDS: Final = 0.3
#: What a submit or cancel that does not come through is repeated for.
PATIENCE_SECONDS: Final = 180.0


@dataclass
class Acknowledged:
    """What submitters were told, and what was cancelled; shared between their threads."""

    kinds: dict[str, str] = field(default_factory=dict)  # job id -> kind
    cancels: set[str] = field(default_factory=set)  # ids whose cancel was acknowledged before they ended
    repeats: collections.Counter[str] = field(default_factory=collections.Counter)  # by the error's name
    given_up: list[str] = field(default_factory=list)  # keys


def request_of(cluster: FaultCluster, wish: Wish) -> Request:
    """Return the request of a wish."""
    common: dict[str, Any] = {"key": wish.key, "name": wish.kind}
    if wish.kind in ("command", "shared", "long", "cancelled"):
        size: dict[str, Any] = {"gpu_memory_mib": SHARE_MIB} if wish.kind == "shared" else {"gpus": wish.gpus}
        argv = (*DUMP, str(cluster.dumps), f"{wish.seconds:.3f}")
        return CommandRequest(argv=argv, cwd=str(cluster.home), **size, **common)
    if wish.kind in ("cpu", "fails", "fails_twice"):
        code = 0 if wish.kind == "cpu" else 3
        argv = ("sh", "-c", f"sleep {wish.seconds:.3f}; exit {code}")
        attempts = 2 if wish.kind == "fails_twice" else 1
        return CommandRequest(argv=argv, cwd=str(cluster.home), gpus=wish.gpus, max_attempts=attempts, **common)
    if wish.kind == "sum":
        return TaskRequest(task="t.add", args=(1, 2), gpus=0, **common)
    if wish.kind == "flaky":
        return TaskRequest(task="t.flaky", args=(str(cluster.home / f"{wish.key}.tries"),), gpus=1, **common)
    return TaskRequest(task="t.dumped", args=(round(wish.seconds, 3),), gpus=1, **common)


def document_of(request: Request) -> dict[str, Any]:
    """Return the request as the API takes it."""
    common = {"key": request.key, "name": request.name, "gpus": request.gpus, "max_attempts": request.max_attempts}
    if request.gpu_memory_mib is not None:
        common["gpu_memory"] = request.gpu_memory_mib
    if isinstance(request, CommandRequest):
        common |= {"argv": list(request.argv), "cwd": request.cwd}
    else:
        common |= {"task": request.task, "args": list(request.args)}
    return {name: value for name, value in common.items() if value is not None}


class Submitter(threading.Thread):
    """Submits wishes at their instants, each until it is acknowledged, and cancels what is to be cancelled."""

    def __init__(self, cluster: FaultCluster, api_url: str, wishes: Iterable[Wish], told: Acknowledged) -> None:
        super().__init__(daemon=True)
        self._cluster, self._wishes, self._told = cluster, list(wishes), told
        self._client = Client(api_url, cluster.token, timeout_seconds=10)
        self._cancel = CancelService(cluster.runtime)
        self._began = time.monotonic()
        self._over = threading.Event()
        self.is_done = False  # it ended in the orderly way, by no error of its own

    def stop(self) -> None:
        """Begin no further wish."""
        self._over.set()

    def run(self) -> None:
        """Submit until all is submitted, or stopped."""
        for wish in self._wishes:
            if self._over.wait(max(0.0, self._began + wish.at - time.monotonic())):
                break
            self._fulfil(wish)
        self._client.close()
        self.is_done = True

    def _fulfil(self, wish: Wish) -> None:
        request = request_of(self._cluster, wish)
        job_id = self._insist(wish.key, lambda: self._submit(request, by_api=wish.by_api))
        if job_id is None:
            return
        self._told.kinds[job_id] = wish.kind
        if wish.cancel_after is not None:
            self._over.wait(wish.cancel_after)
            self._insist(wish.key, lambda: self._end(job_id, by_api=wish.by_api))

    def _submit(self, request: Request, *, by_api: bool) -> str:
        if by_api:
            return str(self._client.submit(document_of(request))["id"])
        return self._cluster.submit(request)[0]

    def _end(self, job_id: str, *, by_api: bool) -> str:
        if by_api:
            self._client.cancel(job_id)
        else:
            self._cancel.cancel(job_id, by="chaos")
        self._told.cancels.add(job_id)
        return job_id

    def _insist(self, key: str, call: Any) -> str | None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                return str(call())
            except Unavailable as error:
                self._told.repeats[type(error).__name__] += 1
            except RemoteError as error:
                if error.document.get("status") not in (429, 503):
                    raise
                self._told.repeats[f"HTTP {error.document['status']}"] += 1
            time.sleep(PAUSE_SECONDS)
        self._told.given_up.append(key)
        return None
