"""Verbs for leases without a job: a shell or a notebook under a lease, and who holds which."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import click

from orchestrator.client import Client, RemoteError
from orchestrator.config import Settings, load_settings
from orchestrator.errors import InvalidRequest, NoGpuFree
from orchestrator.guardian.kernel import die_with, read_boot_id
from orchestrator.guardian.locks import DeviceLock, Note
from orchestrator.guardian.messages import RUNNER_ID
from orchestrator.guardian.processes import read_process, send_signal
from orchestrator.guardian.settings import GuardianSettings
from orchestrator.guardian.tree import find_remains
from orchestrator.held_lease import HeldLease
from orchestrator_cli import show
from orchestrator_cli.commands.jobs import JSON
from orchestrator_cli.profile import open_client
from orchestrator_cli.values import Duration, Size

#: One request waits so long at most; longer waits ask again.
WAIT_SECONDS: Final = 20.0
LOCK_SECONDS: Final = 10.0
BY_SIGNAL: Final = 128
COLUMNS: Final = ("id", "name", "node", "gpus", "holder", "tenant", "state", "busy_at", "expires_at")


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--gpus", type=int, help="Whole GPUs of this host.  [default: 1]")
@click.option("--gpu-memory", type=Size(), help="A share of one GPU's memory, as 12GiB.")
@click.option("--gpu-type", metavar="MODELS", help="Models that would do, as 'H100|A100'.")
@click.option("--ttl", type=Duration(), default=15.0, show_default=True, help="Life of the lease without a heartbeat.")
@click.option("--wait", type=Duration(), default=0.0, help="Wait so long for GPUs to become free.")
@click.option("--grace", type=Duration(), default=5.0, show_default=True, help="From TERM to KILL if it is lost.")
@click.option("--name", help="What people see.")
@click.argument("argv", nargs=-1, type=click.UNPROCESSED)
def lease(argv: Sequence[str], wait: float, ttl: float, grace: float, **wanted: Any) -> None:
    """Run a command, by default a shell, under a lease of GPUs of this host; it ends with the command."""
    command = list(argv) or [os.environ.get("SHELL", "/bin/sh")]
    settings = load_settings()
    body = {name: value for name, value in wanted.items() if value is not None}
    body |= {"ttl_seconds": ttl, "constraints": {"node": settings.node}}
    with open_client() as client:
        _require_known(client, settings.node)
        held = _ask(client, body, wait)
    with ExitStack() as stack:
        stack.callback(held.release)
        mark = f"lease-{secrets.token_hex(8)}:{held.id}"
        stack.enter_context(_locked(settings, held, mark))
        click.echo(f"orch: lease {held.id} of {', '.join(held.gpus)} on {held.node}", err=True)
        code = _run(command, held, mark, grace)
    held.check()
    sys.exit(code)


@click.command()
@click.option("--ended", is_flag=True, help="Those that have ended too.")
@click.option("--release", "number", type=int, metavar="ID", help="End somebody's lease (operators).")
@JSON
def leases(ended: bool, number: int | None, as_json: bool) -> None:
    """List leases that belong to no job, or end one."""
    with open_client() as client:
        if number is not None:
            found = [client.release_lease(str(number))]
        else:
            found = client.leases(ended=ended, limit=500)["leases"]
    if as_json:
        click.echo(json.dumps(found))
        return
    show.table(COLUMNS, [[_cell(one[name]) for name in COLUMNS] for one in found])


COMMANDS = [lease, leases]


def _cell(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else "-" if value is None else str(value)


def _require_known(client: Client, node: str) -> None:
    names = [str(one["name"]) for one in client.nodes()]
    if node not in names:
        known = ", ".join(names) or "none"
        raise InvalidRequest(f"this host, {node}, is not registered (set ORCHESTRATOR_NODE?); registered: {known}")


def _ask(client: Client, body: dict[str, Any], wait: float) -> HeldLease:
    deadline = time.monotonic() + wait
    while True:
        left = deadline - time.monotonic()
        try:
            return client.lease(**body, wait_seconds=max(0.0, min(left, WAIT_SECONDS)))
        except RemoteError as error:
            if error.kind is not NoGpuFree or time.monotonic() >= deadline:
                raise


@contextmanager
def _locked(settings: Settings, held: HeldLease, mark: str) -> Iterator[None]:
    """Hold the device locks of this host, as its workers do, until everything that was started has ended."""
    own = read_process(os.getpid())
    assert own is not None
    lock_dir = settings.lock_dir or (settings.home / "locks" if settings.simulated_gpus else None)
    directory = GuardianSettings(node=settings.node, home=settings.home, lock_dir=lock_dir).find_lock_dir()
    note = Note(mark, own.pid, own.start_ticks, read_boot_id())
    locks = [DeviceLock(directory, gpu, note, exclusive=held.mode == "exclusive") for gpu in held.gpus]
    deadline = time.monotonic() + LOCK_SECONDS
    try:
        for lock in locks:
            while not lock.try_acquire():
                if time.monotonic() > deadline:
                    raise NoGpuFree((f"on this host {lock.holder()}",))
                time.sleep(0.05)
        yield
    finally:
        _end_remains(mark)
        for lock in locks:
            lock.release()


def _end_remains(mark: str) -> None:
    while remains := find_remains({mark}):
        for process in remains:
            send_signal(process, signal.SIGKILL)
        time.sleep(0.02)


def _run(command: Sequence[str], held: HeldLease, mark: str, grace: float) -> int:
    """Run the command in the foreground of the terminal, if there is one; return its exit code."""
    parent, has_terminal = os.getpid(), sys.stdin.isatty() and os.tcgetpgrp(0) == os.getpgrp()

    def begin() -> None:
        die_with(parent)
        if has_terminal:  # before the command can ask for it
            _take_terminal(os.getpid())

    environment = os.environ | held.environment | {RUNNER_ID: mark}
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            process_group=0,
            preexec_fn=begin,  # noqa: PLW1509 - there are no threads yet
        )
    except OSError as error:
        raise InvalidRequest(f"{command[0]}: {error.strerror}") from error

    def end() -> None:
        click.echo(f"orch: lease {held.id} is lost; what runs under it is ended", err=True)
        _signal(process, signal.SIGTERM)
        try:
            process.wait(grace)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)

    def forward(number: int, _frame: object) -> None:
        _signal(process, signal.Signals(number))

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the command
    held.hold(end)
    code = process.wait()
    if has_terminal:
        _take_terminal(os.getpgrp())
    return code if code >= 0 else BY_SIGNAL - code


def _signal(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return


def _take_terminal(group: int) -> None:
    """Make a process group the terminal's foreground."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, group)
    signal.signal(signal.SIGTTOU, before)
