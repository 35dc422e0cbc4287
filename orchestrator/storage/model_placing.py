"""Jobs that want a model, sent at their submit to a host whose runners have it: no pass is waited for."""

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection

from orchestrator.domain.job import NewJob
from orchestrator.scheduling.models import Models
from orchestrator.storage import sweeps
from orchestrator.storage.admission import HEARTBEAT_BOUND, admitted_views
from orchestrator.storage.engine import Database
from orchestrator.storage.pool_members import model_views


def hosts_with_models(
    database: Database, connection: Connection, jobs: Sequence[NewJob], queues: Collection[str]
) -> Mapping[str, str]:
    """Return the hosts on which jobs can start now because a runner there has their model, by the jobs' ids.

    Args:
        database: The database.
        connection: To it.
        jobs: That are being submitted.
        queues: Those whose jobs may start.
    """
    wanting = [(job, job.resources.wants.model) for job in jobs if job.resources.wants is not None]
    wanting = [(job, model) for job, model in wanting if model and job.run_at is None and job.queue in queues]
    views = model_views(database, connection, bound_seconds=HEARTBEAT_BOUND) if wanting else ()
    if not views:
        return {}
    admitted = admitted_views(database.run(connection, sweeps.ADMITTED, {"node": None}).all())
    models = Models(views, admitted, {view.node for view in views})
    found = {}
    for job, model in wanting:
        node = models.place(model or "", job.tenant, job.queue)
        if node is not None:
            found[job.id] = node
    return found
