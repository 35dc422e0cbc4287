"""The fields of every verb's ``--json``: promised to programs, documented in docs/cli.md, pinned by the tests."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_JOB = _words(
    "root parent group needs"
    " id name task kind queue tenant submitted_by state reason held_by priority gpus gpu_memory_mib wants time_limit"
    " attempt max_attempts retry_on lost_count node exit_code failure_class error result progress checkpoint"
    " cancel_requested_at run_at deadline created_at queued_at started_at finished_at"
)
ATTEMPT = _words(
    "number node lease gpus pid started_at ended_at outcome failure_class exit_code error peak_memory_mib gpu_seconds"
    " peak_gpu_memory_mib isolation choice"
    " gpu_busy_seconds"
)
USAGE = _words("key jobs attempts gpu_seconds busy_gpu_seconds wasted_gpu_seconds")
_TOKEN = _words("name id role tenant requests_per_minute created_by created_at expires_at revoked_at last_used_at")
_GPU = _words(
    "uuid node index model memory_mib used_mib reserved_mib utilization_percent health health_reason strikes lease"
    " driver_version temperature_celsius power_watts mig_profile parent_uuid numa links live headroom_mib foreign_mib"
    " foreign_by clean warning holders"
)
_LETTER = _words("id queue failure_class reason at")
_ORDERED = _words("id changed state problem detail")
_QUEUE = _words("name paused paused_by most_running time_limit version jobs")
_POLICY = _words("safe_mode pool_idle_seconds max_gpu_memory_fraction version changed_by changed_at")
_SCHEMA = frozenset({"version", "head", "database"})

_POOL = _words(
    "name model task arguments state reason asleep min max wanted ready gpus gpu_memory_mib wants idle_seconds"
    " load_seconds loaded_in_seconds pinned tenant priority failures retry_at changed_by created_at version"
    " runners loads"
)

POOL_ORDERS = ("start", "ls", "status", "scale", "preload", "swap", "sleep", "wake", "drain", "stop")

FIELDS = {
    **dict.fromkeys(
        [f"pool {order}" for order in POOL_ORDERS],
        _POOL,
    ),
    "pool rm": frozenset({"name"}),
    "whoami": frozenset({"name", "role", "tenant"}),
    "audit": _words("seq at request_id actor role tenant action target outcome"),
    "tenants": frozenset({"name", "jobs", "tokens"}),
    "submit": frozenset({"id", "state", "created"}),
    "run": _JOB | {"attempts"},
    "leases": _words(
        "id name node gpus mode memory_mib state tenant holder ttl_seconds granted_at heartbeat_at expires_at ended_at"
    ),
    "ps": _JOB,
    "status": _JOB | {"attempts"},
    "status --cluster": _words(
        "version api_url leader leader_host leader_pid leader_since epoch database redis nodes jobs"
    ),
    "logs": frozenset({"id", "chunks", "ended"}),
    "wait": frozenset({"id", "state", "exit_code", "reason"}),
    "cancel": frozenset({"id", "state", "cancelled", "stopping"}),
    "priority": _ORDERED,
    "hold": _ORDERED,
    "release": _ORDERED,
    "retry": _ORDERED,
    "events": _words("seq at kind node lease data job tenant state"),
    "why": frozenset({"id", "state", "reasons"}),
    "nodes": _words(
        "name pid worker state drain live degraded queues cpu_slots cpus memory_mib labels heartbeat_at gpus"
    ),
    "drain": _words("name state drain changed withdrawn"),
    "undrain": _words("name state drain changed withdrawn"),
    "gpus": _GPU,
    "gpus quarantine": _GPU,
    "gpus release": _GPU,
    "gpus reset": _GPU,
    "queues": _QUEUE,
    "queue ls": _QUEUE,
    "queue pause": _QUEUE | {"withdrawn"},
    "queue resume": _QUEUE | {"withdrawn"},
    "queue set": _QUEUE,
    "policy": _POLICY,
    "policy set": _POLICY,
    "usage": _words("by since until usage left_out total"),
    "dlq list": _LETTER,
    "dlq show": _LETTER,
    "dlq retry": frozenset({"id", "retried"}),
    "dlq purge": frozenset({"id", "purged"}),
    "db upgrade": _SCHEMA,
    "db current": _SCHEMA,
    "db check": _SCHEMA,
    "admin purge": frozenset({"jobs", "dry_run"}),
    "admin leader": _words("leader leader_host leader_pid epoch"),
    "admin leader --depose": frozenset({"leader", "epoch"}),
    "admin sweep": _words("name did seconds more epoch"),
    "admin sweep --list": _words(
        "name every_seconds passes did failures seconds last_at last_did last_seconds last_error epoch"
    ),
    "token create": _TOKEN | {"secret"},
    "token list": _TOKEN,
    "token revoke": frozenset({"name", "revoked"}),
    "admin verify": _words("database clean checked counts violations"),
}
