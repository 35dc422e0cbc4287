"""Celery's and kombu's own tests on this transport, against stock ``redis://`` as the baseline: ``make conformance``."""
