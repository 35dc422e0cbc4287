"""Where the API is and which token to show it."""

import os
import tomllib
from pathlib import Path

from orchestrator.client import Client
from orchestrator.config import default_home
from orchestrator.errors import InvalidSettings

DEFAULT_URL = "http://127.0.0.1:8470"


def open_client() -> Client:
    """Return a client for ``ORCHESTRATOR_API_URL`` and its token, else for the stack of this home.

    Raises:
        InvalidSettings: If the profile or the token file cannot be read.
    """
    profile = _profile(default_home() / "client.toml")
    url = os.environ.get("ORCHESTRATOR_API_URL") or profile.get("api_url") or DEFAULT_URL
    token = os.environ.get("ORCHESTRATOR_API_TOKEN")
    file = os.environ.get("ORCHESTRATOR_API_TOKEN_FILE") or profile.get("token_file")
    if token is None and file:
        token = _read(Path(file)).strip()
    return Client(url, token)


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
