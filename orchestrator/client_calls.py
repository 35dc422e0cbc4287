"""The operations of the HTTP API, each as one method: what ``Client`` and ``AsyncClient`` have in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

from orchestrator.errors import InvalidRequest

#: A lease is answered when its host has cleared the GPUs; the API gives up before this.
HANDOVER_SECONDS: Final = 60.0
#: What a method returns: a document, or for the asynchronous client what to await for one.
DocumentT = TypeVar("DocumentT")
#: Likewise a list of documents.
ListT = TypeVar("ListT")


#: Orders of a pool that bring nothing with them.
BARE_ORDERS: Final = frozenset({"sleep", "wake", "drain", "stop"})


class Calls(ABC, Generic[DocumentT, ListT]):
    """A method for each operation."""

    def submit(self, job: Mapping[str, Any]) -> DocumentT:
        """Submit a job: ``{"argv": […]}`` or ``{"task": …}`` with the options of ``POST /jobs/submit``."""
        return self._document("POST", "/jobs/submit", json=dict(job))

    def submit_many(self, jobs: Sequence[Mapping[str, Any]]) -> ListT:
        """Submit several jobs, all or none."""
        return self._list("POST", "/jobs/submit", json=[dict(job) for job in jobs])

    def job(self, job_id: str) -> DocumentT:
        """Return a job with its attempts."""
        return self._document("GET", f"/jobs/{_path(job_id)}")

    def jobs(self, **filters: Any) -> DocumentT:
        """Return a page of jobs, newest first; see ``GET /jobs`` for the filters."""
        return self._document("GET", "/jobs", params={k: v for k, v in filters.items() if v is not None})

    def cancel(self, job_id: str) -> DocumentT:
        """Cancel a job."""
        return self._document("POST", f"/jobs/{_path(job_id)}/cancel", repeatable=True)

    def cancel_canvas(self, *, tree: str | None = None, group: str | None = None) -> DocumentT:
        """Cancel every job of a canvas, named by any of them, or of one group."""
        body = {name: value for name, value in (("tree", tree), ("group", group)) if value is not None}
        return self._document("POST", "/jobs/cancel", repeatable=True, json=body)

    def order_jobs(self, order: str, job_ids: Sequence[str], *, priority: int | None = None) -> ListT:
        """Change the ``priority`` of jobs that do not run, ``hold``, ``release`` or ``retry`` them; tell of each."""
        body = {"order": order, "ids": list(job_ids)} | ({} if priority is None else {"priority": priority})
        return self._list("POST", "/jobs/orders", of="results", repeatable=order != "retry", json=body)

    def why(self, job_id: str) -> DocumentT:
        """Return why a job waits."""
        return self._document("GET", f"/jobs/{_path(job_id)}/why")

    def events(self, job_id: str) -> ListT:
        """Return a job's history."""
        return self._list("GET", f"/jobs/{_path(job_id)}/events", of="events")

    def event_page(
        self, job_id: str | None = None, *, after: int = 0, wait_seconds: float = 0, **more: int
    ) -> DocumentT:
        """Return a page of the history of a job, or of everything; ``next`` is where the following one begins."""
        path = "/events" if job_id is None else f"/jobs/{_path(job_id)}/events"
        return self._document("GET", path, params={"after": after, "wait": wait_seconds, **more})

    def grant_lease(self, lease: Mapping[str, Any], *, key: str | None = None) -> DocumentT:
        """Lease GPUs without a job: the options of ``POST /leases``; the answer has the token."""
        headers = {} if key is None else {"Idempotency-Key": key}
        waits = lease.get("wait_seconds")
        bound = HANDOVER_SECONDS + (waits if isinstance(waits, int | float) else 0.0)
        return self._document("POST", "/leases", json=dict(lease), headers=headers, timeout=bound)

    def renew_lease(self, token: str) -> DocumentT:
        """Extend a lease by its TTL."""
        return self._document("POST", f"/leases/{_token_path(token)}/heartbeat", repeatable=True)

    def release_lease(self, token: str) -> DocumentT:
        """End a lease, named by its token, or by an operator by its number."""
        return self._document("POST", f"/leases/{_token_path(token)}/release", repeatable=True)

    def leases(self, **filters: Any) -> DocumentT:
        """Return a page of leases without a job, newest first; see ``GET /leases``."""
        return self._document("GET", "/leases", params={k: v for k, v in filters.items() if v is not None})

    def start_pool(self, pool: Mapping[str, Any]) -> DocumentT:
        """Start a worker pool: the options of ``POST /pools``."""
        return self._document("POST", "/pools", repeatable=True, json=dict(pool))

    def pools(self) -> ListT:
        """Return the worker pools."""
        return self._list("GET", "/pools", of="pools")

    def pool(self, name: str) -> DocumentT:
        """Return a worker pool with its runners and loads."""
        return self._document("GET", f"/pools/{_name_path(name)}")

    def order_pool(
        self, name: str, order: str, changes: Mapping[str, Any] | None = None, *, version: int | None = None
    ) -> DocumentT:
        """``scale``, ``preload``, ``swap``, ``sleep``, ``wake``, ``drain`` or ``stop`` a pool.

        The first three take a version.
        """
        if version is not None and order in BARE_ORDERS:
            raise InvalidRequest(f"{order} takes no version: it says what is to be, whatever was before")
        path = f"/pools/{_name_path(name)}/{_name_path(order)}"
        more: dict[str, Any] = {} if order in BARE_ORDERS else {"json": dict(changes or {})}
        return self._document("POST", path, repeatable=True, **more, **_if_match(version))

    def order_pools(self, order: str) -> ListT:
        """``stop``, ``drain``, ``sleep`` or ``wake`` every pool; return those that took the order."""
        return self._list("POST", "/pools/orders", of="pools", repeatable=True, json={"order": order})

    def remove_pool(self, name: str) -> DocumentT:
        """Forget a worker pool that has stopped."""
        return self._document("DELETE", f"/pools/{_name_path(name)}")

    def order_gpu(self, uuid: str, action: str) -> DocumentT:
        """Quarantine, release or reset a GPU and return it."""
        return self._document("POST", f"/gpus/{_path(uuid)}/{action}", repeatable=action == "quarantine")

    def usage(self, **window: Any) -> DocumentT:
        """Return GPU-seconds by tenant, user, job, queue, node or gpu; see ``GET /usage``."""
        return self._document("GET", "/usage", params={k: v for k, v in window.items() if v is not None})

    def dead_letters(self, **filters: Any) -> DocumentT:
        """Return a page of dead letters, the newest job first; see ``GET /dlq`` for the filters."""
        return self._document("GET", "/dlq", params={k: v for k, v in filters.items() if v is not None})

    def dead_letter(self, job_id: str) -> DocumentT:
        """Return one dead letter."""
        return self._document("GET", f"/dlq/{_path(job_id)}")

    def retry_dead_letter(self, job_id: str) -> DocumentT:
        """Try a job again with all its attempts."""
        return self._document("POST", f"/dlq/{_path(job_id)}/retry", repeatable=True)

    def retry_dead_letters(self, **filters: Any) -> DocumentT:
        """Try up to 500 dead letters again; the answer says which, and whether there are more."""
        return self._document("POST", "/dlq/retry", json={k: v for k, v in filters.items() if v is not None})

    def purge_dead_letters(self, **filters: Any) -> DocumentT:
        """Dismiss up to 500 dead letters; the answer says which, and whether there are more."""
        return self._document("POST", "/dlq/purge", json={k: v for k, v in filters.items() if v is not None})

    def purge_dead_letter(self, job_id: str) -> DocumentT:
        """Dismiss a dead letter."""
        return self._document("DELETE", f"/dlq/{_path(job_id)}")

    def logs(self, job_id: str, *, after: str | None = None, wait_seconds: float = 0, **more: int | None) -> DocumentT:
        """Return output after a cursor, or its last lines: ``limit``, ``tail``, ``attempt`` of ``GET /jobs/…/logs``."""
        params: dict[str, Any] = {"wait": wait_seconds} | ({"after": after} if after else {})
        params |= {name: value for name, value in more.items() if value is not None}
        return self._document("GET", f"/jobs/{_path(job_id)}/logs", params=params)

    def nodes(self) -> ListT:
        """Return the hosts."""
        return self._list("GET", "/nodes", of="nodes")

    def set_drain(self, node: str, *, drain: bool) -> DocumentT:
        """Have a host take nothing new, or take jobs again."""
        verb = "drain" if drain else "undrain"
        return self._document("POST", f"/nodes/{_name_path(node)}/{verb}", repeatable=True)

    def gpus(self) -> ListT:
        """Return the GPUs of all hosts."""
        return self._list("GET", "/gpus", of="gpus")

    def queues(self) -> ListT:
        """Return the queues."""
        return self._list("GET", "/queues", of="queues")

    def queue(self, name: str) -> DocumentT:
        """Return a queue."""
        return self._document("GET", f"/queues/{_name_path(name)}")

    def set_paused(self, name: str, *, paused: bool) -> DocumentT:
        """Have no job of a queue start, or let them start again."""
        verb = "pause" if paused else "resume"
        return self._document("POST", f"/queues/{_name_path(name)}/{verb}", repeatable=True)

    def set_queue(self, name: str, changes: Mapping[str, Any], *, version: int | None = None) -> DocumentT:
        """Change a queue's limits: ``most_running``, ``time_limit``; None lifts one.

        Here and elsewhere ``version`` is the one that was read: ``StaleVersion`` if there is another by now.
        """
        path = f"/queues/{_name_path(name)}"
        return self._document("PATCH", path, repeatable=True, json=dict(changes), **_if_match(version))

    def policy(self) -> DocumentT:
        """Return what operators set for the whole installation."""
        return self._document("GET", "/policy")

    def set_policy(self, changes: Mapping[str, Any], *, version: int | None = None) -> DocumentT:
        """Change what holds for the whole installation."""
        return self._document("PATCH", "/policy", repeatable=True, json=dict(changes), **_if_match(version))

    def whoami(self) -> DocumentT:
        """Return whom the token stands for."""
        return self._document("GET", "/whoami")

    def audit(self, **window: int | None) -> DocumentT:
        """Return a page of what was changed, newest first: ``limit``, ``cursor``."""
        return self._document("GET", "/audit", params={k: v for k, v in window.items() if v is not None})

    def tokens(self) -> ListT:
        """Return the tokens, without their secrets."""
        return self._list("GET", "/tokens", of="tokens")

    def create_token(self, token: Mapping[str, Any]) -> DocumentT:
        """Make a token: the options of ``POST /tokens``; the answer has the secret."""
        return self._document("POST", "/tokens", json=dict(token))

    def revoke_token(self, name: str) -> DocumentT:
        """End a token."""
        return self._document("DELETE", f"/tokens/{_name_path(name)}")

    def tenants(self) -> ListT:
        """Return the tenants that have jobs or tokens."""
        return self._list("GET", "/tenants", of="tenants")

    def cluster(self) -> DocumentT:
        """Return what the installation is made of."""
        return self._document("GET", "/cluster")

    def sweeps(self) -> ListT:
        """Return the leader's sweeps and what they did."""
        return self._list("GET", "/control/sweeps", of="sweeps")

    def sweep(self, name: str) -> DocumentT:
        """Run one pass of a sweep."""
        return self._document("POST", f"/control/sweeps/{_name_path(name)}", repeatable=True)

    def reclaim(self) -> DocumentT:
        """Run every sweep that gives work back."""
        return self._document("POST", "/control/reclaim", repeatable=True)

    def depose_leader(self) -> DocumentT:
        """End the leader's term, so that another beat leads."""
        return self._document("POST", "/control/depose")

    def purge_jobs(self, older_than_seconds: float, *, dry_run: bool = False) -> DocumentT:
        """Delete up to 500 jobs that ended longer ago, or count all; the answer says whether there are more."""
        body = {"older_than_seconds": older_than_seconds, "dry_run": dry_run}
        return self._document("POST", "/control/purge", json=body)

    @abstractmethod
    def _document(self, method: str, path: str, *, repeatable: bool = False, **options: Any) -> DocumentT:
        """Send a request, again if that changes nothing and the client is patient, and return its answer."""

    @abstractmethod
    def _list(
        self, method: str, path: str, *, of: str | None = None, repeatable: bool = False, **options: Any
    ) -> ListT:
        """Likewise, of an answer that is a list, or of the one under ``of`` in it."""


def stream_path(job_id: str | None) -> str:
    """Return where the events of a job, or of everything, are sent as they happen."""
    return "/events" if job_id is None else f"/jobs/{_path(job_id)}/stream"


def _if_match(version: int | None) -> dict[str, Any]:
    return {} if version is None else {"headers": {"If-Match": f'"{version}"'}}


def _path(job_id: str) -> str:
    if not job_id or any(not (character.isalnum() or character == "-") for character in job_id):
        raise InvalidRequest(f"{job_id!r} is not a job id")
    return job_id


def _name_path(name: str) -> str:
    if not name or any(not (character.isalnum() or character in "._:-") for character in name) or name in (".", ".."):
        raise InvalidRequest(f"{name!r} is not a name")
    return name


def _token_path(token: str) -> str:
    if not token or any(not (character.isalnum() or character in "_-") for character in token):
        raise InvalidRequest("that is not the token or the number of a lease")
    return token
