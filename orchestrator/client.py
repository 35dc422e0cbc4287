"""``Client``: the HTTP API from Python, as the command line uses it."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import httpx

from orchestrator import errors
from orchestrator.errors import ApiUnavailable, InvalidRequest, OrchestratorError

LONG_POLL: Final = 15.0
#: Between two attempts of a patient client.
FIRST_PAUSE: Final = 0.2
LONGEST_PAUSE: Final = 2.0

#: Every error that the API can name; what it calls otherwise is told by its status.
_BY_CODE: Final = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, OrchestratorError) and "code" in vars(kind)
}


class RemoteError(OrchestratorError):
    """The API answered with a problem; ``kind`` is the error it was there, ``document`` the problem itself."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__(document)
        self.document = document
        self.code = str(document.get("type", "")).rpartition(":")[2] or "error"
        self.kind: type[OrchestratorError] = _BY_CODE.get(self.code, _kind_of(int(document.get("status", 500))))

    def __str__(self) -> str:
        return str(self.document.get("detail") or self.document.get("title") or "the API failed without saying why")


class Client:
    """A connection to the API; usable as a context manager, from one thread at a time."""

    def __init__(
        self, url: str, token: str | None = None, *, timeout_seconds: float = 30.0, patience_seconds: float = 0.0
    ) -> None:
        """Make it; nothing is sent until it is used.

        Args:
            url: Where the API is.
            token: Its bearer token.
            timeout_seconds: How long one request may take.
            patience_seconds: So long reads and cancels are tried again while the API or what it needs is away. A submit
                is sent once: whether a lost one took effect only its key can tell.

        Raises:
            InvalidRequest: If the URL is malformed, or the token cannot be sent.
        """
        self.url = url.rstrip("/")
        self.patience_seconds = patience_seconds
        if token and not token.isprintable():
            raise InvalidRequest("the API's token must be one line of printable characters")
        headers = {b"Authorization": f"Bearer {token}".encode()} if token else {}
        if context := os.environ.get("TRACEPARENT"):  # as other tools take it over
            headers[b"traceparent"] = context.encode("ascii", "replace")
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds, trust_env=False)
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"{url!r} is not the URL of an API: {error}") from error

    def submit(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """Submit a job: ``{"argv": […]}`` or ``{"task": …}`` with the options of ``POST /jobs/submit``."""
        return self._document("POST", "/jobs/submit", json=dict(job))

    def submit_many(self, jobs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Submit several jobs, all or none."""
        answer = self._request("POST", "/jobs/submit", json=[dict(job) for job in jobs])
        return list(answer)

    def job(self, job_id: str) -> dict[str, Any]:
        """Return a job with its attempts."""
        return self._document("GET", f"/jobs/{_path(job_id)}")

    def jobs(self, **filters: Any) -> dict[str, Any]:
        """Return a page of jobs, newest first; see ``GET /jobs`` for the filters."""
        return self._document("GET", "/jobs", params={k: v for k, v in filters.items() if v is not None})

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job."""
        return self._document("POST", f"/jobs/{_path(job_id)}/cancel", repeatable=True)

    def cancel_canvas(self, *, tree: str | None = None, group: str | None = None) -> dict[str, Any]:
        """Cancel every job of a canvas, named by any of them, or of one group."""
        body = {name: value for name, value in (("tree", tree), ("group", group)) if value is not None}
        return self._document("POST", "/jobs/cancel", repeatable=True, json=body)

    def why(self, job_id: str) -> dict[str, Any]:
        """Return why a job waits."""
        return self._document("GET", f"/jobs/{_path(job_id)}/why")

    def events(self, job_id: str) -> list[dict[str, Any]]:
        """Return a job's history."""
        return list(self._document("GET", f"/jobs/{_path(job_id)}/events")["events"])

    def order_gpu(self, uuid: str, action: str) -> dict[str, Any]:
        """Quarantine, release or reset a GPU and return it."""
        return self._document("POST", f"/gpus/{_path(uuid)}/{action}", repeatable=action == "quarantine")

    def usage(self, **window: Any) -> dict[str, Any]:
        """Return GPU-seconds by tenant, user, job, queue, node or gpu; see ``GET /usage``."""
        return self._document("GET", "/usage", params={k: v for k, v in window.items() if v is not None})

    def dead_letters(self, **filters: Any) -> dict[str, Any]:
        """Return a page of dead letters, the newest job first; see ``GET /dlq`` for the filters."""
        return self._document("GET", "/dlq", params={k: v for k, v in filters.items() if v is not None})

    def dead_letter(self, job_id: str) -> dict[str, Any]:
        """Return one dead letter."""
        return self._document("GET", f"/dlq/{_path(job_id)}")

    def retry_dead_letter(self, job_id: str) -> dict[str, Any]:
        """Try a job again with all its attempts."""
        return self._document("POST", f"/dlq/{_path(job_id)}/retry", repeatable=True)

    def retry_dead_letters(self, **filters: Any) -> dict[str, Any]:
        """Try up to 500 dead letters again; the answer says which, and whether there are more."""
        return self._document("POST", "/dlq/retry", json={k: v for k, v in filters.items() if v is not None})

    def purge_dead_letter(self, job_id: str) -> dict[str, Any]:
        """Dismiss a dead letter."""
        return self._document("DELETE", f"/dlq/{_path(job_id)}")

    def logs(self, job_id: str, *, after: str | None = None, wait_seconds: float = 0) -> dict[str, Any]:
        """Return output after a cursor."""
        params: dict[str, Any] = {"wait": wait_seconds} | ({"after": after} if after else {})
        return self._document("GET", f"/jobs/{_path(job_id)}/logs", params=params)

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield a job's output as it comes, until the job has ended."""
        after = None
        while True:
            page = self.logs(job_id, after=after, wait_seconds=LONG_POLL)
            yield from (chunk["text"] for chunk in page["chunks"])
            after = page["next"]
            if page["ended"]:
                return

    def nodes(self) -> list[dict[str, Any]]:
        """Return the hosts."""
        return list(self._document("GET", "/nodes")["nodes"])

    def set_drain(self, node: str, *, drain: bool) -> dict[str, Any]:
        """Have a host take nothing new, or take jobs again."""
        verb = "drain" if drain else "undrain"
        return self._document("POST", f"/nodes/{_name_path(node)}/{verb}", repeatable=True)

    def gpus(self) -> list[dict[str, Any]]:
        """Return the GPUs of all hosts."""
        return list(self._document("GET", "/gpus")["gpus"])

    def queues(self) -> list[dict[str, Any]]:
        """Return the queues."""
        return list(self._document("GET", "/queues")["queues"])

    def cluster(self) -> dict[str, Any]:
        """Return what the installation is made of."""
        return self._document("GET", "/cluster")

    def sweeps(self) -> list[dict[str, Any]]:
        """Return the leader's sweeps and what they did."""
        return list(self._document("GET", "/control/sweeps")["sweeps"])

    def sweep(self, name: str) -> dict[str, Any]:
        """Run one pass of a sweep."""
        return self._document("POST", f"/control/sweeps/{_name_path(name)}", repeatable=True)

    def reclaim(self) -> dict[str, Any]:
        """Run every sweep that gives work back."""
        return self._document("POST", "/control/reclaim", repeatable=True)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _document(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        answer = self._request(method, path, **options)
        if not isinstance(answer, dict):
            raise ApiUnavailable(f"{self.url} does not answer as gpu-orchestrator's API does")
        return answer

    def _request(self, method: str, path: str, *, repeatable: bool = False, **options: Any) -> Any:
        deadline, pause = time.monotonic() + self.patience_seconds, FIRST_PAUSE
        while True:
            try:
                return self._send(method, path, **options)
            except (ApiUnavailable, RemoteError) as error:
                if not (repeatable or method == "GET") or not _may_pass(error) or time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

    def _send(self, method: str, path: str, **options: Any) -> Any:
        try:
            request = self._http.build_request(method, path, **options)
        except (TypeError, ValueError) as error:  # such as bytes of a command line that are not UTF-8
            raise InvalidRequest(f"the request cannot be written as JSON in UTF-8: {error}") from error
        try:
            response = self._http.send(request)
        except httpx.HTTPError as error:
            hint = "start a stack with 'orch up', or say where one is with ORCHESTRATOR_API_URL"
            raise ApiUnavailable(f"the API at {self.url} does not answer ({error}); {hint}") from error
        try:
            answer = response.json()
        except json.JSONDecodeError as error:
            raise ApiUnavailable(f"{self.url} does not answer as gpu-orchestrator's API does") from error
        if response.is_success:
            return answer
        raise RemoteError(answer if isinstance(answer, dict) else {"status": response.status_code})


def _path(job_id: str) -> str:
    if not job_id or any(not (character.isalnum() or character == "-") for character in job_id):
        raise InvalidRequest(f"{job_id!r} is not a job id")
    return job_id


def _name_path(name: str) -> str:
    if not name or any(not (character.isalnum() or character in "._-") for character in name) or name in (".", ".."):
        raise InvalidRequest(f"{name!r} is not a name")
    return name


def _may_pass(error: ApiUnavailable | RemoteError) -> bool:
    return isinstance(error, ApiUnavailable) or error.document.get("status") in (429, 503)


def _kind_of(status: int) -> type[OrchestratorError]:
    if status == 409:
        return errors.Conflict
    return errors.Unavailable if status >= 500 else InvalidRequest
