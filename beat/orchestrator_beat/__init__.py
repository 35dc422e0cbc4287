"""The leader-elected scheduler for `celery beat`."""
