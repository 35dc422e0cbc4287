"""The process that runners are forked from: it has imported the app, has one thread and never touches CUDA.

    python -m orchestrator.guardian.fork_server DESCRIPTOR PARENT

Its parent, the guardian, tells it on the socket what to import and what to fork, and hears who has ended, and how.
"""

import gc
import importlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from orchestrator.guardian.birth import begin, is_cuda_initialised
from orchestrator.guardian.channel import Channel, Frame
from orchestrator.guardian.kernel import die_with
from orchestrator.guardian.processes import read_process
from orchestrator.guardian.settings import shape_log

logger = logging.getLogger("orchestrator.guardian.fork_server")

CUDA_TOUCHED: Final = 3  # the exit code that says so
KIB_PER_MIB: Final = 1024


class ForkServer:
    """Forks on request and reaps; runs until the guardian is gone."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._pid = os.getpid()
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)

    def run(self) -> None:
        """Serve until the guardian closes the connection."""
        signal.signal(signal.SIGCHLD, _note)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(self._channel, selectors.EVENT_READ)
            while not self._channel.closed:
                interest = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._channel.pending else 0)
                selector.modify(self._channel, interest)
                selector.select()
                self._drain_wakeups()
                self._channel.flush()
                for frame in self._channel.receive():
                    self._serve(frame)
                self._reap()

    def _serve(self, frame: Frame) -> None:
        message, descriptors = frame
        if message["op"] == "preload":
            shape_log(**message["log"], process="fork server")
            self._channel.send({"op": "ready", "faults": preload(message["modules"], message["import_path"])})
        elif message["op"] == "fork":
            try:
                self._channel.send(
                    {"op": "forked", "runner": message["runner"]} | self._fork(message["spec"], descriptors)
                )
            except OSError as error:
                self._channel.send(
                    {"op": "not_forked", "runner": message["runner"], "reason": f"fork: {error.strerror}"}
                )
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _fork(self, spec: dict[str, Any], descriptors: list[int]) -> dict[str, int]:
        pid = os.fork()
        if pid == 0:
            control, output, status = descriptors
            begin(spec, control=control, output=output, status=status, parent=self._pid)
        process = read_process(pid)  # even if it has ended already: nobody but this process reaps it
        if process is None:
            raise ProcessLookupError(f"the fork {pid} cannot be seen in /proc")
        return {"pid": pid, "start_ticks": process.start_ticks}

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            peak = usage.ru_maxrss // KIB_PER_MIB
            self._channel.send({"op": "exited", "pid": pid, "status": status, "peak_rss_mib": peak})

    def _drain_wakeups(self) -> None:
        try:
            while self._woken.recv(4096):
                pass
        except BlockingIOError:
            return


def preload(modules: list[str], import_path: list[str]) -> list[str]:
    """Import the modules and freeze what they made; returns what went wrong, a line each.

    A module that cannot be imported is no reason to stop: the runner that needs it will say so to its own job.
    """
    here = str(Path.cwd())  # what an empty entry means to the worker; a runner goes elsewhere
    sys.path += [entry or here for entry in import_path if (entry or here) not in sys.path]
    faults = []
    began_at = time.monotonic()
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a user's module may raise anything, and it is told
            faults.append(f"{module} cannot be preloaded: {type(error).__name__}: {error}")
    if is_cuda_initialised():
        logger.critical("importing %s touched CUDA, which cannot survive a fork", ", ".join(modules))
        sys.exit(CUDA_TOUCHED)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        faults.append(f"importing {', '.join(modules)} started {threads - 1} threads, which runners will not have")
    gc.collect()
    gc.disable()  # a runner enables it again
    gc.freeze()  # pages of preloaded objects stay shared: the collector does not write to them
    logger.info("preloaded %d modules in %.2f s", len(modules), time.monotonic() - began_at)
    return faults


def main(arguments: list[str]) -> None:
    """Run the fork server on an inherited socket."""
    descriptor, parent = map(int, arguments)
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s fork server: %(message)s")
    os.set_inheritable(descriptor, False)
    ForkServer(Channel(socket.socket(fileno=descriptor))).run()


def _note(_signum: int, _frame: object) -> None:
    """Do nothing: the wakeup descriptor has told the loop."""


if __name__ == "__main__":
    main(sys.argv[1:])
