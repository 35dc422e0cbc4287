"""Sizes of memory as people write them."""

import pytest

from orchestrator.domain.size import parse_mebibytes
from orchestrator.errors import InvalidRequest


@pytest.mark.parametrize(
    ("size", "mebibytes"),
    [
        ("12GiB", 12 * 1024),
        ("12G", 12 * 1024),
        ("1.5gb", 1536),
        ("800", 800),
        (800, 800),
        ("2 TiB", 2 << 20),
        (None, None),
    ],
)
def test_a_size_is_whole_mebibytes(size: str | int | None, mebibytes: int | None) -> None:
    assert parse_mebibytes(size) == mebibytes


@pytest.mark.parametrize("size", ["huge", "-1GiB", "0", "0.5MiB", "1XiB", "", "9" * 400, 10**400, "1e3GiB"], ids=repr)
def test_what_is_no_size_is_refused(size: str | int) -> None:
    """Also what is more than any number that memory could have."""
    with pytest.raises(InvalidRequest, match="is not a size of memory"):
        parse_mebibytes(size)
