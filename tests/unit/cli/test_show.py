"""What people see."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator_cli import show
from orchestrator_cli.show import GAP, NARROWEST

COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
TROUBLE = st.sampled_from(
    [
        "\u202e",
        "\u2066",
        "\x1b",
        "\x1b[",
        "\x1b]",
        "\x9b",
        "\x07",
        "\0",
        "2J",
        "31m",
        "0;",
        "m",
        "?25l",
        "\\",
        "P",
        "\n",
    ]
)
#: Of the direction of writing.
OVERRIDES = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


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

    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", left), repr(left)


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=OVERRIDES)))
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
        ("rm \u202egnp.exe\u202c", "rm gnp.exe"),
        ("\u2067a\u2069b", "ab"),
        ("\u200fשלום", "\u200fשלום"),
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


#: The columns of ``orch ps`` at their widest, as a rule: the longest state, and names as long as they may be.
PS = {"ID": 36, "NAME": 128, "STATE": 11, "GPUS": 6, "NODE": 64, "TRY": 3, "RUN": 4, "AGE": 4, "DONE": 4, "EXIT": 4}
CAN_GO = ("NODE", "TRY", "GPUS", "DONE")


@pytest.mark.parametrize("room", [300, 120, 100, 80])
def test_a_table_fits_its_terminal_with_whole_ids(room: int) -> None:
    widths = show.fitted(PS, room, CAN_GO)

    assert sum(widths.values()) + GAP * (len(widths) - 1) <= room
    assert {name: widths[name] for name in ("ID", "STATE", "RUN", "AGE", "EXIT")} == {
        name: PS[name] for name in ("ID", "STATE", "RUN", "AGE", "EXIT")
    }
    assert widths["NAME"] >= NARROWEST


def test_with_room_for_all_nothing_is_narrowed() -> None:
    assert show.fitted(PS, 400, CAN_GO) == PS


@given(st.dictionaries(st.sampled_from([*PS, "MODEL", "QUEUES"]), st.integers(1, 200), min_size=1), st.integers(1, 300))
def test_no_column_grows_and_none_is_cut_to_nothing(widths: dict[str, int], room: int) -> None:
    """What is not to be cut keeps its width, or goes as a whole."""
    fitting = show.fitted(widths, room, CAN_GO)

    assert set(widths) - set(fitting) <= set(CAN_GO)
    for name, width in fitting.items():
        assert width == widths[name] or (name in show.ELASTIC and NARROWEST <= width < widths[name])
