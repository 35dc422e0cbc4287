"""The GPU job orchestrator for people who already know Celery."""

__version__ = "0.1.0"
