"""The protocol holds in every interleaving of its model, and each guard that is taken away can be told by spin.

Exhaustive: ``pan`` visits every state. The model's own comments say what it stands for.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from orchestrator.testing.history import INVARIANTS

MODEL: Final = Path(__file__).parent / "lease.pml"
#: What must go wrong when a guard is missing, by the names of docs/reliability.md.
GUARDS: Final = {
    "TOKEN": "fenced-end",
    "LIVE": "live-token",
    "DEVICE_LOCK": "runner-exclusive",
    "GPU_ROW": "gpu-exclusive",
    "TOKEN_ORDER": "gpu-tokens-grow",
    "JOB_STATE": "one-end",
    "RENEW": "ended-lease-rests",
    "PAST_END": "expired-past-end",
    "EPOCH": "fenced-sweeps",
    "NEW_EPOCH": "one-leader",
    "CANCEL_STATE": "one-end",
    "HEED": "cancel-heeded",
    "FREE": "gpu-row-agrees",
    "REQUEUE": "running-under-lease",
}
#: Fewer states than this would mean that the model has lost most of its behaviour.
LEAST_STATES: Final = 1_000_000


def check(directory: Path, *defines: str, optimise: str = "-O1") -> str:
    """Generate, compile and run the verifier; return what it says."""
    for binary, package in (("spin", "spin"), ("gcc", "gcc libc6-dev")):
        if shutil.which(binary) is None:
            pytest.fail(f"{binary} is missing; run tests/install-debian-packages (Debian: {package})", pytrace=False)
    shutil.copy(MODEL, directory)
    run(directory, "spin", "-a", *(f"-D{define}" for define in defines), MODEL.name)
    run(directory, "gcc", optimise, "-w", "-DSAFETY", "-DMEMLIM=2500", "-o", "pan", "pan.c")
    return run(directory, "./pan", "-m100000")


def run(directory: Path, *command: str) -> str:
    """Run a command to its end and return its output."""
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.timeout(600)
def test_no_interleaving_violates_the_protocol(tmp_path: Path) -> None:
    """With one term of leadership more when ``make explore`` asks for it: three times as many states."""
    said = check(tmp_path, f"EPOCHS={3 if os.environ.get('EXPLORE') else 2}", optimise="-O2")
    states = re.search(r"^\s*(\d+) states, stored", said, re.MULTILINE)

    assert "errors: 0" in said, said
    assert "Full statespace search" in said
    assert "max search depth too small" not in said
    assert states is not None
    assert int(states[1]) > LEAST_STATES


@pytest.mark.parametrize("guard", GUARDS)
def test_a_guard_that_is_missing_leads_to_a_counterexample(tmp_path: Path, guard: str) -> None:
    """The counterexample ends at the assertion that bears the name of the invariant."""
    said = check(tmp_path, f"NO_{guard}", optimise="-O0")
    assert "errors: 1" in said, said
    trail = run(tmp_path, "spin", "-t", "-p", f"-DNO_{guard}", MODEL.name)
    failed = re.search(rf"{MODEL.name}:(\d+), Error: assertion violated", trail)

    assert failed is not None, trail[-1000:]
    line = MODEL.read_text().splitlines()[int(failed[1]) - 1]
    assert f"/* {GUARDS[guard]} */" in line, line


def test_every_guard_of_the_model_is_taken_away_once() -> None:
    assert set(re.findall(r"\bNO_([A-Z_]+)", MODEL.read_text())) == set(GUARDS)


def test_the_models_assertions_bear_the_names_of_invariants() -> None:
    named = re.findall(r"assert\(.*\).*?/\* ([a-z-]+) \*/", MODEL.read_text())

    assert set(GUARDS.values()) <= set(named) <= INVARIANTS.keys()
