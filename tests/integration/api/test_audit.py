"""Which changes have a line in the audit, and when it is written."""

import dataclasses
from typing import Any, Final

import pytest

from orchestrator.domain.access import AuditEntry
from orchestrator.errors import StoreUnavailable
from orchestrator.runtime import Runtime
from tests.integration.api.conftest import client_of
from tests.integration.api.test_access_matrix import ROWS, Row

#: Changes without a line, and what tells of them instead.
SELF_RECORDING: Final = {
    ("POST", "/jobs/submit"): "the job's row and history",
    ("POST", "/leases/{token}/heartbeat"): "the lease's row: when it was last renewed",
}
CHANGES: Final = tuple(row for row in ROWS if row.method != "GET")


class Lines:
    """The access store; what is written to the audit stays here, unless the audit is away."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.written: list[AuditEntry] = []
        self.away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def note(self, entry: AuditEntry) -> None:
        """Write a line."""
        if self.away:
            raise StoreUnavailable("the audit is away")
        self.written.append(entry)


@pytest.mark.parametrize("row", CHANGES, ids=lambda row: f"{row.method} {row.path}")
def test_a_change_has_its_line_before_it_is_made(runtime: Runtime, row: Row) -> None:
    """Where the line cannot be written it is not made; what has none is on the list, with the reason."""
    lines = Lines(runtime.access)
    with client_of(dataclasses.replace(runtime, access=lines)) as client:
        answered = client.request(row.method, row.path, json=row.body).status_code
        lines.away = True
        unwritten = client.request(row.method, row.path, json=row.body).status_code

    told = [(entry.action, entry.outcome) for entry in lines.written]
    if (row.method, row.path) in SELF_RECORDING:
        assert (told, unwritten == 503) == ([], False)
    else:
        assert told == [(f"{row.method} {row.path}", outcome) for outcome in ("begun", str(answered))]
        assert unwritten == 503


def test_what_has_no_line_is_an_endpoint() -> None:
    """So that the list names nothing that has gone."""
    assert set(SELF_RECORDING) <= {(row.method, row.path) for row in CHANGES}
