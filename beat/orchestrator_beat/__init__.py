"""Leader-elected scheduler for ``celery beat``."""
