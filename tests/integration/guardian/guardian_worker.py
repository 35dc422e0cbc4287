"""A worker for tests that are about its death: starts a guardian and one runner, tells the pids, and waits.

python guardian_worker.py SETTINGS SPEC    both as JSON
"""

import json
import sys
import time

from orchestrator.guardian.client import Guardian, GuardianSettings
from orchestrator.guardian.messages import RunnerSpec, Spawned


def main(settings: str, spec: str) -> None:
    """Print the guardian's and the runner's pid once it runs, then read events for ever."""
    guardian = Guardian.start(GuardianSettings.from_document(json.loads(settings)))
    pipes = guardian.spawn(RunnerSpec.from_document(json.loads(spec)))
    while True:
        for event in guardian.read_events():
            if isinstance(event, Spawned):
                print(json.dumps({"guardian": guardian.pid, "runner": event.pid, "output": pipes.output}), flush=True)
        time.sleep(0.01)


if __name__ == "__main__":
    main(*sys.argv[1:])
