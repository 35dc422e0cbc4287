"""The installation's own token: the one that its settings name, else the home's, made when it is first needed."""

from dataclasses import dataclass
from pathlib import Path

from orchestrator.api.guard import is_loopback
from orchestrator.config import Settings
from orchestrator.errors import InvalidSettings
from orchestrator.home import make_token


@dataclass(frozen=True, slots=True)
class OwnToken:
    """A token with every right."""

    secret: str
    file: Path | None = None  # the home's, where the settings name none


def own_token(settings: Settings) -> OwnToken:
    """Return the token of this installation: there always is one.

    Raises:
        InvalidSettings: If it cannot be read or made, or is one of the home for an address that others reach: who opens
            the API to a network says with which token.
    """
    configured = settings.bearer_token()
    if configured is not None:
        return OwnToken(configured)
    if not is_loopback(settings.api_host):
        raise InvalidSettings(["api_token: needed to bind an address that is not a loopback one"])
    try:
        file = make_token(settings.home)
        return OwnToken(file.read_text().strip(), file)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InvalidSettings([f"api_token: none is set, and {settings.home} has none: {reason}"]) from error
