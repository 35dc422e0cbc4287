"""Jobs that ended long before the test began."""

from datetime import timedelta

from sqlalchemy import create_engine, text

from orchestrator.runtime import Runtime


def end_earlier(runtime: Runtime, job_id: str, by: timedelta) -> None:
    """Date the end of a job back."""
    found = runtime.jobs.get(job_id)
    assert found is not None
    assert found.finished_at is not None
    engine = create_engine(runtime.settings.database)
    values = {"at": (found.finished_at - by).strftime("%Y-%m-%d %H:%M:%S.%f"), "id": job_id}
    with engine.begin() as connection:
        connection.execute(text("UPDATE orchestrator_jobs SET finished_at = :at WHERE id = :id"), values)
    engine.dispose()
