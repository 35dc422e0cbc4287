"""The judge of `make conformance`: what counts as a deviation, and that the list of known ones can only be exact."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.outcomes import Comparison, Deviation, compare, judge, load_deviations, read_outcomes
from tests.conformance.run import HERE
from tests.conformance.units import NO_POOL, POOLS, SUITES

KNOWN = Deviation("canvas", ("prefork",), "t/a.py::test_*[x]", "a reason")


def test_what_passes_on_the_baseline_alone_deviates() -> None:
    baseline = {"a": "passed", "b": "passed", "c": "failed", "d": "failed", "e": "skipped", "f": "passed"}
    ours = {"a": "passed", "b": "failed", "c": "failed", "d": "passed", "e": "skipped", "g": "passed"}
    found = compare("canvas", "prefork", baseline, ours)
    assert found.deviating == ["b", "f"]
    assert found.counts == {
        "passed on both": 1,
        "deviates": 2,
        "fails on both": 1,
        "passes here alone": 2,
        "skipped on both": 1,
    }


def test_a_test_that_is_skipped_here_alone_deviates() -> None:
    assert compare("canvas", "prefork", {"a": "passed"}, {"a": "skipped"}).deviating == ["a"]


def test_brackets_of_parameters_are_no_pattern() -> None:
    assert KNOWN.covers("canvas", "prefork", "t/a.py::test_one[x]")
    assert not KNOWN.covers("canvas", "prefork", "t/a.py::test_onex")
    assert not KNOWN.covers("canvas", "threads", "t/a.py::test_one[x]")


@pytest.mark.parametrize(
    ("deviating", "known", "fault"),
    [
        (["t/a.py::test_one[x]"], [KNOWN], None),
        (["t/a.py::test_one[x]"], [], "deviates and is not listed"),
        ([], [KNOWN], "deviates no longer"),
    ],
)
def test_the_list_has_to_be_exact(deviating: list[str], known: list[Deviation], fault: str | None) -> None:
    faults = judge([Comparison("canvas", "prefork", deviating=deviating)], known)
    assert [fault in one for one in faults] == ([True] if fault else [])


def test_a_deviation_that_depends_on_who_is_faster_may_pass() -> None:
    unsteady = replace(KNOWN, sometimes=True)
    assert judge([Comparison("canvas", "prefork")], [unsteady]) == []
    assert judge([Comparison("canvas", "prefork", deviating=["t/a.py::test_one[x]"])], [unsteady]) == []


def test_a_listed_deviation_of_a_suite_that_did_not_run_is_no_fault() -> None:
    assert judge([Comparison("tasks", "prefork")], [KNOWN]) == []


def test_the_worst_phase_of_a_test_counts_and_an_expected_failure_is_a_pass(tmp_path: Path) -> None:
    lines = [
        {"test": "a", "when": "call", "outcome": "passed", "expected": False},
        {"test": "a", "when": "teardown", "outcome": "failed", "expected": False},
        {"test": "b", "when": "call", "outcome": "skipped", "expected": True},
        {"test": "c", "when": "setup", "outcome": "skipped", "expected": False},
        {"test": "d", "when": "call", "outcome": "failed", "expected": False},
        {"test": "d", "when": "call", "outcome": "passed", "expected": False},
    ]
    path = tmp_path / "lines"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_outcomes(path) == {"a": "failed", "b": "skipped", "c": "skipped", "d": "failed"}


def test_every_listed_deviation_names_a_suite_and_a_pool_and_says_why() -> None:
    suites = {suite.name: suite for suite in SUITES}
    for one in load_deviations(HERE / "deviations.toml"):
        assert set(one.pools) <= set(suites[one.suite].pools) <= {*POOLS, NO_POOL}
        assert len(one.reason.split()) >= 10
