"""The process that reads the GPUs, so that a driver which hangs cannot hold up a deadline.

    python -m orchestrator.guardian.sampler PARENT SECONDS [SIMULATED]

Prints one JSON object a line to stdout: ``{"at": …, "samples": […]}`` or ``{"fault": "…"}``; ``at`` is when the reading
began, by the boot clock. A byte on stdin asks for a reading at once.
"""

import json
import os
import select
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import GpusUnavailable
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


def main(arguments: list[str]) -> None:
    """Sample until the guardian is gone."""
    parent, seconds, *simulated = arguments
    die_with(int(parent))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    driver = open_driver(Path(simulated[0]) if simulated else None)
    pids_are_ours = bool(simulated) or sees_every_process()
    while True:
        try:
            print(describe(driver, pids_are_ours=pids_are_ours), flush=True)
        except BrokenPipeError:
            os._exit(0)
        asked, _, _ = select.select([sys.stdin], [], [], float(seconds))
        if asked and not os.read(sys.stdin.fileno(), 4096):
            os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
