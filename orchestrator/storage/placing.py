"""Admission of waiting jobs, and taking it back."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection

from orchestrator.domain.entry import JobEntry
from orchestrator.storage import statements
from orchestrator.storage.engine import Database
from orchestrator.storage.rows import entry_from

#: An entry whose publisher died is published by the leader after so long.
PUBLISH_GRACE: Final = timedelta(seconds=2)


def admit(
    database: Database,
    connection: Connection,
    placements: Sequence[tuple[int, str | None]],
    *,
    epoch: int | None = None,
) -> tuple[JobEntry, ...]:
    """Move pending jobs to queued; those that are not pending any more are left out of the answer."""
    if not placements:
        return ()
    wanted = dict(placements)
    run = database.run
    pending = set(run(connection, statements.PENDING_FOR_UPDATE, {"seqs": sorted(wanted)}).scalars())
    by_node: dict[str | None, list[int]] = defaultdict(list)
    for seq in wanted:
        if seq in pending:
            by_node[wanted[seq]].append(seq)
    if not by_node:
        return ()
    seqs = sorted(pending)
    run(connection, statements.ADMIT_JOBS, {"seqs": seqs})
    for node, placed in by_node.items():
        run(connection, statements.ADMIT_READY, {"seqs": placed, "node": node, "grace": PUBLISH_GRACE.total_seconds()})
        run(connection, statements.JOB_EVENTS, {"seqs": placed, "kind": "admit", "node": node, "epoch": epoch})
    return tuple(entry_from(row) for row in run(connection, statements.ENTRIES, {"seqs": seqs}).mappings())


def withdraw(
    database: Database,
    connection: Connection,
    seqs: Iterable[int],
    *,
    node: str | None = None,
    epoch: int | None = None,
) -> list[int]:
    """Move queued jobs back to pending, only those a node may take if one is given; return which they were."""
    run = database.run
    values = {"seqs": sorted(seqs), "node": node}
    admitted = sorted(run(connection, statements.ADMITTED_FOR_UPDATE, values).scalars())
    if admitted:
        run(connection, statements.WITHDRAW_JOBS, {"seqs": admitted})
        run(connection, statements.WITHDRAW_READY, {"seqs": admitted})
        run(connection, statements.JOB_EVENTS, {"seqs": admitted, "kind": "withdraw", "node": None, "epoch": epoch})
    return admitted
