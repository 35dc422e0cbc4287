"""Identifiers that the world sees: UUIDv7 strings, which sort by the millisecond in which they were made."""

import secrets
from datetime import datetime
from uuid import UUID


def uuid7(now: datetime) -> str:
    """Return a UUIDv7 string for the instant ``now`` (aware), its other 74 bits random.

    Source: RFC 9562 section 5.7. Python's own ``uuid.uuid7`` came with 3.14.
    """
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62
    return str(UUID(int=value | secrets.randbits(62)))


def is_job_id(text: str) -> bool:
    """A job id is a UUID in its canonical form; Celery users may choose their own, of any version."""
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
