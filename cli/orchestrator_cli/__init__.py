"""The `orch` command: parse, call a service or the API, print."""
