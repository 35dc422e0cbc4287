"""Taking a host out of service and back: an operator's wish, kept in the host's row, that outlives its worker."""

from typing import Final

from sqlalchemy import Connection

from orchestrator.domain.cluster import DrainOutcome, NodeState
from orchestrator.errors import UnknownNode
from orchestrator.storage.engine import Database
from orchestrator.storage.placing import withdraw
from orchestrator.storage.rows import dump
from orchestrator.storage.sql import Sql

NODE_FOR_UPDATE: Final = Sql("SELECT state, drain FROM orchestrator_nodes WHERE name = :name {for_update}")
SET_DRAIN: Final = Sql("UPDATE orchestrator_nodes SET drain = :drain, state = :state WHERE name = :name")
PLACED: Final = Sql("SELECT job_seq FROM orchestrator_ready WHERE node = :name AND publish_at IS NOT NULL")
EVENT: Final = Sql("INSERT INTO orchestrator_events (at, kind, node, data) VALUES ({now}, :kind, :name, :data)")


def set_drain(database: Database, connection: Connection, node: str, *, drain: bool, by: str) -> DrainOutcome:
    """Note the wish, and withdraw what was placed on the host and has not started.

    Raises:
        UnknownNode: If no such host has ever registered.
    """
    run = database.run
    row = run(connection, NODE_FOR_UPDATE, {"name": node}).first()
    if row is None:
        raise UnknownNode(node)
    changed = bool(row.drain) != drain
    state = NodeState(row.state)
    if changed:
        if state is not NodeState.LOST:  # a host without a worker is lost either way; the next one heeds the wish
            state = NodeState.DRAINING if drain else NodeState.UP
        run(connection, SET_DRAIN, {"name": node, "drain": int(drain), "state": state.value})
        kind = "node_drain" if drain else "node_undrain"
        run(connection, EVENT, {"kind": kind, "name": node, "data": dump({"by": by})})
    placed = list(run(connection, PLACED, {"name": node}).scalars()) if drain else []
    withdrawn = withdraw(database, connection, placed) if placed else []
    return DrainOutcome(state, changed, len(withdrawn))
