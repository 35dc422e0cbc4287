"""Waiting has a deadline and says what it waited for."""

import pytest

from tests.support.waiting import wait_for


def test_the_first_true_value_is_returned() -> None:
    """A wait ends with the value that ended it."""
    values = iter([0, "", "here"])
    assert wait_for(lambda: next(values), within_seconds=5, describe="a value") == "here"


def test_a_wait_in_vain_names_what_it_waited_for() -> None:
    """The failure carries the description and the last value."""
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: the impossible \(last value: 0\)"):
        wait_for(lambda: 0, within_seconds=0.05, describe="the impossible")
