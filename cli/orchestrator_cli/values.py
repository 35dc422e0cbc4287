"""Durations, instants and sizes as people write them on a command line."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from orchestrator.domain.size import parse_mebibytes
from orchestrator.errors import InvalidRequest

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(?:\d+(?:\.\d+)?[smhd])+")
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])")

#: Of verbs that change what somebody else may have changed since it was read.
IF_VERSION: Final = click.option(
    "--if-version", "version", metavar="N", type=click.IntRange(0), help="Only if this is still its version."
)


class Duration(click.ParamType[float]):
    """Seconds as a number, or ``90s``, ``1h30m``, ``2d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        text = str(value).strip()
        if _DURATION.fullmatch(text):
            seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        else:
            try:
                seconds = float(text)
            except ValueError:
                seconds = math.nan
        if not 0 <= seconds < math.inf:
            self.fail(f"{text!r} is not a duration; write 90s, 1h30m or a number of seconds", param, ctx)
        return seconds


class Since(click.ParamType[datetime]):
    """An instant, or how long ago it was: ``2026-01-31``, ``2026-01-31T08:00+01:00``, ``12h``."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return an aware instant; one without a time zone is the machine's, as people read their clocks."""
        text = str(value).strip()
        try:
            return datetime.now(UTC) - timedelta(seconds=Duration().convert(text, None, None))
        except (click.BadParameter, OverflowError):
            pass  # an instant, or nothing
        try:
            return datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is neither a duration, as 12h or 30d, nor an instant, as 2026-01-31T08:00", param, ctx)


class Size(click.ParamType[int | None]):
    """Memory as ``12GiB``, ``800MiB`` or a number of MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """Return MiB."""
        try:
            return parse_mebibytes(value)
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


class Assignment(click.ParamType[tuple[str, str]]):
    """``NAME=VALUE``."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return name and value."""
        if isinstance(value, tuple):
            return value
        name, equals, content = str(value).partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, content


class JsonAssignment(click.ParamType[tuple[str, Any]]):
    """``NAME=VALUE``, where the value is JSON, or else text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        """Return name and value."""
        if isinstance(value, tuple):
            return value
        name, text = Assignment().convert(value, param, ctx)
        try:
            return name, json.loads(text)
        except ValueError:
            return name, text


class RetryClass(click.ParamType[tuple[str, int | None]]):
    """A failure class, and how often: ``oom`` or ``oom=2``."""

    name = "class"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int | None]:
        """Return class and number."""
        if isinstance(value, tuple):
            return value
        name, equals, times = str(value).partition("=")
        if equals and not times.isdecimal():
            self.fail(f"{value!r} is not CLASS or CLASS=N", param, ctx)
        return name, int(times) if equals else None


class Alternative(click.ParamType[dict[str, Any]]):
    """GPUs as ``gpus=2,gpu-type=H100|A100,min-memory=40GiB``."""

    name = "gpus"
    _NAMES: Final = ("gpus", "gpu-memory", "gpu-type", "min-memory", "mig")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Return them as ``POST /jobs/submit`` takes them."""
        if isinstance(value, dict):
            return value
        found: dict[str, Any] = {}
        for part in str(value).split(","):
            name, equals, content = part.strip().partition("=")
            if not equals or not content or name not in self._NAMES:
                self.fail(f"{part!r} is none of {', '.join(f'{known}=…' for known in self._NAMES)}", param, ctx)
            found[name.replace("-", "_")] = content
        if "gpus" in found:
            if not found["gpus"].isdecimal():
                self.fail(f"gpus={found['gpus']} is not a whole number", param, ctx)
            found["gpus"] = int(found["gpus"])
        return found
