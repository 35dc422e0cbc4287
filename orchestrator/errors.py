"""Every error that the product raises on purpose, in three branches by what the caller does next.

OrchestratorError
├── InvalidRequest          change the request; never retried
│   ├── FaultyRequest           every fault is listed
│   │   ├── InvalidSettings
│   │   ├── InvalidJob
│   │   ├── InvalidToken
│   │   └── InvalidPolicy           limits of a queue, or values of the policy
│   ├── InvalidEntry            a stream entry that cannot be decoded or run
│   ├── UnknownThing            nothing of its kind has this name
│   │   ├── UnknownQueue
│   │   ├── QueueNotFound           the queue that a request is about, not one that a job names
│   │   ├── UnknownTask
│   │   ├── UnknownJob
│   │   ├── UnknownDeadLetter
│   │   ├── UnknownNode
│   │   ├── UnknownSweep
│   │   ├── UnknownGpu
│   │   ├── UnknownLease
│   │   └── UnknownToken
│   ├── UnsatisfiableRequest    no host could ever grant it
│   ├── PayloadTooLarge
│   ├── ModelDoesNotFit         larger than the lease's memory, or than what models in use leave of it
│   ├── Unauthenticated
│   ├── Forbidden
│   ├── MissingSecret           the host has no secret of this name for the job's tenant
│   └── (in ``body_errors``)    a request's body is late, too deep, or ambiguous
├── Conflict                reload, then decide again
│   ├── IllegalTransition
│   ├── StaleVersion            somebody else changed it since it was read
│   ├── NotRetriable            the job ended in a way that cannot be tried again
│   ├── LeaseLost
│   ├── NoGpuFree               ask again later, or wait
│   ├── NotLeading              another process leads; stop sweeping
│   ├── IdempotencyConflict     the key was used with another request
│   ├── NameTaken               a token, live or not, has this name
│   ├── StackAlreadyRunning
│   └── SchemaMismatch          the database's schema is not the one this release needs
└── Unavailable             retry with backoff
    ├── StoreUnavailable
    ├── StreamUnavailable
    ├── ApiUnavailable
    ├── GpusUnavailable
    ├── RateLimited             too many requests of one caller
    ├── StackUnavailable        a part of the embedded stack, or its supervisor, does not serve
    └── RunnerLost
"""

from collections.abc import Sequence


class OrchestratorError(Exception):
    """Base of every error raised on purpose; ``code`` is stable and appears in problem documents."""

    code = "error"
    says = ""  # how the arguments are told; empty: the only one is what is told

    def __str__(self) -> str:
        return self.says.format(*self.args) if self.says else super().__str__()


class InvalidRequest(OrchestratorError):
    """The request cannot be satisfied as it stands; change it."""

    code = "invalid-request"


class FaultyRequest(InvalidRequest):
    """A request is wrong in one or more ways; all faults are reported together."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(faults)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "; ".join(self.faults)


class UnknownThing(InvalidRequest):
    """Nothing of its kind has this name; ``known`` are the names that there are, where they are few."""

    kind = "thing"

    def __init__(self, name: str, known: Sequence[str] = ()) -> None:
        super().__init__(name, known)
        self.name, self.known = name, tuple(known)

    def __str__(self) -> str:
        return f"unknown {self.kind} {self.name!r}" + (f"; there are: {', '.join(self.known)}" if self.known else "")


class InvalidSettings(FaultyRequest):
    """One or more settings are wrong; all faults are reported together."""

    code = "invalid-settings"

    def __str__(self) -> str:
        return f"invalid settings: {super().__str__()}"


class InvalidJob(FaultyRequest):
    """A request for a job is wrong in one or more ways; all faults are reported together."""

    code = "invalid-job"


class InvalidPolicy(FaultyRequest):
    """A limit of a queue or a value of the policy is wrong; all faults are reported together."""

    code = "invalid-policy"


class InvalidEntry(InvalidRequest):
    """A stream entry cannot be decoded or run; it goes to the dead-letter stream with this reason."""

    code = "invalid-entry"


class UnknownQueue(UnknownThing):
    """The named queue does not exist."""

    code = "unknown-queue"
    kind = "queue"


class QueueNotFound(UnknownThing):
    """The queue that a request is about does not exist."""

    code = "queue-not-found"
    kind = "queue"


class UnknownTask(UnknownThing):
    """No worker's app registers a task of this name."""

    code = "unknown-task"
    kind = "task"


class UnknownJob(UnknownThing):
    """No job has this id."""

    code = "unknown-job"
    kind = "job"


class UnknownDeadLetter(UnknownThing):
    """No dead letter has this id; it may have been purged."""

    code = "unknown-dead-letter"
    kind = "dead letter"


class UnknownNode(UnknownThing):
    """No host of this name has ever registered."""

    code = "unknown-node"
    kind = "host"


class UnknownSweep(UnknownThing):
    """There is no sweep of this name."""

    code = "unknown-sweep"
    kind = "sweep"


