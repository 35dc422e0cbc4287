"""A stack, a few jobs, their output and a table: what ``make run`` shows.

Every step is the command that a user would type; each is printed before it runs.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ORCH = [sys.executable, "-m", "orchestrator_cli"]


def main() -> int:
    """Run the tour in a home of its own; return 0 when every job succeeded."""
    with tempfile.TemporaryDirectory(prefix="orch-tour-") as home:
        environment = os.environ | {"ORCHESTRATOR_HOME": home}
        tour = Tour(environment)
        port = tour.free_port()
        if tour.orch("up", "--detach", "--simulate", "4", "--api-port", str(port)):
            return 1
        try:
            return tour.jobs()
        finally:
            tour.orch("down")


class Tour:
    """Runs commands against one stack."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def jobs(self) -> int:
        """Submit, follow, wait, show."""
        train = [sys.executable, str(HERE / "train_digits.py"), "--epochs", "20"]
        first = self.submit("--gpus", "1", "--name", "digits", "--", *train)
        pair = self.submit("--gpus", "2", "--name", "two-gpus", "--", "sh", "-c", "echo I see $CUDA_VISIBLE_DEVICES")
        cpu = self.submit("--name", "cpu-only", "--", "uname", "-sr")
        task = self.call_task()
        self.orch("logs", "-f", first)
        self.orch("logs", pair)
        code = self.orch("wait", first, pair, cpu, task)
        self.orch("ps", "--all")
        self.orch("gpus")
        return code

    def submit(self, *arguments: str) -> str:
        """Submit a command and return its id."""
        self._say(["submit", *arguments])
        done = subprocess.run(
            [*ORCH, "submit", "--json", *arguments],
            env=self._environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return str(json.loads(done.stdout)["id"])

    def call_task(self) -> str:
        """Call a Celery task as any Celery producer does, wait for its result, and return the job's id."""
        program = (
            "from orchestrator_tasks.app import app\n"
            "from orchestrator_tasks.examples import where\n"
            "result = where.delay(0.5)\n"
            "print(result.id)\n"
            "print('Celery result:', result.get(timeout=60))\n"
        )
        sys.stdout.write("\n$ python -c 'where.delay(0.5).get()'\n")
        sys.stdout.flush()
        done = subprocess.run(
            [sys.executable, "-c", program], env=self._environment, stdout=subprocess.PIPE, text=True, check=True
        )
        job_id, _, rest = done.stdout.partition("\n")
        sys.stdout.write(rest)
        return job_id

    def orch(self, *arguments: str) -> int:
        """Run a verb and return its exit code."""
        self._say(arguments)
        return subprocess.run([*ORCH, *arguments], env=self._environment, check=False).returncode

    def _say(self, arguments: Sequence[str]) -> None:
        sys.stdout.write(f"\n$ orch {shlex.join(arguments)}\n")
        sys.stdout.flush()

    @staticmethod
    def free_port() -> int:
        """Return a port that nobody uses, so that a stack of the user's own is not in the way."""
        import socket

        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
