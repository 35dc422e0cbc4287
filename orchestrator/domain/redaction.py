"""How a job's arguments are shown in streams, logs and Flower: shapes and short values, never a secret.

Containers are shown by type and length alone, because what is inside them has names that nobody checked.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

LONGEST_VALUE: Final = 60
LONGEST: Final = 1000
_SECRET_NAME: Final = re.compile(r"pass|pwd|token|secret|key|auth|credential|cookie|bearer|private", re.IGNORECASE)
#: ``scheme://user:password@host``, and the prefixes that providers give their keys.
_SECRET_VALUE: Final = re.compile(r"://[^/\s@]+@|^(sk|pk|ghp|gho|hf|glpat|xox[a-z]|AKIA|eyJ)[-_A-Za-z0-9]{8,}")
HIDDEN: Final = "***"


def show_arguments(args: Sequence[Any]) -> str:
    """Return positional arguments for people to read, at most 1,000 characters."""
    return _bounded("(" + ", ".join(_show(value) for value in args) + ("," if len(args) == 1 else "") + ")")


def show_keywords(kwargs: Mapping[str, Any]) -> str:
    """Return keyword arguments for people to read, those with a telling name hidden."""
    shown = (
        f"{name[:LONGEST_VALUE]!r}: {HIDDEN if is_secret_name(name) else _show(value)}"
        for name, value in kwargs.items()
    )
    return _bounded("{" + ", ".join(shown) + "}")


def show_command(argv: Sequence[str]) -> str:
    """Return the program's name and how many arguments it gets; arguments often hold secrets."""
    program = argv[0].rsplit("/", 1)[-1][:LONGEST_VALUE]
    count = len(argv) - 1
    return f"({program!r}, {count} argument{'' if count == 1 else 's'})"


def is_secret_name(name: str) -> bool:
    """The name says that its value should not be shown."""
    return _SECRET_NAME.search(name) is not None


def _show(value: Any) -> str:
    if value is None or isinstance(value, bool | int | float):
        return repr(value)[:LONGEST_VALUE]
    if isinstance(value, str):
        if _SECRET_VALUE.search(value):
            return HIDDEN
        return repr(value) if len(value) <= LONGEST_VALUE else f"{value[: LONGEST_VALUE - 1]!r}…"
    if isinstance(value, Mapping | Sequence):
        return f"<{type(value).__name__} of {len(value)}>"
    return f"<{type(value).__name__}>"


def _bounded(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
