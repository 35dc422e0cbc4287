"""The table of faults in the documentation names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_fault_is_shown_by_a_test_that_exists() -> None:
    section = (ROOT / "docs" / "reliability.md").read_text().split("## Faults\n")[1].split("\n## ")[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| ")][2:]
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    existing = set(re.findall(r"^ *def (test_\w+)\(", sources, flags=re.MULTILINE))
    named = [re.findall(r"`(test_\w+)`", row[-2]) for row in rows]

    assert len(rows) >= 20
    assert all(named), "a fault without a test"
    assert {name for names in named for name in names} <= existing


def test_every_fail_point_is_a_case_of_the_matrix() -> None:
    from orchestrator.failpoints import POINTS

    cases = "\n".join(path.read_text() for path in (ROOT / "tests" / "chaos").glob("test_*.py"))
    assert {point for point in POINTS if f'"{point}"' not in cases} == set()
