"""Run a guardian; a worker starts it with the descriptor of a socket, over which everything else is said.

python -m orchestrator.guardian DESCRIPTOR WORKER_PID
"""

import logging
import os
import secrets
import select
import signal
import socket
import sys

from orchestrator.errors import OrchestratorError, RunnerLost
from orchestrator.guardian.channel import Channel
from orchestrator.guardian.journal import Journal
from orchestrator.guardian.kernel import become_subreaper, boottime
from orchestrator.guardian.leftovers import Leftovers
from orchestrator.guardian.locks import Note
from orchestrator.guardian.predecessor import clear_predecessor, own_start
from orchestrator.guardian.settings import GuardianSettings, shape_log
from orchestrator.guardian.supervisor import Supervisor

FIRST_MESSAGE_SECONDS = 10.0
ANSWER_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """Guard one worker's runners until the worker is gone; returns the exit code."""
    descriptor, worker = map(int, arguments)
    # The worker decides when to end, and is heard through the socket; a service's stop signal to all is for it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s guardian: %(message)s")
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    become_subreaper()
    try:
        settings = _receive_settings(channel)
        shape_log(settings.log_format, host=settings.node, process="guardian")
        supervisor = _prepare(channel, settings, worker)
    except (OrchestratorError, OSError) as error:
        channel.send({"op": "refused", "reason": str(error)})
        return 1
    supervisor.run()
    return 0


def _prepare(channel: Channel, settings: GuardianSettings, worker: int) -> Supervisor:
    journal = Journal(settings.find_journal())
    start = own_start(worker)
    # Ready in time, whatever is left: the worker waits for no longer.
    deadline = boottime() + settings.start_deadline_seconds - ANSWER_SECONDS
    stuck = clear_predecessor(journal, deadline=deadline, patience_seconds=settings.kill_wait_seconds)
    mark = secrets.token_hex(8)
    journal.append("start", **start, node=settings.node, guardian=mark)
    identity = Note(mark, start["pid"], start["start_ticks"], journal.boot_id)
    return Supervisor(channel, settings, journal, identity, Leftovers(settings, journal, identity, stuck))


def _receive_settings(channel: Channel) -> GuardianSettings:
    while not channel.closed:
        for message, _descriptors in channel.receive():
            return GuardianSettings.from_document(message["settings"])
        if not select.select([channel], [], [], FIRST_MESSAGE_SECONDS)[0]:
            break
    raise RunnerLost("the worker sent no settings")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
