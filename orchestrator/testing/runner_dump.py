"""What a runner writes about itself, outside the system: when it ran, under which token, which GPUs it saw.

One JSON object a line, appended to a file. Tasks use ``dumping``, which writes to the file that
``RUNNER_DUMP_FILE`` names; a command job runs this as a program for so many seconds,
``python runner_dump.py FILE SECONDS``. It needs nothing but Python: it starts fast, and works in any environment.
``orchestrator.testing.runner_spans`` reads what was written.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

#: Names the file; only tests set it. Not one of the settings' variables: a worker refuses those that it does not know.
VARIABLE = "RUNNER_DUMP_FILE"


@contextmanager
def dumping(
    path: Path | None = None,
    *,
    job: str | None = None,
    attempt: int | None = None,
    token: int | None = None,
    gpus: Sequence[str] | None = None,
) -> Iterator[None]:
    """Write a line when the block begins and one when it ends; what is not given is read from the environment.

    Nothing is written when neither argument nor variable names a file.

    After its own first line a runner looks for others that began on one of its GPUs, did not end and are alive: of two
    that overlap at least one sees the other, also when both are killed later.
    """
    environment = os.environ
    if path is None:
        if VARIABLE not in environment:
            yield
            return
        path = Path(environment[VARIABLE])
    gpus = environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpus is None else gpus
    fields = {
        "job": environment["ORCHESTRATOR_JOB_ID"] if job is None else job,
        "attempt": int(environment["ORCHESTRATOR_ATTEMPT"]) if attempt is None else attempt,
        "token": int(environment["ORCHESTRATOR_FENCING_TOKEN"]) if token is None else token,
        "gpus": [gpu for gpu in gpus if gpu],
        "pid": os.getpid(),
        "ticks": start_ticks(os.getpid()),
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
    }
    _append(path, fields | {"what": "start"})
    others = list(_alive_beside(path, fields))
    if others:
        _append(path, fields | {"what": "beside", "others": others})
    try:
        yield
    finally:
        _append(path, fields | {"what": "end"})


def start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since the boot; None when it is not alive."""
    try:
        values = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if values[0] in (b"Z", b"X") else int(values[19])


def _append(path: Path, fields: dict[str, object]) -> None:
    line = fields | {"at": time.clock_gettime(time.CLOCK_BOOTTIME), "wall": time.time()}
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o660)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")  # one write: whoever is killed leaves no half of a line
    finally:
        os.close(file)


def _alive_beside(path: Path, mine: dict[str, object]) -> Iterator[int]:
    begun: dict[tuple[int, int, str, int], list[str]] = {}
    for line in path.read_text().splitlines():
        told = json.loads(line)
        key = (told["pid"], told["ticks"], told["job"], told["attempt"])
        if told["boot"] != mine["boot"] or key == (mine["pid"], mine["ticks"], mine["job"], mine["attempt"]):
            continue
        if told["what"] == "start":
            begun[key] = told["gpus"]
        elif told["what"] == "end":
            begun.pop(key, None)
    wanted = mine["gpus"]
    assert isinstance(wanted, list)
    for (pid, ticks, _job, _attempt), gpus in begun.items():
        if set(wanted).intersection(gpus) and pid != mine["pid"] and start_ticks(pid) == ticks:
            yield pid


def main(arguments: Sequence[str]) -> None:
    """Dump, and run for as long as was asked."""
    with dumping(Path(arguments[0])):
        time.sleep(float(arguments[1]))


if __name__ == "__main__":
    main(sys.argv[1:])
