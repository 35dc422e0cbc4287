"""Checks of single fields that come from outside; each adds a fault in place of raising, so that all are reported."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from orchestrator.domain.ids import is_job_id

_NAME: Final = re.compile(r"[A-Za-z0-9._:@/ -]+")
_WORD: Final = re.compile(r"[A-Za-z0-9._:-]+")
_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: What decides which GPUs a job sees, what code is loaded into it, and what it knows of its lease.
_RESERVED: Final = re.compile(r"(CUDA|NVIDIA)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|LD_.*|ORCHESTRATOR_.*")
#: What people do not see in a text that they are to recognise, and what shows them another one: controls of terminals,
#: ends of lines, and the marks that turn the direction of writing (CVE-2021-42574). Arguments and variables may hold
#: them: they are the program's own, and the command line shows nobody the bare characters.
UNSEEN: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
MOST_ARGUMENTS: Final = 10_000
MOST_SECRETS: Final = 64


class Checks:
    """Collects faults, each as ``field: what it must be``."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def add(self, field: str, fault: str) -> None:
        """Note a fault."""
        self.faults.append(f"{field}: {fault}")

    def text(self, field: str, value: object, *, longest: int) -> str | None:
        """Check a string that is not empty; return it if it is good."""
        if not isinstance(value, str) or not value:
            self.add(field, "must be a string that is not empty")
        elif len(value) > longest:
            self.add(field, f"must have at most {longest} characters, has {len(value)}")
        elif not _is_clean(value) or UNSEEN.search(value):
            self.add(field, "must not contain control characters, of terminals or of writing direction")
        else:
            return value
        return None

    def optional_text(self, field: str, value: object, *, longest: int) -> str | None:
        """Check a string that may be missing."""
        return None if value is None else self.text(field, value, longest=longest)

    def name(self, field: str, value: object, *, longest: int) -> None:
        """Check a name for people."""
        text = self.text(field, value, longest=longest)
        if text is not None and not _NAME.fullmatch(text):
            self.add(field, "may contain letters, digits, spaces and . _ : @ / - only")

    def optional_name(self, field: str, value: object, *, longest: int) -> None:
        """Check a name that may be missing."""
        if value is not None:
            self.name(field, value, longest=longest)

    def word(self, field: str, value: object, *, longest: int) -> None:
        """Check a name that becomes part of keys."""
        text = self.text(field, value, longest=longest)
        if text is not None and not _WORD.fullmatch(text):
            self.add(field, "may contain letters, digits and . _ : - only")

    def optional_word(self, field: str, value: object, *, longest: int) -> None:
        """Check a word that may be missing."""
        if value is not None:
            self.word(field, value, longest=longest)

    def printable(self, field: str, value: object, *, longest: int) -> None:
        """Check a name that somebody else chose, such as a Celery task's."""
        text = self.text(field, value, longest=longest)
        if text is not None and (not text.isprintable() or " " in text):
            self.add(field, "must be printable, without spaces")

    def optional_job_id(self, field: str, value: object) -> None:
        """Check a job id that may be missing."""
        if value is not None and not (isinstance(value, str) and is_job_id(value)):
            self.add(field, "must be a UUID in its canonical form")

    def whole(self, field: str, value: object, least: int, most: int) -> None:
        """Check a whole number within bounds."""
        if not isinstance(value, int) or isinstance(value, bool):
            self.add(field, "must be a whole number")
        elif not least <= value <= most:
            self.add(field, f"must be between {least} and {most}, is {value}")

    def optional_whole(self, field: str, value: object, least: int, most: int) -> None:
        """Check a whole number that may be missing."""
        if value is not None:
            self.whole(field, value, least, most)

    def optional_seconds(self, field: str, value: object, most: float, *, zero: bool = False) -> float | None:
        """Check a duration that may be missing; return it if it is good."""
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            self.add(field, "must be a number of seconds")
        elif value < 0 or (value == 0 and not zero) or value > most:
            self.add(
                field, f"must be {'at least' if zero else 'more than'} 0 and at most {most:g} seconds, is {value:g}"
            )
        else:
            return float(value)
        return None

    def optional_instant(self, field: str, value: object) -> datetime | None:
        """Check an instant that may be missing; return it if it is good."""
        if value is None:
            return None
        if not isinstance(value, datetime) or value.tzinfo is None:
            self.add(field, "must be an instant with a time zone")
            return None
        return value

    def argv(self, field: str, value: object) -> None:
        """Check an argument vector."""
        if not isinstance(value, tuple | list) or not value:
            self.add(field, "must be a list of strings that is not empty")
        elif len(value) > MOST_ARGUMENTS:
            self.add(field, f"must have at most {MOST_ARGUMENTS} items")
        elif not all(isinstance(item, str) and _is_clean(item) for item in value):
            self.add(field, "must hold strings without NUL characters or lone surrogates")
        elif not value[0].strip():
            self.add(field, "must begin with a program")

    def environment(self, field: str, value: object) -> None:
        """Check environment variables."""
        if not isinstance(value, Mapping):
            self.add(field, "must map names to strings")
            return
        for name, content in value.items():
            if not isinstance(name, str) or not _ENVIRONMENT_NAME.fullmatch(name):
                self.add(field, f"{str(name)[:64]!r} is not a name of a variable")
            elif _RESERVED.fullmatch(name):
                self.add(field, f"{name} is set by the orchestrator")
            elif not isinstance(content, str) or not _is_clean(content):
                self.add(field, f"{name} must be a string without NUL characters or lone surrogates")

    def secrets(self, field: str, value: object, *, beside: object) -> None:
        """Check names of secrets, none of which is a variable ``beside`` them."""
        if not isinstance(value, tuple | list) or len(value) > MOST_SECRETS:
            self.add(field, f"must be a list of at most {MOST_SECRETS} names")
            return
        for name in value:
            if not isinstance(name, str) or len(name) > 64 or not _ENVIRONMENT_NAME.fullmatch(name):
                self.add(field, f"{str(name)[:64]!r} is not a name of a secret: letters, digits and _, at most 64")
            elif _RESERVED.fullmatch(name):
                self.add(field, f"{name} is set by the orchestrator")
            elif isinstance(beside, Mapping) and name in beside:
                self.add(field, f"{name} is set in the environment too")

    def array(self, field: str, value: object) -> None:
        """Check a list."""
        if not isinstance(value, tuple | list):
            self.add(field, "must be a list")

    def document(self, field: str, value: Any) -> None:
        """Check an object with string keys."""
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            self.add(field, "must be an object with string keys")


def _is_clean(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
