"""How each test went on the baseline and on our transport, and what that means."""

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

PASSED: Final = "passed"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class Deviation:
    """A deviation that is known: the tests that it names pass on the baseline and fail here, for a reason."""

    suite: str
    pools: tuple[str, ...]
    tests: str  # a pattern; [] in it stand for themselves
    reason: str

    def covers(self, suite: str, pool: str, test: str) -> bool:
        """Whether it speaks of this test."""
        literal = self.tests.replace("[", "[[]")
        return self.suite == suite and pool in self.pools and fnmatchcase(test, literal)


@dataclass(slots=True)
class Comparison:
    """One suite on one pool."""

    suite: str
    pool: str
    counts: dict[str, int] = field(default_factory=dict)
    deviating: list[str] = field(default_factory=list)
    failing: list[str] = field(default_factory=list)  # on both sides


def read_outcomes(path: Path) -> dict[str, str]:
    """Return each test's outcome from the plugin's lines: the last run of a test counts, and its worst phase."""
    outcomes: dict[str, str] = {}
    for text in path.read_text().splitlines() if path.exists() else ():
        line = json.loads(text)
        test, outcome = line["test"], line["outcome"]
        if outcome == "rerun":
            outcomes.pop(test, None)
            continue
        if line["expected"]:
            outcome = SKIPPED if outcome == SKIPPED else PASSED
        if outcomes.get(test) != FAILED:
            outcomes[test] = outcome
    return outcomes


def compare(suite: str, pool: str, baseline: Mapping[str, str], ours: Mapping[str, str]) -> Comparison:
    """Put both sides together; a test that one side did not run at all counts as failed there."""
    made = Comparison(suite, pool)
    for test in sorted({*baseline, *ours}):
        before, now = baseline.get(test, FAILED), ours.get(test, FAILED)
        meaning = _meaning(before, now)
        made.counts[meaning] = made.counts.get(meaning, 0) + 1
        if meaning == "deviates":
            made.deviating.append(test)
        elif meaning == "fails on both":
            made.failing.append(test)
    return made


def _meaning(baseline: str, ours: str) -> str:
    if baseline == ours:
        return {PASSED: "passed on both", FAILED: "fails on both", SKIPPED: "skipped on both"}[ours]
    if baseline == PASSED:
        return "deviates"
    return "passes here alone" if ours == PASSED else "fails on both"


def load_deviations(path: Path) -> list[Deviation]:
    """Read the list of known deviations."""
    found = tomllib.loads(path.read_text()).get("deviation", [])
    return [Deviation(one["suite"], tuple(one["pools"]), one["tests"], one["reason"]) for one in found]


def judge(comparisons: Iterable[Comparison], known: Iterable[Deviation]) -> list[str]:
    """Return what is wrong: deviations that nobody listed, and listed ones that no longer deviate."""
    comparisons, faults, seen = list(comparisons), [], set()
    known = list(known)
    for one in comparisons:
        for test in one.deviating:
            covering = [each for each in known if each.covers(one.suite, one.pool, test)]
            seen.update((each, one.pool) for each in covering)
            if not covering:
                faults.append(f"deviates and is not listed: {one.suite}, {one.pool}: {test}")
    ran = {(one.suite, one.pool) for one in comparisons}
    for each in known:
        for pool in each.pools:
            if (each.suite, pool) in ran and (each, pool) not in seen:
                faults.append(f"listed, but deviates no longer: {each.suite}, {pool}: {each.tests}")
    return faults
