"""Celery's and kombu's own tests on this transport, with stock ``redis://`` as baseline: ``make conformance``."""
