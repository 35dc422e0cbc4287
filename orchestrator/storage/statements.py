"""The statements that need to be exact, one named constant each.

A write repeats in its ``WHERE`` every belief that it rests on; a row count of 0 is an answer.
Lock order: leadership, leases, GPUs, ready and scheduled, jobs; what still deadlocks is run again.
"""

from typing import Final

from orchestrator.storage.sql import Sql

# Submitting

# PyMySQL sends the rows of one INSERT together only when its VALUES are parameters and nothing else; so the instant
# of the transaction is read with the queues and handed back. It is the database's own all the same.
QUEUE_WINDOWS: Final = Sql(
    "SELECT name, paused, most_running, time_limit_s, `window`, {now} AS now,"
    " EXISTS (SELECT 1 FROM orchestrator_policy WHERE safe_mode = 1) AS safe,"
    " (SELECT COUNT(*) FROM orchestrator_ready r WHERE r.queue = q.name AND r.publish_at IS NOT NULL) AS admitted,"
    " EXISTS (SELECT 1 FROM orchestrator_ready r WHERE r.queue = q.name AND r.publish_at IS NULL AND r.`rank` < 100)"
    " AS waiting"
    " FROM orchestrator_queues q WHERE name IN :names",
    "names",
)
INSERT_JOB: Final = Sql(
    "INSERT INTO orchestrator_jobs (id, name, task, kind, queue, tenant, submitted_by, priority, state,"
    " payload, headers, digest,"
    " gpus, gpu_memory_mib, wants, time_limit_s, soft_time_limit_s, grace_s, max_attempts, retry_on, attempt,"
    " lost_count, forgiven, run_at, deadline,"
    " idempotency_key, root_id, parent_id, group_id, request_hash, traceparent, created_at, queued_at)"
    " VALUES (:id, :name, :task, :kind, :queue, :tenant, :submitted_by, :priority, :state, :payload, :headers, :digest,"
    " :gpus, :gpu_memory_mib, :wants, :time_limit_s, :soft_time_limit_s, :grace_s, :max_attempts, :retry_on,"
    " :attempt, :lost_count, :forgiven, :run_at, :deadline,"
    " :idempotency_key, :root_id, :parent_id, :group_id, :request_hash, :traceparent, :now, :queued_at)"
)
SEQS: Final = Sql("SELECT id, seq FROM orchestrator_jobs WHERE id IN :ids", "ids")
INSERT_ADMITTED: Final = Sql(
    "INSERT INTO orchestrator_ready (job_seq, queue, `rank`, tenant, gpus, gpu_memory_mib, wants,"
    " deadline, created_at, publish_at, node)"
    " VALUES (:seq, :queue, :rank, :tenant, :gpus, :gpu_memory_mib, :wants, :deadline, :now, :publish_at, :node)"
)
INSERT_READY: Final = Sql(
    "INSERT INTO orchestrator_ready (job_seq, queue, `rank`, tenant, gpus, gpu_memory_mib, wants, deadline,"
    " created_at)"
    " VALUES (:seq, :queue, :rank, :tenant, :gpus, :gpu_memory_mib, :wants, :deadline, :now)"
)
INSERT_SCHEDULED: Final = Sql("INSERT INTO orchestrator_scheduled (run_at, job_seq) VALUES (:run_at, :seq)")
SUBMIT_EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, job_seq) VALUES (:now, :kind, :seq)")
EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, job_seq, data) VALUES ({now}, :kind, :seq, :data)")

# People

