"""Memory of simulated GPUs that processes use: each says how much, and its memory is free when it is gone.

    python -m orchestrator.gpus.simulated_use GPUS.toml MIB:SECONDS [MIB:SECONDS …]

uses so much of each GPU in ``CUDA_VISIBLE_DEVICES``, step by step, for so long. A process's file lies in the directory
``GPUS.toml.use`` and is named after its pid and its start, so that no later process with its pid inherits what it used.
"""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

_START: Final = 19  # of what follows the name in /proc/PID/stat


def set_use(file: Path, mib: Mapping[str, int]) -> None:
    """Say what this process uses, by GPU uuid, of the GPUs that ``file`` describes; it replaces what it said before."""
    directory = _directory(file)
    directory.mkdir(exist_ok=True)
    pid = os.getpid()
    final = directory / f"{pid}-{_read_start(pid)}"
    temporary = final.with_name(f".{final.name}")
    temporary.write_text(json.dumps(dict(mib)), encoding="ascii")
    temporary.replace(final)


def read_uses(file: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield the pid of every living process that uses GPUs of the file, and what; forget those that are gone."""
    try:
        names = sorted(os.listdir(_directory(file)))
    except FileNotFoundError:
        return
    for name in names:
        pid, _, start = name.partition("-")
        if not (pid.isdecimal() and start.isdecimal()):
            continue
        path = _directory(file) / name
        if _read_start(int(pid)) != int(start):
            path.unlink(missing_ok=True)
            continue
        with suppress(FileNotFoundError):
            yield int(pid), json.loads(path.read_text(encoding="ascii"))


def _directory(file: Path) -> Path:
    return file.with_name(f"{file.name}.use")


def _read_start(pid: int) -> int | None:
    """Return when a living process started, in clock ticks since the boot; None if it is gone or has ended."""
    try:
        data = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    values = data[data.rindex(b")") + 2 :].split()
    return None if values[0] in (b"Z", b"X") else int(values[_START])


def main(arguments: list[str]) -> None:
    """Use memory as the arguments say."""
    file, *steps = arguments
    gpus = [uuid for uuid in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if uuid]
    for step in steps:
        mib, _, seconds = step.partition(":")
        set_use(Path(file), dict.fromkeys(gpus, int(mib)))
        print(f"uses {mib} MiB", flush=True)
        time.sleep(float(seconds or 0))


if __name__ == "__main__":
    main(sys.argv[1:])
