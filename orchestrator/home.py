"""The home: where an installation of one host keeps its data, its token, and what its clients need to know.

Apart from the settings, whose library takes longer to load than a verb.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Final

TOKEN_BYTES: Final = 32


def default_home() -> Path:
    """Return ``ORCHESTRATOR_HOME``, else ``~/.orchestrator``."""
    return Path(os.environ.get("ORCHESTRATOR_HOME") or Path.home() / ".orchestrator")


def token_file(home: Path) -> Path:
    """Return the file of the home's own bearer token."""
    return home / "token"


def client_file(home: Path) -> Path:
    """Return the file that tells a client of this home the API's URL and the token's file."""
    return home / "client.toml"


def make_token(home: Path) -> Path:
    """Make the home's token unless it has one, and return its file, which only its owner may read.

    Of several processes that make it at once one wins, and all use its: the file appears whole, and is never replaced.

    Raises:
        OSError: If it cannot be written.
    """
    path = token_file(home)
    if not path.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        written = _write_aside(path, f"orch_{os.urandom(TOKEN_BYTES).hex()}\n")
        with contextlib.suppress(FileExistsError):  # another process's came first
            os.link(written, path)
        written.unlink()
    return path


def write_client(home: Path, api_url: str) -> None:
    """Write the client's profile. JSON strings are TOML strings too."""
    lines = (f"api_url = {json.dumps(api_url)}", f"token_file = {json.dumps(str(token_file(home)))}", "")
    write_private(client_file(home), "\n".join(lines))


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner may read it."""
    _write_aside(path, text).replace(path)


def _write_aside(path: Path, text: str) -> Path:
    """Write a file beside another one, under a name of its own."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return temporary
