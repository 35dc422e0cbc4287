"""The transition table, its drawing in the documentation, and its simplest consequences."""

import re
from pathlib import Path

import pytest

from orchestrator.domain.job import INITIAL_STATES, TERMINAL_STATES, TRANSITIONS, JobEvent, JobState, next_state
from orchestrator.errors import IllegalTransition

DRAWING = Path(__file__).parents[2] / "docs" / "state-machine.md"


def test_the_drawing_shows_exactly_the_table() -> None:
    edges = re.findall(r"^    (\w+) --> (\w+): (\w+)$", DRAWING.read_text(), flags=re.MULTILINE)
    drawn = {(JobState(source), JobEvent(event)): JobState(target) for source, target, event in edges}

    assert drawn == dict(TRANSITIONS)


def test_the_drawing_shows_where_jobs_begin_and_end() -> None:
    text = DRAWING.read_text()

    begins = set(re.findall(r"^    \[\*\] --> (\w+)$", text, flags=re.MULTILINE))
    ends = set(re.findall(r"^    (\w+) --> \[\*\]$", text, flags=re.MULTILINE))

    assert begins == {str(state) for state in INITIAL_STATES}
    assert ends == {str(state) for state in TERMINAL_STATES}


def test_only_a_person_takes_a_job_out_of_a_terminal_state() -> None:
    leaving = {(state, event) for state, event in TRANSITIONS if state in TERMINAL_STATES}

    assert leaving == {(state, JobEvent.REVIVE) for state in TERMINAL_STATES - {JobState.SUCCEEDED}}


def test_every_state_that_is_not_terminal_can_be_cancelled() -> None:
    for state in set(JobState) - TERMINAL_STATES:
        assert next_state(state, JobEvent.CANCEL) is JobState.CANCELLED


def test_an_edge_that_the_table_lacks_is_refused() -> None:
    with pytest.raises(IllegalTransition, match="a job that is succeeded cannot claim"):
        next_state(JobState.SUCCEEDED, JobEvent.CLAIM)
