"""The Celery side: lease step, ledger, runner pool, GPU tasks."""