ATTEMPTS: Final = Sql(
    "SELECT a.*, (SELECT GROUP_CONCAT(g.gpu_uuid) FROM orchestrator_lease_gpus g WHERE g.lease_id ="
    " a.lease_id) AS gpu_uuids, j.gpus, j.gpu_memory_mib, j.wants, l.memory_mib AS share_mib"
    " FROM orchestrator_attempts a JOIN orchestrator_jobs j ON j.seq = a.job_seq"
    " LEFT JOIN orchestrator_leases l ON l.id = a.lease_id WHERE j.id = :id ORDER BY a.number"
)
CARDS: Final = Sql("SELECT uuid, model, memory_mib, mig_profile FROM orchestrator_gpus WHERE uuid IN :uuids", "uuids")
LOCK_WAITING: Final = tuple(
    Sql(
        f"SELECT job_seq FROM {table} WHERE job_seq = (SELECT seq FROM orchestrator_jobs WHERE id = :id) {{for_update}}"  # noqa: S608 - the names stand below
    )
    for table in ("orchestrator_ready", "orchestrator_scheduled")
)
JOB_FOR_UPDATE: Final = Sql("SELECT * FROM orchestrator_jobs WHERE id = :id {for_update}")
REQUEST_CANCEL: Final = Sql(
    "UPDATE orchestrator_jobs SET cancel_requested_at = {now}"
    " WHERE seq = :seq AND state = 'running' AND cancel_requested_at IS NULL"
)
CANCEL_WAITING: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'cancelled', reason = :reason, finished_at = {now},"
    " cancel_requested_at = {now}"
    " WHERE seq = :seq AND state IN ('blocked', 'scheduled', 'pending', 'queued')"
)
DELETE_READY: Final = Sql("DELETE FROM orchestrator_ready WHERE job_seq IN :seqs", "seqs")
DELETE_SCHEDULED: Final = Sql("DELETE FROM orchestrator_scheduled WHERE job_seq IN :seqs", "seqs")

# Claiming: the stream chooses when, the database whether

