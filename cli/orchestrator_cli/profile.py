"""Where the API is and which token to show it."""

import os
import tomllib
from pathlib import Path

import click

from orchestrator.client import Client
from orchestrator.errors import InvalidSettings
from orchestrator.home import default_home

DEFAULT_URL = "http://127.0.0.1:8470"


def open_client() -> Client:
    """Return a client for ``--api-url`` or ``ORCHESTRATOR_API_URL`` and its token, else for the stack of this home.

    The profile's token is for the profile's API: no other one is shown it.

    Raises:
        InvalidSettings: If the profile or the token file cannot be read.
    """
    profile = _profile(default_home() / "client.toml")
    own_url = profile.get("api_url") or DEFAULT_URL
    url = _option() or os.environ.get("ORCHESTRATOR_API_URL") or own_url
    token = os.environ.get("ORCHESTRATOR_API_TOKEN")
    file = os.environ.get("ORCHESTRATOR_API_TOKEN_FILE")
    if not file and url.rstrip("/") == own_url.rstrip("/"):
        file = profile.get("token_file")
    if token is None and file:
        token = _read(Path(file)).strip()
    return Client(url, token)


def names_an_api() -> bool:
    """Whether somebody said where the API is: an option, a variable, or the profile of this home."""
    said = (
        _option() or os.environ.get("ORCHESTRATOR_API_URL") or _profile(default_home() / "client.toml").get("api_url")
    )
    return bool(said)


def _option() -> str | None:
    context = click.get_current_context(silent=True)
    return context.find_root().params.get("api_url") if context else None


def _profile(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        return {name: str(value) for name, value in tomllib.loads(_read(path)).items()}
    except tomllib.TOMLDecodeError as error:
        raise InvalidSettings([f"{path}: {error}"]) from error


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise InvalidSettings([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise InvalidSettings([f"{path}: is not UTF-8 text"]) from error