class UnknownLease(UnknownThing):
    """No lease without a job has this token or number."""

    code = "unknown-lease"
    kind = "lease"


class UnknownGpu(UnknownThing):
    """No host ever told of a GPU with this uuid."""

    code = "unknown-gpu"
    kind = "GPU"


class UnsatisfiableRequest(InvalidRequest):
    """No registered host could grant the request even when idle."""

    code = "unsatisfiable-request"


class PayloadTooLarge(InvalidRequest):
    """The payload is larger than the limit."""

    code = "payload-too-large"

    def __init__(self, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(size_bytes, limit_bytes)
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes

    def __str__(self) -> str:
        return f"the payload is {self.size_bytes} bytes; the limit is {self.limit_bytes}"


class ModelDoesNotFit(InvalidRequest):
    """A model is larger than what the runner's lease has memory for."""

    code = "model-does-not-fit"


class ModelInUse(InvalidRequest):
    """A model cannot be put to sleep while it is used."""

    code = "model-in-use"


class Unauthenticated(InvalidRequest):
    """No valid bearer token came with the request."""

    code = "unauthenticated"


class Forbidden(InvalidRequest):
    """The bearer token's role or tenant does not allow this."""

    code = "forbidden"


class InvalidToken(FaultyRequest):
    """A request for a token is wrong in one or more ways; all faults are reported together."""

    code = "invalid-token"


class UnknownToken(UnknownThing):
    """No token in force has this name."""

    code = "unknown-token"
    kind = "token in force"


class MissingSecret(InvalidRequest):
    """The host has no secret of this name for the job's tenant, or cannot use what it has."""

    code = "missing-secret"


class Conflict(OrchestratorError):
    """The state is not what the caller believed; reload, then decide again."""

    code = "conflict"


class IllegalTransition(Conflict):
    """The job's state does not allow this event."""

    code = "illegal-transition"
    says = "a job that is {0} cannot {1}"


class StaleVersion(Conflict):
    """What was to be changed was changed by somebody else since it was read."""

    code = "stale-version"
    says = "it is at version {1}, not {0}: read it again"


class NotRetriable(Conflict):
    """The job ended in a way that cannot be tried again."""

    code = "not-retriable"
    says = "job {0} cannot be tried again: {1}"


class LeaseLost(Conflict):
    """The lease is no longer held under this token; stop using the GPUs before anything else."""

    code = "lease-lost"
    says = "lease {0} is no longer held under this token"


class NoGpuFree(Conflict):
    """The request can be granted, but not now; ``faults`` says why of each host."""

    code = "no-gpu-free"

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__(faults)
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "no GPU is free now: " + "; ".join(self.faults)


class NotLeading(Conflict):
    """Another process leads, or nobody does; nothing was written."""

    code = "not-leading"
    says = "epoch {0} is not the leader's"


class IdempotencyConflict(Conflict):
    """The idempotency key was used before with another request."""

    code = "idempotency-conflict"

    def __init__(self, key: str, job_id: str | None) -> None:
        super().__init__(key, job_id)
        self.key, self.job_id = key, job_id  # None: it was used for a lease

    def __str__(self) -> str:
        thing = "a lease" if self.job_id is None else f"job {self.job_id}"
        return f"idempotency key {self.key!r} belongs to {thing}, which was asked for with another request"


class NameTaken(Conflict):
    """A token, in force or not, has this name."""

    code = "name-taken"
    says = "there is, or was, a token called {0!r}; names are never used again"


class StackAlreadyRunning(Conflict):
    """A stack already runs in this home."""

    code = "stack-already-running"


class SchemaMismatch(Conflict):
    """The database's schema is not the one that this release needs; run ``orch db upgrade``."""

    code = "schema-mismatch"


class Unavailable(OrchestratorError):
    """Something that the operation needs does not answer; retry with backoff."""

    code = "unavailable"


class StoreUnavailable(Unavailable):
    """The database does not answer, or gave up a statement that may be tried again."""

    code = "store-unavailable"


class StreamUnavailable(Unavailable):
    """Redis does not answer."""

    code = "stream-unavailable"


class ApiUnavailable(Unavailable):
    """The HTTP API does not answer."""

    code = "api-unavailable"


class GpusUnavailable(Unavailable):
    """The GPU driver does not answer, or the simulated GPUs' file cannot be read."""

    code = "gpus-unavailable"


class RateLimited(Unavailable):
    """One caller sent too many requests; try again after ``retry_after_seconds``."""

    code = "rate-limited"

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(retry_after_seconds)
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        return f"too many requests; try again after {self.retry_after_seconds} s"


class StackUnavailable(Unavailable):
    """A part of the embedded stack, or the supervisor of its parts, does not serve."""

    code = "stack-unavailable"


class RunnerLost(Unavailable):
    """A runner ended without reporting how its job went."""

    code = "runner-lost"
