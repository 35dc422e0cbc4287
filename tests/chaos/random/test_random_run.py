"""A short randomized run; `make chaos` plays longer ones with other seeds."""

from pathlib import Path

import pytest

from tests.chaos.random.__main__ import play
from tests.chaos.random.run import Figures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("database", ["mariadb", pytest.param("sqlite", marks=pytest.mark.matrix)])
def test_nothing_is_lost_or_doubled_whatever_dies(tmp_path: Path, database: str) -> None:
    """Jobs of every kind under faults of every kind: all end as they should, and the history is whole."""
    figures = play(tmp_path, Figures(seed=1, seconds=25, database=database), rate=1.5)

    assert not figures.violations, f"{figures}"
    assert sum(figures.faults.values()) >= 4
    assert figures.checked["jobs"] >= 15