INSERT_LEASE: Final = Sql(
    "INSERT INTO orchestrator_leases (node, mode, memory_mib, cpus, host_memory_mib, state, renewals, granted_at,"
    " heartbeat_at, expires_at)"
    " VALUES (:node, :mode, :memory_mib, :cpus, :host_memory_mib, 'active', 0, {now}, {now}, {now_plus:ttl})"
)
DELETE_LEASE: Final = Sql("DELETE FROM orchestrator_leases WHERE id = :lease_id")
TAKE_EXCLUSIVE: Final = Sql(
    "UPDATE orchestrator_gpus SET exclusive_lease_id = :lease_id, last_lease_id = :lease_id, turn = turn + 1"
    " WHERE uuid IN :uuids AND node = :node AND health = 'healthy' AND exclusive_lease_id IS NULL AND reserved_mib = 0"
    " AND clean = 1 AND last_lease_id < :lease_id",
    "uuids",
)
TAKE_SHARED: Final = Sql(
    "UPDATE orchestrator_gpus SET reserved_mib = reserved_mib + :mib, last_lease_id = :lease_id, turn = turn + 1"
    " WHERE uuid IN :uuids AND node = :node AND health = 'healthy' AND exclusive_lease_id IS NULL"
    " AND reserved_mib + foreign_mib + headroom_mib + :mib <= memory_mib AND reserved_mib + foreign_mib + :mib"
    " <= memory_mib * COALESCE((SELECT max_gpu_fraction FROM orchestrator_policy), 1) AND last_lease_id < :lease_id",
    "uuids",
)
INSERT_LEASE_GPUS: Final = Sql(
    "INSERT INTO orchestrator_lease_gpus (lease_id, gpu_uuid, live_exclusive, taken_turn)"
    " SELECT :lease_id, uuid, :live_exclusive, turn FROM orchestrator_gpus WHERE uuid IN :uuids",
    "uuids",
)
LIVE_LEASES: Final = Sql(
    "SELECT id FROM orchestrator_leases"
    " WHERE id IN :ids AND node = :node AND state = 'active' AND expires_at > {now} {for_share}",
    "ids",
)
TAKE_READY: Final = Sql(
    "DELETE FROM orchestrator_ready WHERE job_seq IN :seqs AND publish_at IS NOT NULL AND (node IS NULL OR"
    " node = :node)"
    " AND (deadline IS NULL OR deadline > {now}) AND gpus = :gpus AND COALESCE(gpu_memory_mib, 0) = :mib"
    " AND COALESCE(wants, '') = :wants"
    # Read under a lock in the same statement: once a pause, a drain or safe mode is committed, no claim takes a job.
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_queues q WHERE q.name = orchestrator_ready.queue AND q.paused = 1)"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_policy WHERE safe_mode = 1)"
    " AND NOT EXISTS (SELECT 1 FROM orchestrator_nodes n WHERE n.name = :node AND n.drain = 1)"
    " AND EXISTS (SELECT 1 FROM orchestrator_leases l WHERE l.id = :lease_id AND l.node = :node AND l.state = 'active'"
    " AND l.expires_at > {now})"
    " RETURNING job_seq",
    "seqs",
)
START_JOBS: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'running', attempt = attempt + 1, lease_id = :lease_id, node = :node,"
    " started_at = {now}, reason = NULL, error = NULL, exit_code = NULL, failure_class = NULL"
    " WHERE seq IN :seqs AND state = 'queued'",
    "seqs",
)
INSERT_ATTEMPTS: Final = Sql(
    "INSERT INTO orchestrator_attempts (job_seq, number, lease_id, node, claimed_at, gpu_seconds)"
    " SELECT seq, attempt, lease_id, node, {now}, 0 FROM orchestrator_jobs WHERE seq IN :seqs",
    "seqs",
)
CLAIM_EVENTS: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, job_seq, node, lease_id)"
    " SELECT {now}, 'claim', seq, node, lease_id FROM orchestrator_jobs WHERE seq IN :seqs",
    "seqs",
)
CLAIMED_COLUMNS: Final = (
    "seq, id, name, task, kind, queue, tenant, attempt, payload, digest, time_limit_s, soft_time_limit_s, grace_s,"
    " max_attempts, retry_on, lost_count, forgiven, traceparent, checkpoint, COALESCE(run_at, created_at) AS ready_at"
)
CLAIMED: Final = Sql(f"SELECT {CLAIMED_COLUMNS} FROM orchestrator_jobs WHERE seq IN :seqs", "seqs")  # noqa: S608
WHY_REFUSED: Final = Sql(
    "SELECT j.seq, j.state, (j.deadline IS NOT NULL AND j.deadline <= {now}) AS expired,"
    " EXISTS (SELECT 1 FROM orchestrator_nodes n WHERE n.name = :node AND n.drain = 1) AS draining"
    " FROM orchestrator_jobs j WHERE j.seq IN :seqs",
    "seqs",
)

# Finishing

