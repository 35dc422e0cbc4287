"""The Lua scripts of this package, run by digest and loaded into a server that does not know them."""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError


class Script:
    """One script; a server forgets it when it restarts, so each use must be ready to load it."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: Any, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Run it on one server; errors are redis's own."""
        try:
            return client.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return client.execute_command("EVAL", self.source, len(keys), *keys, *args)

    def load(self, client: Any) -> None:
        """Make the server know it."""
        client.execute_command("SCRIPT LOAD", self.source)


@cache
def script(name: str) -> Script:
    """Return the script ``scripts/<name>.lua``."""
    return Script((files(__package__) / "scripts" / f"{name}.lua").read_text("utf-8"))
