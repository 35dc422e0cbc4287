"""The first moments of a runner: from the fork to its program's or its entry's first instruction.

Runs in the fresh child of the fork server. Whatever fails is written to the status pipe as one line; the pipe's end
without a line means that the runner has begun.
"""

import ctypes
import gc
import importlib
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO, cast

from orchestrator.guardian.cgroups import join
from orchestrator.guardian.kernel import die_with, forbid_new_privileges
from orchestrator.guardian.messages import RUNNER_ID

#: Added to a runner's OOM score: the kernel ends a job before the worker and the guardian that could tell why.
OOM_SCORE: Final = 300

NOT_STARTED: Final = 127
CRASHED: Final = 1
STANDARD: Final = 3  # stdin, stdout, stderr


def begin(document: Mapping[str, Any], control: int, output: int, status: int, parent: int) -> NoReturn:
    """Become the runner that ``document`` describes; never returns.

    Args:
        document: A ``RunnerSpec`` as a mapping.
        control: Descriptor of the runner's end of its control socket; only an entry gets it.
        output: Descriptor that becomes stdout and stderr.
        status: Descriptor of the pipe on which a failure is told.
        parent: The fork server's pid.
    """
    try:
        os.setsid()
        die_with(parent)
        _join(document["cgroups"])
        _reset_signals(is_python=document["argv"] is None)
        _place_descriptors(control, output, status, is_python=document["argv"] is None)
        _set_priorities(document["nice"])
        _confine(document["umask"], no_new_privileges=document["no_new_privileges"])
        _enter(document["cwd"])
        _set_environment(document["environment"])
        if document["argv"] is None:
            _show_environment(document["environment"])
            entry = _load(document["entry"])
            _set_limits(document["rlimits"])
        else:
            _set_limits(document["rlimits"])
            _execute(document["argv"])
    except BaseException as error:  # noqa: BLE001 - told to the guardian, and this process ends
        _fail(status, str(error) if isinstance(error, StartFault) else f"{type(error).__name__}: {error}")
    os.close(status)
    _run(entry, document, control)


class StartFault(Exception):
    """Why a runner cannot begin, in the words that its user will read."""


def _join(groups: Sequence[str]) -> None:
    try:
        join(groups)
    except OSError as error:
        raise StartFault(f"control group {error.filename}: {error.strerror}") from error


def _fail(status: int, reason: str) -> NoReturn:
    # The pipe takes a whole page at once, and nobody has written to it before.
    os.write(status, reason.encode("utf-8", "backslashreplace")[:4000])
    os._exit(NOT_STARTED)


def _reset_signals(*, is_python: bool) -> None:
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if number < signal.SIGRTMIN and signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    if is_python:  # as in any Python: an interrupt is an exception, a broken pipe an error
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _place_descriptors(control: int, output: int, status: int, *, is_python: bool) -> None:
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    if not is_python:
        return  # the rest is closed by exec: Python opens everything so, and `_execute` closes what a library left open
    # Objects of preloaded modules still own their descriptors. Closed here, a number would be given to a file of the
    # job and closed under it when such an object dies; pointed at /dev/null it stays taken, and nothing is shared.
    os.close(output)
    for descriptor in _open_descriptors():
        if descriptor >= STANDARD and descriptor not in (control, status, null):
            os.dup2(null, descriptor, inheritable=False)
    os.close(null)


def _open_descriptors() -> list[int]:
    listed = [int(name) for name in os.listdir("/proc/self/fd")]  # the listing's own descriptor is among them
    return [descriptor for descriptor in listed if Path(f"/proc/self/fd/{descriptor}").exists()]


def _set_priorities(nice: int | None) -> None:
    score = Path("/proc/self/oom_score_adj")
    score.write_text(str(min(1000, int(score.read_text(encoding="ascii")) + OOM_SCORE)), encoding="ascii")
    if nice is not None:
        try:
            os.nice(nice)
        except OSError as error:
            raise StartFault(f"niceness {nice}: {error.strerror}") from error


def _confine(umask: int | None, *, no_new_privileges: bool) -> None:
    if umask is not None:
        os.umask(umask)
    if no_new_privileges:
        forbid_new_privileges()


