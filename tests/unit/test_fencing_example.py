"""The example of docs/checkpoints.md refuses a stale attempt's write."""

import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_a_stale_attempt_cannot_publish(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was paused, another attempt published, and it wakes up."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102 - our own page
    store = sqlite3.connect(":memory:")
    store.execute("CREATE TABLE models (name TEXT PRIMARY KEY, path TEXT, token INTEGER)")

    def publish(token: int, path: str) -> None:
        monkeypatch.setenv("ORCHESTRATOR_FENCING_TOKEN", str(token))
        names["publish"](store, "m", path)

    publish(7, "old")
    publish(9, "new")
    with pytest.raises(SystemExit):
        publish(7, "stale")
    publish(9, "newer")
    assert store.execute("SELECT path, token FROM models").fetchall() == [("newer", 9)]
