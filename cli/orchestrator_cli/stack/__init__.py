"""The embedded stack: everything that the orchestrator needs, on one machine, under one process supervisor."""