RUNNING_FOR_UPDATE: Final = Sql(
    "SELECT seq, attempt, lease_id, cancel_requested_at IS NOT NULL AS cancelling FROM orchestrator_jobs"
    " WHERE seq IN :seqs AND state = 'running' {for_update}",
    "seqs",
)
COMMITTED_BEFORE: Final = Sql(
    "SELECT job_seq, number, lease_id, outcome FROM orchestrator_attempts"
    " WHERE job_seq IN :seqs AND ended_at IS NOT NULL AND node = :node",
    "seqs",
)
SUCCEED_JOBS: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'succeeded', lease_id = NULL, finished_at = {now}, exit_code = 0,"
    " reason = r.reason, result = r.result FROM (SELECT json_extract(value, '$.seq') AS seq,"
    " json_extract(value, '$.reason') AS reason, json_extract(value, '$.result') AS result"
    " FROM json_each(:rows)) AS r WHERE orchestrator_jobs.seq = r.seq",
    mysql="UPDATE orchestrator_jobs j JOIN JSON_TABLE(:rows, '$[*]' COLUMNS (seq BIGINT PATH '$.seq',"
    " reason VARCHAR(512) PATH '$.reason', result LONGTEXT PATH '$.result')) r ON j.seq = r.seq"
    " SET j.state = 'succeeded', j.lease_id = NULL,"
    " j.finished_at = {now}, j.exit_code = 0, j.reason = r.reason, j.result = r.result",
)
SUCCEED_JOBS_ALIKE: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'succeeded', lease_id = NULL, finished_at = {now}, exit_code = 0,"
    " reason = NULL,"
    " result = :result WHERE seq IN :seqs",
    "seqs",
)
END_JOB: Final = Sql(
    "UPDATE orchestrator_jobs SET state = :state, lease_id = NULL, exit_code = :exit_code, error = :error,"
    " reason = :reason,"
    " failure_class = :failure_class, result = :result, lost_count = lost_count + :lost, payload ="
    " COALESCE(:payload, payload),"
    " run_at = CASE WHEN :state = 'scheduled' THEN {now_plus:delay} ELSE run_at END,"
    " started_at = CASE WHEN :state IN ('scheduled', 'pending') THEN NULL ELSE started_at END,"
    " node = CASE WHEN :state IN ('scheduled', 'pending') THEN NULL ELSE node END,"
    " finished_at = CASE WHEN :state IN ('scheduled', 'pending') THEN NULL ELSE {now} END,"
    " attempt = attempt - :given_back, forgiven = forgiven + :forgiven WHERE seq = :seq"
)
SCHEDULE_JOBS: Final = Sql(
    "INSERT INTO orchestrator_scheduled (run_at, job_seq) SELECT run_at, seq FROM orchestrator_jobs WHERE seq IN :seqs",
    "seqs",
)
READY_AGAIN: Final = Sql(
    "INSERT INTO orchestrator_ready (job_seq, queue, `rank`, tenant, gpus, gpu_memory_mib, wants, deadline,"
    " created_at)"
    " SELECT seq, queue, 9 - priority + CASE WHEN held_by IS NULL THEN 0 ELSE 100 END, tenant, gpus, gpu_memory_mib,"
    " wants, deadline, created_at"
    " FROM orchestrator_jobs WHERE seq IN :seqs",
    "seqs",
)
#: Of jobs that are dead letters by now; the leader puts a copy into the dead-letter stream.
INSERT_LETTERS: Final = Sql(
    "INSERT INTO orchestrator_dead_letters (job_seq, job_id, queue, failure_class, reason, at, copied)"
    " SELECT seq, id, queue, COALESCE(failure_class, 'poison'), COALESCE(reason, 'it could not be processed'),"
    " finished_at, 0 FROM orchestrator_jobs WHERE seq IN :seqs AND state = 'dead_letter'",
    "seqs",
)
CLOSE_ATTEMPTS: Final = Sql(
    "UPDATE orchestrator_attempts SET ended_at = COALESCE(r.ended_at, {now}), started_at = r.started_at, pid = r.pid,"
    " outcome = r.outcome, failure_class = r.failure_class, exit_code = r.exit_code, error = r.error,"
    " peak_memory_mib = r.peak_memory_mib,"
    " peak_gpu_memory_mib = COALESCE(r.peak_gpu_memory_mib, orchestrator_attempts.peak_gpu_memory_mib),"
    " isolation = r.isolation, gpu_seconds = r.gpu_seconds,"
    " gpu_busy_seconds = COALESCE(r.gpu_busy_seconds, orchestrator_attempts.gpu_busy_seconds)"
    " FROM (SELECT json_extract(value,"
    " '$.seq') AS seq,"
    " json_extract(value, '$.number') AS number, json_extract(value, '$.ended_at') AS ended_at,"
    " json_extract(value, '$.started_at') AS started_at, json_extract(value, '$.pid') AS pid,"
    " json_extract(value, '$.outcome') AS outcome, json_extract(value, '$.failure_class') AS failure_class,"
    " json_extract(value, '$.exit_code') AS exit_code, json_extract(value, '$.error') AS error,"
    " json_extract(value, '$.peak_memory_mib') AS peak_memory_mib, json_extract(value, '$.gpu_seconds') AS gpu_seconds,"
    " json_extract(value, '$.peak_gpu_memory_mib') AS peak_gpu_memory_mib,"
    " json_extract(value, '$.isolation') AS isolation,"
    " json_extract(value, '$.gpu_busy_seconds') AS gpu_busy_seconds"
    " FROM json_each(:rows)) AS r WHERE orchestrator_attempts.job_seq = r.seq AND"
    " orchestrator_attempts.number = r.number",
    mysql="UPDATE orchestrator_attempts a JOIN JSON_TABLE(:rows, '$[*]' COLUMNS (seq BIGINT PATH '$.seq',"
    " number INT PATH '$.number', ended_at DATETIME(6) PATH '$.ended_at', started_at DATETIME(6) PATH '$.started_at',"
    " pid INT PATH '$.pid', outcome VARCHAR(16) PATH '$.outcome', failure_class VARCHAR(16) PATH '$.failure_class',"
    " exit_code INT PATH '$.exit_code', error LONGTEXT PATH '$.error', peak_memory_mib INT PATH '$.peak_memory_mib',"
    " peak_gpu_memory_mib INT PATH '$.peak_gpu_memory_mib', isolation VARCHAR(64) PATH '$.isolation',"
    " gpu_seconds DOUBLE PATH '$.gpu_seconds', gpu_busy_seconds DOUBLE PATH '$.gpu_busy_seconds')) r"
    " ON a.job_seq = r.seq AND a.number = r.number"
    " SET a.ended_at = COALESCE(r.ended_at, {now}), a.started_at = r.started_at, a.pid = r.pid, a.outcome = r.outcome,"
    " a.failure_class = r.failure_class, a.exit_code = r.exit_code, a.error = r.error,"
    " a.peak_memory_mib = r.peak_memory_mib,"
    " a.peak_gpu_memory_mib = COALESCE(r.peak_gpu_memory_mib, a.peak_gpu_memory_mib),"
    " a.isolation = r.isolation, a.gpu_seconds = r.gpu_seconds,"
    " a.gpu_busy_seconds = COALESCE(r.gpu_busy_seconds, a.gpu_busy_seconds)",
)
# Most attempts succeed, and of these only a few columns differ. The attempt is named with its lease: a success under
# another token than the claim's would leave the attempt open, and the history shows it.
CLOSE_SUCCEEDED: Final = Sql(
    "UPDATE orchestrator_attempts SET ended_at = COALESCE(r.ended_at, {now}), started_at = r.started_at, pid = r.pid,"
    " outcome = 'succeed', exit_code = 0, peak_memory_mib = r.peak_memory_mib,"
    " peak_gpu_memory_mib = r.peak_gpu_memory_mib,"
    " isolation = r.isolation, gpu_seconds = r.gpu_seconds,"
    " gpu_busy_seconds = r.gpu_busy_seconds"
    " FROM (SELECT json_extract(value, '$.q') AS seq, json_extract(value, '$.n') AS number,"
    " json_extract(value, '$.e') AS ended_at, json_extract(value, '$.s') AS started_at,"
    " json_extract(value, '$.p') AS pid, json_extract(value, '$.m') AS peak_memory_mib,"
    " json_extract(value, '$.v') AS peak_gpu_memory_mib, json_extract(value, '$.i') AS isolation,"
    " json_extract(value, '$.g') AS gpu_seconds, json_extract(value, '$.b') AS gpu_busy_seconds,"
    " json_extract(value, '$.l') AS lease_id FROM json_each(:rows)) AS r"
    " WHERE orchestrator_attempts.job_seq = r.seq AND orchestrator_attempts.number = r.number"
    " AND orchestrator_attempts.lease_id = r.lease_id",
    mysql="UPDATE orchestrator_attempts a JOIN JSON_TABLE(:rows, '$[*]' COLUMNS (seq BIGINT PATH '$.q',"
    " number INT PATH '$.n', ended_at DATETIME(6) PATH '$.e', started_at DATETIME(6) PATH '$.s',"
    " pid INT PATH '$.p', peak_memory_mib INT PATH '$.m', peak_gpu_memory_mib INT PATH '$.v',"
    " isolation VARCHAR(64) PATH '$.i',"
    " gpu_seconds DOUBLE PATH '$.g',"
    " gpu_busy_seconds DOUBLE PATH '$.b', lease_id BIGINT PATH '$.l')) r"
    " ON a.job_seq = r.seq AND a.number = r.number AND a.lease_id = r.lease_id"
    " SET a.ended_at = COALESCE(r.ended_at, {now}), a.started_at = r.started_at, a.pid = r.pid, a.outcome = 'succeed',"
    " a.exit_code = 0, a.peak_memory_mib = r.peak_memory_mib, a.peak_gpu_memory_mib = r.peak_gpu_memory_mib,"
    " a.isolation = r.isolation, a.gpu_seconds = r.gpu_seconds, a.gpu_busy_seconds = r.gpu_busy_seconds",
)
# Before the jobs end: an ended job names no lease.
SUCCEED_EVENTS: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, job_seq, node, lease_id)"
    " SELECT {now}, 'succeed', seq, node, lease_id FROM orchestrator_jobs WHERE seq IN :seqs",
    "seqs",
)
DELETE_ATTEMPT: Final = Sql("DELETE FROM orchestrator_attempts WHERE job_seq = :seq AND number = :number")
END_EVENTS: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, job_seq, node, lease_id, epoch)"
    " SELECT {now}, json_extract(value, '$.outcome'), json_extract(value, '$.seq'), :node,"
    " json_extract(value, '$.lease_id'), :epoch"
    " FROM json_each(:rows)",
    mysql="INSERT INTO orchestrator_events (at, kind, job_seq, node, lease_id, epoch)"
    " SELECT {now}, r.kind, r.seq, :node, r.lease_id, :epoch"
    " FROM JSON_TABLE(:rows, '$[*]' COLUMNS (kind VARCHAR(16) PATH '$.outcome', seq BIGINT PATH '$.seq',"
    " lease_id BIGINT PATH '$.lease_id')) r",
)

