"""The GPU job orchestrator for people who already know Celery."""

from orchestrator import model_cache
from orchestrator.job_context import JobContext, current

__version__ = "0.1.0"
__all__ = ["JobContext", "__version__", "current", "model_cache"]
