"""``with client.lease(gpus=1) as lease:`` GPUs without a job, for as long as the block runs."""

import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from orchestrator.errors import ApiUnavailable, LeaseLost, OrchestratorError, UnknownLease
from orchestrator.job_context import FENCING_TOKEN

if TYPE_CHECKING:
    from orchestrator.client import Client

#: Between two heartbeats when the first one was not answered, in seconds.
RETRY_SECONDS = 0.5


class HeldLease:
    """A lease that a thread renews; trusted until a margin before its end, counted from before each heartbeat."""

    def __init__(self, client: "Client", document: Mapping[str, Any], asked_at: float) -> None:
        """Hold a lease that was granted.

        Args:
            client: The thread's own; it is closed with the lease.
            document: The answer to ``POST /leases``.
            asked_at: The monotonic instant before it was asked for.
        """
        self.id = int(document["id"])
        self.fencing_token = int(document["fencing_token"])
        self.node = str(document["node"])
        self.gpus = tuple(document["gpus"])
        self.mode = str(document["mode"])
        self.lost = threading.Event()
        self._client, self._token = client, str(document["token"])
        self._every, self._trust = float(document["renew_seconds"]), float(document["trust_seconds"])
        self._trusted_until = asked_at + self._trust
        self._ended = threading.Event()
        self._on_lost: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._renew, name=f"lease-{self.id}", daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a process that uses the GPUs is given."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(self.gpus), FENCING_TOKEN: str(self.fencing_token)}

    def check(self) -> None:
        """Raise ``LeaseLost`` once the lease cannot be trusted any more: stop using the GPUs before anything else."""
        if self.lost.is_set():
            raise LeaseLost(self.id)

    def hold(self, on_lost: Callable[[], None] = lambda: None) -> Self:
        """Begin to renew; ``on_lost`` is called in the renewing thread."""
        self._on_lost = on_lost
        self._thread.start()
        return self

    def release(self) -> None:
        """End it; a lease that cannot be told of ends by itself."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        try:
            self._client.release_lease(self._token)
        except OrchestratorError:
            if not self.lost.is_set():
                raise
        finally:
            self._client.close()

    def __enter__(self) -> Self:
        return self.hold()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _renew(self) -> None:
        pause = self._every
        while not self._ended.wait(max(0.0, min(pause, self._trusted_until - time.monotonic()))):
            asked_at = time.monotonic()
            if asked_at >= self._trusted_until or not self._beat(asked_at):
                self.lost.set()
                self._on_lost()
                return
            pause = self._every if self._trusted_until - asked_at >= self._trust else RETRY_SECONDS

    def _beat(self, asked_at: float) -> bool:
        """Renew once; False when the lease is known to be lost."""
        try:
            self._client.renew_lease(self._token)
        except ApiUnavailable:
            return True  # trusted for what is left of it
        except OrchestratorError as error:
            kind = getattr(error, "kind", type(error))
            return not issubclass(kind, LeaseLost | UnknownLease)
        self._trusted_until = asked_at + self._trust
        return True
