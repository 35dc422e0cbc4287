"""How long the lease of a line is trusted."""

from types import SimpleNamespace
from typing import Any, cast

from orchestrator.config import Settings
from orchestrator.domain.job import JobKind, LeaseMode, Resources
from orchestrator.domain.lease import LeaseGrant
from orchestrator.worker.host import Line, Shape
from orchestrator.worker.lines import Lines


def make_lines(line: Line) -> Lines:
    pool = SimpleNamespace(host=SimpleNamespace(lines={line.key: line}), runners=None)
    return Lines(cast(Any, pool), Settings(lease_ttl=15, lease_margin=3))


def test_a_claim_under_a_held_lease_adds_nothing_to_its_life() -> None:
    shape = Shape(Resources(1), "a", JobKind.TASK, "task", 5)
    line = Line(1, LeaseGrant(("GPU-0",), LeaseMode.EXCLUSIVE, None), shape)
    lines = make_lines(line)

    lines.begin_lease(line, 7, asked_at=100.0)
    assert (line.lease_id, line.trusted_until) == (7, 112.0)

    lines.begin_lease(line, 7, asked_at=104.0)
    assert line.trusted_until == 112.0, "the database has it end at 115"

    lines.extend_trust(105.0, frozenset({7}))
    assert line.trusted_until == 117.0
