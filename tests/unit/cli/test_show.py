"""What people see."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator_cli import show

COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
TROUBLE = st.sampled_from(
    ["\x1b", "\x1b[", "\x1b]", "\x9b", "\x07", "\0", "2J", "31m", "0;", "m", "?25l", "\\", "P", "\n"]
)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0s"), (0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_800, "2d")],
)
def test_a_span_is_told_in_its_largest_sensible_unit(seconds: float, words: str) -> None:
    assert show.span(seconds) == words


def test_an_age_is_counted_from_an_instant() -> None:
    assert show.age(None) is None
    assert show.age((datetime.now(UTC) - timedelta(minutes=5, seconds=10)).isoformat()) == "5m"
    assert show.age((datetime.now(UTC) + timedelta(minutes=5)).isoformat()) == "0s"


@given(st.lists(st.one_of(TROUBLE, st.text(max_size=3))).map("".join))
@example("\x1b[\x002J")  # taking out the NUL must not leave a sequence that clears the screen
@example("\x1b")
@example("\x1b]0;title")
def test_no_output_reaches_the_terminal_but_text_and_colours(text: str) -> None:
    left = COLOUR.sub("", show.harmless(text))

    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", left), repr(left)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"])))
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    assert show.harmless(f"\x1b[1;31m{text}\x1b[0m\t\r\n") == f"\x1b[1;31m{text}\x1b[0m\t\r\n"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a\x1b[2Jb", "ab"),
        ("a\x1b[?25lb", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]52;c;aGk=\x1b\\b", "ab"),
        ("a\x1bP1$r\x1b\\b", "ab"),
        ("a\x1b(Bb", "ab"),
        ("a\x1bcb", "ab"),
        ("a\x9b2Jb", "ab"),
        ("a\x08b", "ab"),
        ("50%\r100%\n", "50%\r100%\n"),
    ],
)
def test_a_sequence_leaves_with_all_of_it(text: str, left: str) -> None:
    assert show.harmless(text) == left


@pytest.mark.parametrize(
    ("progress", "words"),
    [(None, None), ({}, None), ({"done": 1, "total": 3}, "33%"), ({"done": 7}, "7"), ({"done": 7, "total": 0}, "7")],
)
def test_progress_is_a_share_or_a_count(progress: dict[str, int] | None, words: str | None) -> None:
    assert show.progress({"progress": progress}) == words