# Leases

LOCK_ACTIVE_LEASES: Final = Sql(
    "SELECT id, mode, memory_mib, node FROM orchestrator_leases WHERE id IN :ids AND state = 'active' {for_update}",
    "ids",
)
END_LEASES: Final = Sql(
    "UPDATE orchestrator_leases SET state = :state, ended_at = {now} WHERE id IN :ids AND state = 'active'", "ids"
)
FREE_EXCLUSIVE: Final = Sql(
    "UPDATE orchestrator_gpus SET exclusive_lease_id = NULL, turn = turn + 1 WHERE exclusive_lease_id IN :ids", "ids"
)
FREE_SHARED: Final = Sql(
    "UPDATE orchestrator_gpus SET reserved_mib = reserved_mib - :mib, turn = turn + 1 WHERE uuid IN"
    " (SELECT gpu_uuid FROM orchestrator_lease_gpus WHERE lease_id = :lease_id)"
)
UNMARK_LEASE_GPUS: Final = Sql(
    "UPDATE orchestrator_lease_gpus SET live_exclusive = NULL,"
    " freed_turn = (SELECT g.turn FROM orchestrator_gpus g WHERE g.uuid = orchestrator_lease_gpus.gpu_uuid)"
    " WHERE lease_id IN :ids",
    "ids",
)
RENEW: Final = Sql(
    "UPDATE orchestrator_leases SET expires_at = {now_plus:ttl}, heartbeat_at = {now}, renewals = renewals + 1"
    " WHERE id IN :ids AND node = :node AND state = 'active' AND expires_at > {now}",
    "ids",
)
CANCEL_REQUESTED: Final = Sql(
    "SELECT j.seq FROM orchestrator_attempts a JOIN orchestrator_jobs j ON j.seq = a.job_seq AND j.attempt = a.number"
    " WHERE a.lease_id IN :ids AND a.ended_at IS NULL AND j.state = 'running' AND j.cancel_requested_at IS NOT NULL",
    "ids",
)

