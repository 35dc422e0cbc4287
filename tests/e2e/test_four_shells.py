"""The promise of the README, at once: many jobs of mixed sizes, typed in several shells, never share a GPU."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_cli.stack.home import Home
from tests.e2e.conftest import Orch
from tests.e2e.test_stack_jobs import up
from tests.support.cluster import DUMP, read_dumps
from tests.support.commands import SOURCES

SHELLS = 4
SIZES = (1, 2, 4, 0)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("each", [12, pytest.param(50, marks=pytest.mark.matrix)])
def test_jobs_from_four_shells_never_share_a_gpu(orch: Orch, home: Home, tmp_path: Path, each: int) -> None:
    """Checked from what the jobs saw and from the leases' own history; 200 of them in the matrix."""
    up(orch, "--simulate", "4")
    dumps = tmp_path / "dumps.jsonl"
    environment = os.environ | {"ORCHESTRATOR_HOME": str(home.path), "PYTHONPATH": os.pathsep.join(SOURCES)}
    shells = [
        subprocess.Popen(["sh", "-ec", script(dumps, shell, each)], env=environment, stdout=subprocess.PIPE, text=True)
        for shell in range(SHELLS)
    ]
    ids = [line for shell in shells for line in (shell.communicate(timeout=300)[0]).split()]
    assert [shell.returncode for shell in shells] == [0] * SHELLS
    assert len(set(ids)) == SHELLS * each
    waited = orch("wait", "--json", *ids)

    states = {job["id"]: job["state"] for job in json.loads(waited.stdout)}
    assert states == dict.fromkeys(ids, "succeeded"), waited.stderr
    lines = read_dumps(dumps)
    assert len(lines) == 2 * len(ids)
    assert sorted(len(line["gpus"]) for line in lines if line["what"] == "start") == sorted(SIZES * each)
    told = orch("admin", "verify", "--json", "--settled", "--dumps", str(dumps), "--dumps", str(home.path / "journal"))
    report = json.loads(told.stdout)
    assert (told.returncode, report["violations"]) == (0, [])
    assert report["checked"]["jobs"] == len(ids)
    assert report["checked"]["runners"] >= 2 * len(ids), "each as its job and as its guardian tells it"
    assert orch("down").returncode == 0


def script(dumps: Path, shell: int, each: int) -> str:
    """Return what one person types: so many submits of all sizes, beginning with another one in each shell."""
    command = shlex.join([*DUMP, str(dumps), "0.02"])
    orch = shlex.join([sys.executable, "-m", "orchestrator_cli"])
    submits = [f"{orch} submit --gpus {SIZES[(shell + number) % len(SIZES)]} -- {command}" for number in range(each)]
    return "\n".join(submits)
