"""The process that reads the GPUs, so that a driver which hangs cannot hold up a deadline.

    python -m orchestrator.guardian.sampler PARENT SECONDS [SIMULATED]

Prints one JSON object a line to stdout: ``{"samples": […]}`` or ``{"fault": "…"}``.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import GpusUnavailable
from orchestrator.gpus.driver import open_driver
from orchestrator.guardian.kernel import die_with
from orchestrator.ports import GpuDriver


def describe(driver: GpuDriver) -> str:
    """Return one reading as a line."""
    try:
        return json.dumps({"samples": [asdict(sample) for sample in driver.sample()]}, separators=(",", ":"))
    except GpusUnavailable as error:
        return json.dumps({"fault": str(error)})


def main(arguments: list[str]) -> None:
    """Sample until the guardian is gone."""
    parent, seconds, *simulated = arguments
    die_with(int(parent))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    driver = open_driver(Path(simulated[0]) if simulated else None)
    while True:
        try:
            print(describe(driver), flush=True)
        except BrokenPipeError:
            os._exit(0)
        time.sleep(float(seconds))


if __name__ == "__main__":
    main(sys.argv[1:])
