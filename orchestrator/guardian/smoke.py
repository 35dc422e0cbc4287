"""See a guardian at work by hand: run one command under it and print what it says.

python -m orchestrator.guardian.smoke [--gpus FILE] [--seconds N] [--grace N] -- COMMAND…
"""

import argparse
import os
import selectors
import sys
import tempfile
from pathlib import Path

from orchestrator.guardian.client import Guardian
from orchestrator.guardian.kernel import boottime
from orchestrator.guardian.messages import Exited, RunnerSpec, SpawnFailed
from orchestrator.guardian.settings import GuardianSettings


def main(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m orchestrator.guardian.smoke")
    parser.add_argument("--gpus", type=Path, help="file of simulated GPUs")
    parser.add_argument("--seconds", type=float, help="kill the command after so long")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="guardian-") as home:
        settings = GuardianSettings(node="smoke", home=Path(home), lock_dir=Path(home), simulated_gpus=options.gpus)
        guardian = Guardian.start(settings)
        try:
            return _run(guardian, options.command, options.seconds)
        finally:
            guardian.close(timeout_seconds=10)


def _run(guardian: Guardian, command: list[str], seconds: float | None) -> int:
    spec = RunnerSpec(
        runner_id="smoke",
        argv=tuple(command),
        entry=None,
        environment=dict(os.environ),
        cwd=str(Path.cwd()),
        gpus=(),
        exclusive=True,
        token=1,
        nice=None,
        rlimits={},
        deadline=None if seconds is None else boottime() + seconds,
    )
    pipes = guardian.spawn(spec)
    with selectors.DefaultSelector() as selector:
        selector.register(guardian, selectors.EVENT_READ)
        selector.register(pipes.output, selectors.EVENT_READ)
        while True:
            for key, _ready in selector.select():
                if key.fd == pipes.output:
                    data = os.read(pipes.output, 1 << 16)
                    sys.stdout.buffer.write(data)
                    sys.stdout.flush()
                    if not data:
                        selector.unregister(pipes.output)
                    continue
                for event in guardian.read_events():
                    print(f"{boottime():.3f} {event}", file=sys.stderr)
                    if isinstance(event, Exited):
                        return event.exit_code if event.exit_code is not None else 128 + (event.signal or 0)
                    if isinstance(event, SpawnFailed):
                        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
