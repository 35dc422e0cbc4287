"""The home of an embedded stack: where its data, sockets, logs, token and client profile lie."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrator import home
from orchestrator.errors import Conflict, InvalidRequest
from orchestrator.home import write_private

#: Linux allows 107 bytes for a socket's path; the rest is for the file's name.
SOCKET_DIRECTORY_BYTES = 80
#: What supervisord's configuration would take for a comment, a quote, an expansion or an end of line.
UNFIT = re.compile(r"[;#%\"'\\\x00-\x1f]")


@dataclass(frozen=True)
class Home:
    """One stack's directory; two stacks with two homes live side by side."""

    path: Path

    @cached_property
    def run(self) -> Path:
        """The directory of the unix sockets: in the home, or below /tmp when its path is too long for them."""
        inside = self.path / "run"
        if len(os.fsencode(inside)) <= SOCKET_DIRECTORY_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        return Path("/tmp") / f"orchestrator-{os.getuid()}-{digest}"  # noqa: S108  # made by ``prepare``, checked there

    @property
    def supervisor_socket(self) -> Path:
        """Where supervisord takes orders."""
        return self.run / "supervisor.sock"

    @property
    def redis_socket(self) -> Path:
        """Where the stack's Redis listens."""
        return self.run / "redis.sock"

    @property
    def mariadb_socket(self) -> Path:
        """Where the stack's MariaDB listens."""
        return self.run / "mariadb.sock"

    @property
    def supervisor_config(self) -> Path:
        """What supervisord runs."""
        return self.path / "supervisord.conf"

    @property
    def sqlite_file(self) -> Path:
        """The database, when it is SQLite."""
        return self.path / "orchestrator.db"

    @property
    def redis_data(self) -> Path:
        """Redis's append-only files."""
        return self.path / "redis"

    @property
    def mariadb_data(self) -> Path:
        """MariaDB's data directory."""
        return self.path / "mariadb"

    @property
    def gpus_file(self) -> Path:
        """The simulated GPUs; may be edited while the stack runs."""
        return self.path / "gpus.toml"

    @property
    def token_file(self) -> Path:
        """The bearer token of the stack's API."""
        return home.token_file(self.path)

    @property
    def client_file(self) -> Path:
        """What a client needs to know: the API's URL and the token's file."""
        return home.client_file(self.path)

    @property
    def state_file(self) -> Path:
        """What ``up`` started; there while a stack runs."""
        return self.path / "stack.json"

    def log(self, part: str) -> Path:
        """Return the log file of a part."""
        return self.path / "logs" / f"{part}.log"

    def prepare(self) -> None:
        """Make the home's directories, closed to others, and the token.

        Raises:
            InvalidRequest: If the path cannot be used, with the reason.
        """
        if UNFIT.search(str(self.path)):
            raise InvalidRequest(f"the home's path must not contain quotes, ';', '#', '%' or '\\': {self.path}")
        try:
            for directory in (self.path, self.run, self.path / "logs", self.redis_data):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidRequest(f"cannot use {error.filename} as a home: {error.strerror}") from error
        run = self.run.lstat()  # /tmp belongs to everybody: what lies there under our name may not be ours
        if run.st_uid != os.getuid() or not self.run.is_dir() or self.run.is_symlink():
            raise InvalidRequest(f"{self.run} is not a directory of this user; remove it")
        self.run.chmod(0o700)
        home.make_token(self.path)

    def write_stack(self, settings: Mapping[str, object]) -> None:
        """Write where this stack's servers are, for producers that are given only the home."""
        lines = ["# Written by `orch up`; settings of your own go to orchestrator.toml beside it."]
        lines += [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        write_private(self.path / "stack.toml", "\n".join(lines) + "\n")

    def write_client(self, api_url: str) -> None:
        """Write the client's profile."""
        home.write_client(self.path, api_url)

    @contextlib.contextmanager
    def locked(self, *, within_seconds: float) -> Iterator[None]:
        """Hold the home's lock: one ``up`` or ``down`` at a time; the kernel frees it with its holder.

        Raises:
            Conflict: If another command holds it for longer than ``within_seconds``.
        """
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        deadline = time.monotonic() + within_seconds
        with (self.path / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Conflict(f"another `orch up` or `orch down` is at work on {self.path}") from None
                    time.sleep(0.1)
            yield

    def read_state(self) -> dict[str, Any] | None:
        """Return what ``up`` noted; None when no stack was left running here."""
        try:
            state = json.loads(self.state_file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}  # cut off in the middle of a write: something ran, and is found by its marks
        return state if isinstance(state, dict) else {}

    def write_state(self, state: dict[str, Any]) -> None:
        """Note what runs."""
        write_private(self.state_file, json.dumps(state, indent=2) + "\n")