# Under a live claim

INSERT_LOG: Final = Sql(
    "INSERT INTO orchestrator_logs (job_seq, attempt, number, at, data)"
    " SELECT seq, :attempt, :number, {now}, :data FROM orchestrator_jobs"
    " WHERE seq = :seq AND state = 'running' AND attempt = :attempt AND lease_id = :lease_id"
    " ON CONFLICT DO NOTHING",  # a batch whose reply was lost comes again
    mysql="INSERT INTO orchestrator_logs (job_seq, attempt, number, at, data)"
    " SELECT seq, :attempt, :number, {now}, :data FROM orchestrator_jobs"
    " WHERE seq = :seq AND state = 'running' AND attempt = :attempt AND lease_id = :lease_id"
    " ON DUPLICATE KEY UPDATE data = VALUES(data)",
)
SET_PROGRESS: Final = Sql(
    "UPDATE orchestrator_jobs SET progress = COALESCE(:progress, progress),"
    " checkpoint = COALESCE(:checkpoint, checkpoint)"
    " WHERE seq = :seq AND state = 'running' AND attempt = :attempt AND lease_id = :lease_id"
)
JOB_NOTE: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, job_seq, node, lease_id, data)"
    " SELECT {now}, :kind, seq, node, lease_id, :data FROM orchestrator_jobs"
    " WHERE seq = :seq AND state = 'running' AND attempt = :attempt AND lease_id = :lease_id"
)

