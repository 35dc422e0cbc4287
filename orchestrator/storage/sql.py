"""Statements written once for MariaDB and SQLite: text with a few marks that each dialect spells in its own way.

``{now}`` is the database's clock, ``{now_plus:name}`` that clock plus the parameter ``name`` in seconds,
``{for_update}`` a row lock where the database has them (SQLite's writers exclude each other from their first
statement on).
"""

import re
from functools import cache
from typing import Final

from sqlalchemy import TextClause, bindparam, text

_SQLITE_NOW: Final = "strftime('%Y-%m-%d %H:%M:%f', 'now') || '000'"


class Sql:
    """One statement in both dialects."""

    def __init__(self, template: str, *lists: str, mysql: str | None = None) -> None:
        """Keep it.

        Args:
            template: The text, for SQLite and, unless ``mysql`` is given, for MariaDB.
            lists: Names of parameters that are lists, written ``IN :name``.
            mysql: MariaDB's own text where the two differ.
        """
        self._template, self._mysql, self._lists = template, mysql, lists

    @cache  # noqa: B019 - statements are module constants
    def on(self, dialect: str) -> TextClause:
        """Return the statement for the dialect named ``mysql`` or ``sqlite``."""
        template = self._mysql if dialect == "mysql" and self._mysql else self._template
        marks = _MYSQL if dialect == "mysql" else _SQLITE
        clause = text(
            re.sub(r"\{(\w+)(?::(\w+))?\}", lambda match: marks[match[1]].replace("?", f":{match[2]}"), template)
        )
        return clause.bindparams(*(bindparam(name, expanding=True) for name in self._lists)) if self._lists else clause


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
