"""What all tables are made of: the names of their constraints, and the types that differ by database."""

from enum import StrEnum
from typing import Any, Final

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Integer, MetaData, Text
from sqlalchemy.dialects.mysql import DATETIME, LONGTEXT

NAMING: Final = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
#: Names and keys that differ in case, accents or trailing blanks are different, on MariaDB as on SQLite.
COLLATION: Final = "utf8mb4_nopad_bin"
INNODB: Final[dict[str, Any]] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": COLLATION}
metadata = MetaData(naming_convention=NAMING)

SEQ = BigInteger().with_variant(Integer, "sqlite")
INSTANT = DateTime().with_variant(DATETIME(fsp=6), "mysql", "mariadb")
DOCUMENT = Text().with_variant(LONGTEXT, "mysql", "mariadb")


def one_of(column: str, states: type[StrEnum]) -> CheckConstraint:
    """Return the constraint that a column holds one of the states."""
    values = ", ".join(f"'{state.value}'" for state in states)
    return CheckConstraint(f"{column} IN ({values})", name=column)
