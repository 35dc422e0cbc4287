"""Durations, sizes and assignments as people write them."""

import math
import re
from datetime import UTC, datetime, timedelta, timezone

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_cli.values import Alternative, Assignment, Duration, Since, Size

UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
MEBIBYTES = {"MiB": 1, "GiB": 1024, "TiB": 1 << 20, "G": 1024, "": 1}


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(sorted(UNITS))), min_size=1, max_size=4))
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in parts)

    assert Duration().convert(text, None, None) == sum(number * UNITS[unit] for number, unit in parts)


@given(st.floats(0, 1e9))
def test_a_number_is_a_duration_in_seconds(seconds: float) -> None:
    assert Duration().convert(repr(seconds), None, None) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "1x", "1h 30m", "h", "-5", "-5s", "nan", "inf", "-inf", "1e999", "9" * 400 + "d", "٣s5"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Neither is what time does not have: less than nothing, without end, not a number."""
    with pytest.raises(click.BadParameter, match="not a duration"):
        Duration().convert(text, None, None)


@given(st.text())
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        seconds = Duration().convert(text, None, None)
    except click.BadParameter:
        return
    assert 0 <= seconds < math.inf


@given(
    st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(timezone(timedelta(hours=2)))),  # noqa: DTZ001
    st.sampled_from(["seconds", "microseconds"]),
)
def test_an_instant_is_read_with_its_time_zone(instant: datetime, precision: str) -> None:
    found = Since().convert(instant.isoformat(timespec=precision), None, None)
    assert found.tzinfo is UTC
    assert found == (instant if precision == "microseconds" else instant.replace(microsecond=0))


def test_an_instant_without_a_time_zone_is_the_machines() -> None:
    for text in ("2026-01-31", "2026-01-31T08:00"):
        assert Since().convert(text, None, None) == datetime.fromisoformat(text).astimezone()


def test_a_duration_is_an_instant_so_long_ago() -> None:
    before = datetime.now(UTC)
    found = Since().convert("1h30m", None, None)
    assert before <= found + timedelta(hours=1, minutes=30) <= datetime.now(UTC)


@pytest.mark.parametrize("text", ["", "yesterday", "-1h", "2026-13-01", "0001-01-01T00:00+10:00", "9999999d"])
def test_what_is_no_instant_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="neither a duration"):
        Since().convert(text, None, None)


@given(st.integers(1, 10_000), st.sampled_from(sorted(MEBIBYTES)))
def test_a_size_is_told_in_mebibytes(number: int, unit: str) -> None:
    assert Size().convert(f"{number}{unit}", None, None) == number * MEBIBYTES[unit]
    assert Size().convert(f" {number} {unit.lower()} ", None, None) == number * MEBIBYTES[unit]


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "1XiB", "GiB", "0.5MiB", "nan", "inf", "9" * 400])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="not a size"):
        Size().convert(text, None, None)


@given(st.text().filter(lambda name: name and "=" not in name), st.text())
def test_an_assignment_is_cut_at_its_first_equals_sign(name: str, value: str) -> None:
    assert Assignment().convert(f"{name}={value}", None, None) == (name, value)


@pytest.mark.parametrize("text", ["", "NAME", "=value"])
def test_what_assigns_nothing_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="NAME=VALUE"):
        Assignment().convert(text, None, None)


def test_an_alternative_is_read_as_the_api_takes_it() -> None:
    text = "gpus=2, gpu-type=H100|A100,min-memory=40GiB"
    read = {"gpus": 2, "gpu_type": "H100|A100", "min_memory": "40GiB"}
    assert Alternative().convert(text, None, None) == read
    assert Alternative().convert(read, None, None) == read, "click converts a default again"
    assert Alternative().convert("gpu-memory=8GiB", None, None) == {"gpu_memory": "8GiB"}
    assert Alternative().convert("mig=1g.10gb,gpus=3", None, None) == {"mig": "1g.10gb", "gpus": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is none of gpus=…, gpu-memory=…, gpu-type=…, min-memory=…, mig=…"),
        ("gpus", "'gpus' is none of"),
        ("gpus=2,cpus=4", "'cpus=4' is none of"),
        ("gpu_type=H100", "'gpu_type=H100' is none of"),
        ("gpus=-1", "gpus=-1 is not a whole number"),
        ("gpus=1.5", "gpus=1.5 is not a whole number"),
    ],
)
def test_what_is_no_alternative_is_named(text: str, words: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(words)):
        Alternative().convert(text, None, None)
