"""docs/reliability.md lists every invariant in its own words, and every seeded bug exists."""

import re
from pathlib import Path

from orchestrator.testing.history import INVARIANTS
from tests.contract.seeded import bugs_of_jobs, bugs_of_leases
from tests.contract.seeded.world import BUGS

TEXT = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
ROWS = {row[0].strip(" `"): row for row in re.findall(r"^\| (`[a-z-]+`) \| (.*?) \| (.*?) \| (.*?) \|$", TEXT, re.M)}

assert bugs_of_jobs, bugs_of_leases  # they register what they define


def test_every_invariant_is_told_in_its_own_words() -> None:
    told = {name: row[1].removesuffix(" `[model]`") for name, row in ROWS.items() if name in INVARIANTS}

    assert told == dict(INVARIANTS)


def test_the_bugs_that_are_named_exist_and_are_caught_by_that_invariant() -> None:
    for name in INVARIANTS:
        for words in ROWS[name][3].split("; "):
            key = words.lower().replace("'s", "s").replace(" ", "_")
            if words != "(unit tests)":
                assert BUGS[key].caught_by == name, words


def test_the_number_of_bugs_is_told() -> None:
    assert f"{len(BUGS)} of them" in TEXT


def test_what_the_model_proves_is_marked() -> None:
    model = (Path(__file__).parents[1] / "model" / "lease.pml").read_text()
    proven = set(re.findall(r"assert\(.*\).*?/\* ([a-z-]+) \*/", model))

    assert {name for name, row in ROWS.items() if row[1].endswith("`[model]`")} == proven
