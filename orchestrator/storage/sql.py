"""Statements written once for MariaDB and SQLite: text with a few marks that each dialect spells in its own way.

``{now}`` is the database's clock, ``{now_plus:name}`` that clock plus the parameter ``name`` in seconds,
``{for_update}`` a row lock where the database has them (SQLite's writers exclude each other from their first
statement on).

A statement goes to the driver as it is: SQLAlchemy's own compiler, made for statements that differ, costs as much per
execution as the driver does.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

_SQLITE_NOW: Final = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"
_PARAMETER: Final = re.compile(r"(?<![:\w]):([a-z]\w*)")
_PLACEHOLDERS: Final = {"mysql": "%s", "sqlite": "?"}
_NOTHING: Final = "SELECT 1 FROM (SELECT 1) no_row WHERE 1 = 0"


class Sql:
    """One statement in both dialects."""

    def __init__(self, template: str, *lists: str, mysql: str | None = None) -> None:
        """Keep it.

        Args:
            template: The text, for SQLite and, unless ``mysql`` is given, for MariaDB.
            lists: Names of parameters that are lists, written ``IN :name``.
            mysql: MariaDB's own text where the two differ.
        """
        self._template, self._mysql, self._lists = template, mysql, frozenset(lists)

    def with_values(self, dialect: str, values: Mapping[str, Any]) -> tuple[str, tuple[Any, ...]]:
        """Return the text for the driver of ``mysql`` or ``sqlite``, and its positional parameters."""
        placeholder = _PLACEHOLDERS[dialect]
        texts, names = self._parts(dialect)
        said = [texts[0]]
        bound: list[Any] = []
        for name, text in zip(names, texts[1:], strict=True):
            if name in self._lists:
                said.append(f"({_listed(values[name], bound, placeholder)})")
            else:
                said.append(placeholder)
                bound.append(values[name])
            said.append(text)
        return "".join(said), tuple(bound)

    def with_rows(self, dialect: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[Any, ...]]]:
        """Return the text for the driver, and the positional parameters of each row; without lists."""
        texts, names = self._parts(dialect)
        return _PLACEHOLDERS[dialect].join(texts), [tuple([row[name] for name in names]) for row in rows]

    @cache  # noqa: B019 - statements are module constants
    def _parts(self, dialect: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the texts between the parameters, and the parameters' names."""
        template = self._mysql if dialect == "mysql" and self._mysql else self._template
        marks = _MYSQL if dialect == "mysql" else _SQLITE
        text = re.sub(r"\{(\w+)(?::(\w+))?\}", lambda match: marks[match[1]].replace("?", f":{match[2]}"), template)
        if dialect == "mysql":
            text = text.replace("%", "%%")
        found = _PARAMETER.split(text)
        return tuple(found[::2]), tuple(found[1::2])


def _listed(values: Sequence[Any], bound: list[Any], placeholder: str) -> str:
    """Return the inside of a list's brackets; what it binds is added to ``bound``."""
    if not values:
        return _NOTHING
    if set(map(type, values)) == {int}:
        return ",".join(map(str, values))
    bound.extend(values)
    return ",".join([placeholder] * len(values))


_MYSQL: Final = {
    "now": "UTC_TIMESTAMP(6)",
    "now_plus": "(UTC_TIMESTAMP(6) + INTERVAL ? SECOND)",
    "now_minus": "(UTC_TIMESTAMP(6) - INTERVAL ? SECOND)",
    "for_update": "FOR UPDATE",
    "for_share": "LOCK IN SHARE MODE",
}
_SQLITE: Final = {
    "now": f"({_SQLITE_NOW})",
    "now_plus": "(strftime('%Y-%m-%d %H:%M:%f', 'now', ? || ' seconds') || '000')",
    "now_minus": "(strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.6f seconds', -?)) || '000')",  # ? may be negative
    "for_update": "",
    "for_share": "",
}
