"""Jobs as producers and people see them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import IntegrityError

from orchestrator.domain.canvas import CanvasCancelled, Need
from orchestrator.domain.entry import JobEntry
from orchestrator.domain.job import TERMINAL_STATES, Document, Job, JobState, NewJob, Resources
from orchestrator.domain.wants import wants_from
from orchestrator.errors import StoreUnavailable, UnknownJob
from orchestrator.ports import Attempt, CancelOutcome, HistoryEvent, JobFilter, LogPage, SubmitOutcome, Submitted
from orchestrator.storage import canvases, statements, tables
from orchestrator.storage.engine import MOST_TRIES, Database
from orchestrator.storage.first_states import first_state, limited, open_queues, open_slots_of
from orchestrator.storage.job_names import Name, names_of, refuse_other_request, stored_by_name
from orchestrator.storage.job_output import JobOutput
from orchestrator.storage.model_placing import hosts_with_models
from orchestrator.storage.placing import PUBLISH_GRACE
from orchestrator.storage.rows import (
    Row,
    dump,
    entry_from,
    instant,
    job_from,
    load,
    new_job_row,
    request_hash,
    required_instant,
    stored_instant,
)
from orchestrator.storage.seats import open_attempts, take_seats


class SqlJobStore:
    """``JobStore`` over SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(self, jobs: Sequence[NewJob]) -> SubmitOutcome:
        """Store every job, or none; see the port."""
        if not jobs:
            return SubmitOutcome((), ())
        payloads = [dump(job.payload) for job in jobs]
        if any(job.needs or job.parent_id for job in jobs):
            return self._submit_missing(jobs, payloads)  # in a canvas it is usual that a job's row is there already
        try:
            return self._database.transaction(lambda connection: self._insert(connection, jobs, payloads))
        except IntegrityError:
            # Some id or key exists already, or another submitter is storing it at this moment.
            return self._submit_missing(jobs, payloads)

    def get(self, job_id: str) -> Job | None:
        """Return a job."""
        found = self._database.read(
            lambda c: c.execute(_JOB_COLUMNS.where(tables.jobs.c.id == job_id)).mappings().first()
        )
        return None if found is None else job_from(found)

    def get_payload(self, job_id: str) -> Document | None:
        """Return what a job runs."""
        query = select(tables.jobs.c.payload).where(tables.jobs.c.id == job_id)
        return load(self._database.read(lambda c: c.execute(query).scalar()))  # type: ignore[no-any-return]

    def list_jobs(self, wanted: JobFilter) -> Sequence[Job]:
        """Return jobs, newest first."""
        columns = tables.jobs.c
        query = _JOB_COLUMNS.order_by(columns.seq.desc()).limit(wanted.limit)
        for column, value in (
            (columns.queue, wanted.queue),
            (columns.tenant, wanted.tenant),
            (columns.name, wanted.name),
            (columns.group_id, wanted.group_id),
        ):
            if value is not None:
                query = query.where(column == value)
        if wanted.states is not None:
            query = query.where(columns.state.in_(sorted(state.value for state in wanted.states)))
        if wanted.ids is not None:
            query = query.where(columns.id.in_(sorted(wanted.ids)))
        if wanted.root_id is not None:
            query = query.where((columns.root_id == wanted.root_id) | (columns.id == wanted.root_id))
        if wanted.before_seq is not None:
            query = query.where(columns.seq < wanted.before_seq)
        return [job_from(row) for row in self._database.read(lambda c: c.execute(query).mappings().all())]

    def count_by_state(self, queue: str | None = None, *, tenant: str | None = None) -> Mapping[JobState, int]:
        """Count jobs; every state is there."""
        query = select(tables.jobs.c.state, func.count()).group_by(tables.jobs.c.state)
        if queue is not None:
            query = query.where(tables.jobs.c.queue == queue)
        if tenant is not None:
            query = query.where(tables.jobs.c.tenant == tenant)
        counts = {JobState(state): number for state, number in self._database.read(lambda c: c.execute(query).all())}
        return {state: counts.get(state, 0) for state in JobState}

    def count_by_tenant(self, *, tenant: str | None = None) -> Mapping[str, Mapping[JobState, int]]:
        """Count the jobs of tenants by state."""
        columns = tables.jobs.c
        query = select(columns.tenant, columns.state, func.count()).group_by(columns.tenant, columns.state)
        if tenant is not None:
            query = query.where(columns.tenant == tenant)
        found: dict[str, dict[JobState, int]] = {}
        for name, state, number in self._database.read(lambda c: c.execute(query.order_by(columns.tenant)).all()):
            found.setdefault(name, {})[JobState(state)] = number
        return found

    def attempts(self, job_id: str) -> Sequence[Attempt]:
        """Return a job's attempts, oldest first."""

        def read(connection: Connection) -> list[Attempt]:
            rows = self._database.run(connection, statements.ATTEMPTS, {"id": job_id}).mappings().all()
            return [_attempt(row, self._choice(connection, row)) for row in rows]

        return self._database.read(read)

    def _choice(self, connection: Connection, row: Row) -> int | None:
        """Return which of a job's alternatives an attempt has got."""
        asked = Resources(row["gpus"], row["gpu_memory_mib"], wants_from(row["wants"]))
        uuids = _uuids(row)
        if len(asked.options) == 1:
            return None
        found = self._database.run(connection, statements.CARDS, {"uuids": uuids}).all() if uuids else []
        if len(found) < len(uuids):
            return None
        cards = [(card.model, card.memory_mib, card.mig_profile) for card in found]
        return asked.choice(cards, row["share_mib"])

    def history(self, job_id: str) -> Sequence[HistoryEvent]:
        """Return a job's events in the order in which they were written."""
        columns = tables.events.c
        query = (
            select(columns.seq, columns.at, columns.kind, columns.node, columns.lease_id, columns.data)
            .join(tables.jobs, tables.jobs.c.seq == columns.job_seq)
            .where(tables.jobs.c.id == job_id)
            .order_by(columns.seq)
        )
        rows = self._database.read(lambda c: c.execute(query).all())
        return [
            HistoryEvent(seq, required_instant(at), kind, job_id, node, lease_id, load(data) or {})
            for seq, at, kind, node, lease_id, data in rows
        ]

    def logs(self, job_id: str, *, after: tuple[int, int] | None, limit: int, attempt: int | None = None) -> LogPage:
        """Return output after a cursor (attempt, number)."""
        return JobOutput(self._database).page(job_id, after=after, limit=limit, attempt=attempt)

    def log_tail(self, job_id: str, *, lines: int, limit: int, attempt: int | None = None) -> LogPage:
        """Return the last lines of the output."""
        return JobOutput(self._database).tail(job_id, lines=lines, limit=limit, attempt=attempt)

    def request_cancel(self, job_id: str, *, by: str, reason: str) -> CancelOutcome:
        """Cancel a job that has not started; mark one that runs."""

        def cancel(connection: Connection) -> CancelOutcome:
            run = self._database.run
            for statement in statements.LOCK_WAITING:
                run(connection, statement, {"id": job_id}).all()
            found = run(connection, statements.JOB_FOR_UPDATE, {"id": job_id}).mappings().first()
            if found is None:
                raise UnknownJob(job_id)
            job = job_from(found)
            if job.state in TERMINAL_STATES:
                return CancelOutcome(job, cancelled=job.state is JobState.CANCELLED, stopping=False)
            data = dump({"by": by, "reason": reason})
            if job.state is JobState.RUNNING:
                if run(connection, statements.REQUEST_CANCEL, {"seq": job.seq}).rowcount:
                    run(connection, statements.EVENT, {"kind": "ask_cancel", "seq": job.seq, "data": data})
                return CancelOutcome(job, cancelled=False, stopping=True)
            run(connection, statements.CANCEL_WAITING, {"seq": job.seq, "reason": f"cancelled by {by}: {reason}"[:512]})
            run(connection, statements.DELETE_READY, {"seqs": [job.seq]})
            run(connection, statements.DELETE_SCHEDULED, {"seqs": [job.seq]})
            run(connection, canvases.DELETE_NEEDS, {"seqs": [job.seq]})
            run(connection, statements.EVENT, {"kind": "cancel", "seq": job.seq, "data": data})
            canvases.end_dependents(self._database, connection, [job.seq])
            return CancelOutcome(job, cancelled=True, stopping=False)

        outcome = self._database.transaction(cancel)
        job = self.get(job_id)
        assert job is not None
        return CancelOutcome(job, outcome.cancelled, outcome.stopping)

    def cancel_canvas(self, canvas_id: str, *, whole: bool, by: str, reason: str) -> CanvasCancelled:
        """Cancel a canvas, or one group of it; see the port."""
        return canvases.cancel_canvas(self._database, canvas_id, whole=whole, by=by, reason=reason)

    def end_dependents(self, task_ids: Sequence[str], words: str) -> int:
        """End the blocked jobs that wait for tasks that did not end well."""
        return self._database.transaction(
            lambda c: canvases.end_dependents_of_tasks(self._database, c, task_ids, words)
        )

    def needs(self, job_ids: Sequence[str]) -> Mapping[str, Sequence[Need]]:
        """Return what blocked jobs wait for."""
        return self._database.read(lambda c: canvases.needs_of(self._database, c, job_ids))

    def _insert(
        self,
        connection: Connection,
        jobs: Sequence[NewJob],
        payloads: Sequence[str],
        stopped: Mapping[str, str] = MappingProxyType({}),
    ) -> SubmitOutcome:
        run = self._database.run
        now, slots, limits = open_slots_of(self._database, connection, {job.queue for job in jobs})
        rows = []
        nodes = hosts_with_models(self._database, connection, jobs, open_queues(slots))
        for job, payload in zip(jobs, payloads, strict=True):
            held = bool(job.needs) or job.id in stopped
            state = JobState.BLOCKED if held else first_state(job, slots, nodes)
            queued_at = now if state is JobState.QUEUED else None
            row = new_job_row(job, payload) | {"state": state.value, "now": now, "queued_at": queued_at}
            row["node"] = nodes.get(job.id)
            rows.append(row | limited(row, limits))
        if len(rows) == 1:
            seqs = {rows[0]["id"]: run(connection, statements.INSERT_JOB, rows[0]).lastrowid}
        else:
            run(connection, statements.INSERT_JOB, rows)
            found = run(connection, statements.SEQS, {"ids": [row["id"] for row in rows]})
            seqs = {row.id: row.seq for row in found}
        for row in rows:
            row["seq"] = seqs[row["id"]]
        take_seats(self._database, connection, rows)
        self._place(connection, rows, now)
        canvases.block(self._database, connection, {seqs[job.id]: job.needs for job in jobs if job.needs})
        canvases.cancel_new(self._database, connection, {seqs[job_id]: why for job_id, why in stopped.items()})
        states = {row["id"]: JobState(row["state"]) for row in rows} | dict.fromkeys(stopped, JobState.CANCELLED)
        return SubmitOutcome(
            tuple(Submitted(row["id"], row["seq"], True, states[row["id"]]) for row in rows),
            tuple(entry_from(row) for row in rows if row["state"] in ("queued", "running")),
        )

    def _release(
        self, connection: Connection, jobs: Sequence[tuple[int, NewJob, str]]
    ) -> tuple[dict[str, Submitted], tuple[JobEntry, ...]]:
        """Let blocked jobs, given as (seq, job, payload), start as their canvas calls them now."""
        run = self._database.run
        now, slots, limits = open_slots_of(self._database, connection, {job.queue for _, job, _ in jobs})
        answers: dict[str, Submitted] = {}
        rows = []
        nodes = hosts_with_models(self._database, connection, [job for _, job, _ in jobs], open_queues(slots))
        for seq, job, payload in jobs:
            state = first_state(job, slots, nodes)
            row = new_job_row(job, payload) | {"seq": seq, "state": state.value, "now": now, "node": nodes.get(job.id)}
            row |= limited(row, limits)
            row["queued_at"] = now if state is JobState.QUEUED else None
            if run(connection, canvases.RELEASE, row).rowcount:
                rows.append(row)
            else:
                ended = connection.execute(select(tables.jobs.c.state).where(tables.jobs.c.seq == seq)).scalar_one()
                state = JobState(ended)
            answers[job.id] = Submitted(job.id, seq, False, state)
        run(connection, canvases.DELETE_NEEDS, {"seqs": [seq for seq, _, _ in jobs]})
        for row in rows:
            row["created_at"] = row["now"]
        self._place(connection, rows, now, first="release")
        return answers, tuple(entry_from(row) for row in rows if row["state"] == "queued")

    def _place(
        self, connection: Connection, rows: Sequence[dict[str, Any]], now: str | None, *, first: str = "submit"
    ) -> None:
        run = self._database.run
        publish_at = stored_instant(required_instant(now) + PUBLISH_GRACE)
        for state, statement in (
            ("queued", statements.INSERT_ADMITTED),
            ("pending", statements.INSERT_READY),
            ("scheduled", statements.INSERT_SCHEDULED),
        ):
            placed = [
                row | {"publish_at": publish_at, "rank": 9 - row["priority"]} for row in rows if row["state"] == state
            ]
            if placed:
                run(connection, statement, placed)
        deferred = "defer" if first == "release" else first
        history = [
            {"kind": deferred if row["state"] == "scheduled" else first, "seq": row["seq"], "now": now} for row in rows
        ]
        started = [row for row in rows if row["state"] in ("queued", "running")]
        history += [{"kind": "admit", "seq": row["seq"], "now": now} for row in started]
        if history:
            run(connection, statements.SUBMIT_EVENT, history)
        open_attempts(self._database, connection, [row["seq"] for row in rows if row["state"] == "running"])

    def _submit_missing(self, jobs: Sequence[NewJob], payloads: Sequence[str]) -> SubmitOutcome:
        for _ in range(MOST_TRIES):
            try:
                return self._database.transaction(lambda c: self._insert_missing(c, jobs, payloads))
            except IntegrityError as error:  # stored between the look and the insert: the next look sees it
                latest = error
        raise StoreUnavailable(str(latest.orig)) from latest

    def _insert_missing(self, connection: Connection, jobs: Sequence[NewJob], payloads: Sequence[str]) -> SubmitOutcome:
        """Insert what does not exist, and answer for the rest with what does; a name may occur twice in one call."""
        jobs, stopped = canvases.placed(self._database, connection, jobs)
        named = stored_by_name(connection, jobs)
        released: list[tuple[int, NewJob, str]] = []
        waiting: dict[int, tuple[str, ...]] = {}
        fresh: dict[int, tuple[NewJob, str]] = {}
        repeats: dict[int, int] = {}  # place of a repeat -> place of the job that it repeats
        places: dict[Name, int] = {}
        found: dict[int, Submitted] = {}
        for place, (job, payload) in enumerate(zip(jobs, payloads, strict=True)):
            row = next((named[name] for name in names_of(job) if name in named), None)
            first = next((places[name] for name in names_of(job) if name in places), None)
            if row is not None:
                refuse_other_request(job, payload, row.id, row.request_hash)
                found[place] = Submitted(row.id, row.seq, False, JobState(row.state))
                if row.state == "blocked" and row.id == job.id and job.needs:
                    waiting[row.seq] = job.needs
                elif row.state == "blocked" and row.id == job.id:
                    released.append((row.seq, job, payload))
            elif first is not None:
                refuse_other_request(job, payload, fresh[first][0].id, request_hash(*fresh[first]))
                repeats[place] = first
            else:
                fresh[place] = (job, payload)
                places |= dict.fromkeys(names_of(job), place)
        entries: tuple[JobEntry, ...] = ()
        if fresh:
            new_jobs, new_payloads = (list(column) for column in zip(*fresh.values(), strict=True))
            kept_back = {job.id: stopped[job.id] for job in new_jobs if job.id in stopped}
            outcome = self._insert(connection, new_jobs, new_payloads, kept_back)
            found |= dict(zip(fresh, outcome.jobs, strict=True))
            entries = outcome.entries
        if released:
            answers, more = self._release(connection, released)
            found |= {place: answers[job.id] for place, job in enumerate(jobs) if job.id in answers}
            entries += more
        canvases.block_further(self._database, connection, waiting)
        found |= {place: replace(found[first], created=False) for place, first in repeats.items()}
        return SubmitOutcome(tuple(found[place] for place in range(len(jobs))), entries)


#: Everything but the payload, which can be large.
_JOB_COLUMNS: Final = select(*(column for column in tables.jobs.c if column.name not in ("payload", "headers")))


def _uuids(row: Row) -> list[str]:
    return str(row["gpu_uuids"]).split(",") if row["gpu_uuids"] else []


def _attempt(row: Row, choice: int | None) -> Attempt:
    return Attempt(
        number=row["number"],
        node=row["node"],
        lease_id=row["lease_id"],
        gpus=tuple(_uuids(row)),
        pid=row["pid"],
        started_at=instant(row["started_at"]),
        ended_at=instant(row["ended_at"]),
        outcome=row["outcome"],
        failure_class=row["failure_class"],
        exit_code=row["exit_code"],
        error=row["error"],
        peak_memory_mib=row["peak_memory_mib"],
        peak_gpu_memory_mib=row["peak_gpu_memory_mib"],
        isolation=row["isolation"],
        gpu_seconds=row["gpu_seconds"],
        gpu_busy_seconds=row["gpu_busy_seconds"],
        choice=choice,
    )
