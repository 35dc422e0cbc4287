"""The Celery app and thin task bodies."""