# Admission

PENDING_FOR_UPDATE: Final = Sql(
    "SELECT job_seq FROM orchestrator_ready WHERE job_seq IN :seqs AND publish_at IS NULL AND `rank` < 100"
    " {for_update}",
    "seqs",
)
ADMIT_JOBS: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'queued', queued_at = {now} WHERE seq IN :seqs AND state = 'pending'", "seqs"
)
ADMIT_READY: Final = Sql(
    "UPDATE orchestrator_ready SET node = :node, publish_at = {now_plus:grace}, entry_id = NULL WHERE job_seq IN :seqs",
    "seqs",
)
JOB_EVENTS: Final = Sql(
    "INSERT INTO orchestrator_events (at, kind, job_seq, node, epoch) SELECT {now}, :kind, seq, :node, :epoch"
    " FROM orchestrator_jobs WHERE seq IN :seqs",
    "seqs",
)
ENTRIES: Final = Sql(
    "SELECT j.seq, j.id, j.task, j.queue, j.tenant, j.kind, j.priority, j.gpus, j.gpu_memory_mib, j.wants, j.headers,"
    " r.node, r.entry_id FROM orchestrator_ready r JOIN orchestrator_jobs j ON j.seq = r.job_seq"
    " WHERE r.job_seq IN :seqs ORDER BY r.`rank`, r.job_seq",
    "seqs",
)
ADMITTED_FOR_UPDATE: Final = Sql(
    "SELECT job_seq FROM orchestrator_ready WHERE job_seq IN :seqs AND publish_at IS NOT NULL"
    " AND (:node IS NULL OR node IS NULL OR node = :node) {for_update}",
    "seqs",
)
WITHDRAW_JOBS: Final = Sql(
    "UPDATE orchestrator_jobs SET state = 'pending', queued_at = NULL WHERE seq IN :seqs AND state = 'queued'", "seqs"
)
WITHDRAW_READY: Final = Sql(
    "UPDATE orchestrator_ready SET node = NULL, publish_at = NULL, entry_id = NULL WHERE job_seq IN :seqs", "seqs"
)