def _enter(cwd: str) -> None:
    try:
        os.chdir(cwd)
    except OSError as error:
        raise StartFault(f"working directory {cwd}: {error.strerror}") from error


def _set_environment(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    for name, value in environment.items():
        try:
            os.environ[name] = value
        except (ValueError, TypeError) as error:
            raise StartFault(f"environment variable {name!r}: {error}") from error
    time.tzset()


def _show_environment(environment: Mapping[str, str]) -> None:
    """Overwrite the environment that /proc shows, which a fork would otherwise keep of the fork server.

    Two reasons: what the runner forks in turn is found by its mark there, even after it left session and parent; and
    the worker's own variables, secrets perhaps, are no business of a job. What does not fit is left out, last first.
    """
    values = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    start, end = int(values[47]), int(values[48])  # env_start and env_end: fields 50 and 51, counted from the pid
    mark = {RUNNER_ID: environment[RUNNER_ID]}
    lines = [
        f"{name}={value}\0".encode("utf-8", "surrogateescape") for name, value in (mark | dict(environment)).items()
    ]
    ctypes.memset(start, 0, end - start)
    for line in lines:
        if start + len(line) <= end:
            ctypes.memmove(start, line, len(line))
            start += len(line)


def _set_limits(limits: Mapping[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}", None)
        if number is None:
            raise StartFault(f"resource limit {name}: no such limit")
        try:
            resource.setrlimit(number, (value, value))
        except (ValueError, OSError) as error:
            raise StartFault(f"resource limit {name} = {value}: {error}") from error


def _execute(argv: list[str]) -> NoReturn:
    for descriptor in _open_descriptors():
        if descriptor >= STANDARD:
            os.set_inheritable(descriptor, False)
    try:
        os.execvpe(argv[0], argv, os.environ)
    except (OSError, ValueError) as error:
        raise StartFault(f"cannot run {argv[0]!r}: {getattr(error, 'strerror', None) or error}") from error


def _load(entry: str) -> Callable[[Mapping[str, Any], socket.socket], object]:
    module, _, name = entry.partition(":")
    try:
        loaded: Callable[[Mapping[str, Any], socket.socket], object] = getattr(importlib.import_module(module), name)
    except Exception as error:  # anything may be raised by a user's module; it is the answer
        raise StartFault(f"entry {entry}: {type(error).__name__}: {error}") from error
    return loaded


def _run(
    entry: Callable[[Mapping[str, Any], socket.socket], object], document: Mapping[str, Any], control: int
) -> NoReturn:
    code = CRASHED
    try:
        _renew_python()
        entry(document, socket.socket(fileno=control))
        code = 0
    except SystemExit as leave:
        code = _exit_code(leave)
    except BaseException:  # noqa: BLE001 - as Python itself does: printed, and the exit code says so
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or CRASHED  # what was printed last is lost
        os._exit(code)


def _exit_code(leave: SystemExit) -> int:
    if leave.code is None:
        return 0
    if isinstance(leave.code, int):
        return leave.code & 0xFF
    sys.stderr.write(f"{leave.code}\n")
    return CRASHED


def _renew_python() -> None:
    """Undo what a forked Python shares with its parent: buffered streams and seeds."""
    gc.enable()
    # UTF-8 whatever the locale: a job must not fail for what it prints. New objects, since the old ones believe what
    # the fork server's descriptors were, a file perhaps; whoever kept one, a log handler, still reaches the same
    # descriptor.
    sys.stdin, sys.stdout, sys.stderr = (_open_text(number, mode) for number, mode in enumerate(("r", "w", "w")))
    numpy = sys.modules.get("numpy.random")
    if numpy is not None:  # else every runner would draw the same numbers; Python's own generator does this by itself
        numpy.seed()


def _open_text(descriptor: int, mode: str) -> TextIO:
    return cast(
        TextIO, os.fdopen(descriptor, mode, buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    )


def is_cuda_initialised() -> bool:
    """CUDA was touched in this process, so that it cannot work in any fork of it; loads nothing by itself."""
    if "libcuda.so" not in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"):
        return False
    not_initialised = 3  # CUDA_ERROR_NOT_INITIALIZED
    count = ctypes.c_int()
    return bool(ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count)) != not_initialised)
