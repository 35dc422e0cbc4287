"""The process that reads the GPUs, so that a driver which hangs cannot hold up a deadline.

    python -m orchestrator.guardian.sampler PARENT SECONDS CARDS [SIMULATED]

CARDS are ``all``, ``but:1,3`` for all but those of these indexes, or ``only:1``, which is read once.

Prints one JSON object a line to stdout: ``{"at": …, "samples": […]}`` or ``{"fault": "…"}``; ``at`` is when the reading
began, by the boot clock. Before it asks a card it prints ``{"about": INDEX}``, so that it is known which one hangs it;
``null`` is none alone. A byte on stdin asks for a reading at once.
"""

import json
import os
import select
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import GpusUnavailable
from orchestrator.gpus.card_choice import every_card
from orchestrator.gpus.driver import open_driver
from orchestrator.guardian.attribution import identify, sees_every_process
from orchestrator.guardian.kernel import boottime, die_with
from orchestrator.ports import GpuDriver


def describe(driver: GpuDriver, *, pids_are_ours: bool) -> str:
    """Return one reading as a line; without processes if the driver's pids mean nothing here."""
    try:
        at = boottime()
        samples = identify(driver.sample(), pids_are_ours=pids_are_ours)
        return json.dumps({"at": at, "samples": [asdict(sample) for sample in samples]}, separators=(",", ":"))
    except GpusUnavailable as error:
        return json.dumps({"fault": str(error)})


def choose_cards(text: str) -> Callable[[int], bool]:
    """Return which cards are read, by their indexes."""
    kind, _, listed = text.partition(":")
    named = frozenset(int(index) for index in listed.split(",") if index)
    return {"all": every_card, "but": lambda index: index not in named, "only": lambda index: index in named}[kind]


def _say_about(index: int | None) -> None:
    print(json.dumps({"about": index}), flush=True)


def main(arguments: list[str]) -> None:
    """Sample until the guardian is gone."""
    parent, seconds, cards, *simulated = arguments
    die_with(int(parent))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    driver = open_driver(Path(simulated[0]) if simulated else None, about=_say_about, reads=choose_cards(cards))
    pids_are_ours = bool(simulated) or sees_every_process()
    while True:
        try:
            print(describe(driver, pids_are_ours=pids_are_ours), flush=True)
        except BrokenPipeError:
            os._exit(0)
        if cards.startswith("only:"):
            return
        asked, _, _ = select.select([sys.stdin], [], [], float(seconds))
        if asked and not os.read(sys.stdin.fileno(), 4096):
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
