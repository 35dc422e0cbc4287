"""``orch up`` and ``orch down``: the embedded stack."""

import contextlib
import json
import os
import select
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from orchestrator.errors import Conflict, OrchestratorError, Unavailable
from orchestrator.home import default_home
from orchestrator_cli.stack.home import Home
from orchestrator_cli.stack.lifecycle import DEFAULT_API_PORT, Stack, bring_up, running, take_down
from orchestrator_cli.stack.parts import Database

WATCH_SECONDS = 1.0
FAILED, MISTAKE, CONFLICT = 1, 2, 4

T = TypeVar("T")


@click.command()
@click.option("--detach", is_flag=True, help="Return when the stack is ready for jobs; `orch down` stops it.")
@click.option(
    "--simulate", type=click.IntRange(0, 64), metavar="N", help="Simulate N GPUs.  [default: 4 on a host without]"
)
@click.option("--database", type=click.Choice([str(one) for one in Database]), default="sqlite", show_default=True)
@click.option("--api-port", type=click.IntRange(1, 65535), default=DEFAULT_API_PORT, show_default=True)
@click.option(
    "--home",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where its data lies.  [default: ORCHESTRATOR_HOME]",
)
@click.option("--json", "as_json", is_flag=True, help="Print what runs as one JSON object; progress goes to stderr.")
def up(detach: bool, simulate: int | None, database: str, api_port: int, home: Path | None, as_json: bool) -> None:
    """Start everything on this machine: Redis, the database, api, beat, worker and Flower.

    Stays in the foreground, where Ctrl-C stops the stack, unless --detach is given. Where a stack runs already, it says
    so and changes nothing.
    """
    place = _home(home)
    with _Interrupts() as interrupts:
        stack = _tried(lambda: bring_up(place, Database(database), api_port, simulate=simulate, say=_say))
        click.echo(json.dumps(stack.document()) if as_json else _summary(stack))
        if detach or stack.state == "already running":
            return
        interrupts.soften()
        _say("Ctrl-C stops the stack")
        is_whole = _watch(place, stack, interrupts)
    _tried(lambda: take_down(place, say=_say))
    if not is_whole:
        raise SystemExit(FAILED)


@click.command()
@click.option(
    "--home", type=click.Path(file_okay=False, path_type=Path), help="The stack's home.  [default: ORCHESTRATOR_HOME]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print what was stopped as one JSON object; progress goes to stderr."
)
def down(home: Path | None, as_json: bool) -> None:
    """Stop the stack that `orch up` started, and leave no process of it; its data stays."""
    place = _home(home)
    stopped = _tried(lambda: take_down(place, say=_say))
    if as_json:
        click.echo(json.dumps(stopped.document()))
    else:
        click.echo(f"no stack runs in {place.path}" if stopped.state == "not running" else f"stopped ({place.path})")


COMMANDS = [up, down]


class _Interrupts:
    """Turns TERM and HUP into what Ctrl-C does; once softened, all three only end the watch.

    The handler writes to a pipe: an Event set while this very thread is inside its wait would lock up for good.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_soft = False
        self._before: dict[signal.Signals, Any] = {}

    def soften(self) -> None:
        """From now on an interrupt no longer raises."""
        self._is_soft = True

    def came_within(self, seconds: float) -> bool:
        """Wait for an interrupt; tell whether one has come."""
        return bool(select.select([self._reader], [], [], seconds)[0])

    def __enter__(self) -> "_Interrupts":
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        os.close(self._reader)
        os.close(self._writer)

    def _handle(self, signum: int, frame: object) -> None:
        if not self._is_soft:
            raise KeyboardInterrupt
        with contextlib.suppress(BlockingIOError):  # full: it has come often enough
            os.write(self._writer, b"!")


def _watch(home: Home, started: Stack, interrupts: _Interrupts) -> bool:
    """Tell of parts that start again; return True when the stack is to stop, False when its supervisor is lost."""
    seen = {state.name: state.stopped_at for state in started.parts}
    while not interrupts.came_within(WATCH_SECONDS):
        stack = running(home)
        if stack is None:
            is_stopped = home.read_state() is None  # by `orch down` in another terminal
            _say("stopped elsewhere" if is_stopped else "supervisord is gone")
            return is_stopped
        for state in stack.parts:
            if state.stopped_at != seen.get(state.name):
                seen[state.name] = state.stopped_at
                _say(f"{state.name} ended and is started again; see {home.log(state.name)}")
    return True


def _home(path: Path | None) -> Home:
    return Home((path or default_home()).expanduser().absolute())


def _say(line: str) -> None:
    click.echo(f"orch: {line}", err=True)


def _summary(stack: Stack) -> str:
    lines = [
        f"The stack in {stack.home} {'runs already' if stack.state == 'already running' else 'is ready'}.",
        f"  API       {stack.api_url}   (token: {stack.token_file})",
        *([f"  Flower    {stack.flower_url}"] if stack.flower_url else []),
        f"  database  {stack.database}",
        f"  logs      {stack.home}/logs",
    ]
    return "\n".join(lines)


def _tried(action: Callable[[], T]) -> T:
    """Run an action; an error of ours becomes one message and an exit code."""
    try:
        return action()
    except OrchestratorError as error:
        _say(str(error))
        raise SystemExit(_exit_code(error)) from error
    except KeyboardInterrupt:
        _say("interrupted")
        raise SystemExit(128 + signal.SIGINT) from None


def _exit_code(error: OrchestratorError) -> int:
    if isinstance(error, Unavailable):
        return FAILED
    return CONFLICT if isinstance(error, Conflict) else MISTAKE
