"""The verbs of `orch`, one module a group."""
