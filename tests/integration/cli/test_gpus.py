"""``orch gpus quarantine``, ``release`` and ``reset``."""

from orchestrator.domain.cluster import GpuHealth, GpuStanding
from orchestrator.runtime import Runtime
from tests.integration.cli.conftest import Orch
from tests.support.cli_fields import FIELDS
from tests.support.running import register


def test_an_operator_takes_a_gpu_away_and_gives_it_back(orch: Orch, runtime: Runtime) -> None:
    """As JSON, and as the row of the table with the reason below it."""
    register(runtime, "ailing", 1)
    struck = GpuStanding(GpuHealth.HEALTHY, 2)
    runtime.cluster.note_gpu_standings("ailing", {"ailing-0": struck})

    held = orch("gpus", "quarantine", "ailing-0", "--json").document
    assert set(held) == FIELDS["gpus quarantine"]
    assert (held["uuid"], held["health"], held["strikes"]) == ("ailing-0", "quarantined", 2)
    shown = orch("gpus", "quarantine", "ailing-0")
    assert shown.code == 0
    assert "quarantined" in shown.out.splitlines()[1].split()
    assert shown.err.startswith("GPU ailing-0: quarantined by ")

    released = orch("gpus", "release", "ailing-0", "--json").document
    assert (released["health_reason"].split()[0], released["strikes"]) == ("released", 2)
    runtime.cluster.note_gpu_standings("ailing", {"ailing-0": struck})
    reset = orch("gpus", "reset", "ailing-0", "--json").document
    assert (reset["health"], reset["strikes"], reset["health_reason"].split()[0]) == ("healthy", 0, "reset")


def test_a_gpu_that_nobody_knows_is_told_of(orch: Orch) -> None:
    for action in ("quarantine", "release", "reset"):
        answer = orch("gpus", action, "GPU-nowhere")
        assert (answer.code, answer.out) == (2, "")
        assert "GPU-nowhere" in answer.err
        assert answer.err.count("\n") == 1
