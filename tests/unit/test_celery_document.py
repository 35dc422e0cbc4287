"""docs/celery.md says what `make conformance` found and what its list of deviations says."""

import json
from typing import Any

import pytest

from tests.conformance.outcomes import load_deviations
from tests.conformance.report import table
from tests.conformance.run import HERE, ROOT
from tests.conformance.sources import pinned_versions

TEXT = (ROOT / "docs/celery.md").read_text()


@pytest.fixture(scope="module")
def document() -> Any:
    return json.loads((ROOT / "bench/results/conformance.json").read_text())


def test_the_table_is_the_last_runs(document: Any) -> None:
    rows = [
        line
        for line in TEXT.splitlines()
        if line.startswith(tuple(f"| {one['suite']} | {one['pool']} |" for one in document["suites"]))
    ]
    assert rows == table(document)


def test_the_last_run_was_of_the_pinned_versions_and_found_nothing_wrong(document: Any) -> None:
    assert document["versions"] == pinned_versions()
    assert document["faults"] == []


def test_every_deviation_is_told(document: Any) -> None:
    for one in load_deviations(HERE / "deviations.toml"):
        assert f"`{one.tests.rpartition('/')[2]}`" in TEXT
