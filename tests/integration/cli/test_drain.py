"""``orch drain`` and ``orch undrain``."""

from orchestrator.domain.cluster import NodeState
from orchestrator.runtime import Runtime
from tests.integration.cli.conftest import Orch
from tests.support.cli_fields import FIELDS
from tests.support.running import register


def test_a_host_is_drained_waited_for_and_taken_back(orch: Orch, runtime: Runtime) -> None:
    register(runtime, "drainable", 1)

    drained = orch("drain", "drainable", "--json").document
    shown = next(node for node in orch("nodes", "--json").document if node["name"] == "drainable")
    timed_out = orch("drain", "drainable", "--wait", "--timeout", "0")
    runtime.cluster.heartbeat("drainable", (), look_ahead=0, settled=True)
    waited = orch("drain", "drainable", "--wait")

    assert drained == {"name": "drainable", "state": "draining", "drain": True, "changed": True, "withdrawn": 0}
    assert set(drained) == FIELDS["drain"]
    assert (shown["state"], shown["drain"]) == ("draining", True)
    assert timed_out.code == 124
    assert (waited.code, waited.out) == (0, "drainable is drained\n")
    assert orch("undrain", "drainable", "--json").document["changed"]
    assert not orch("drain", "drainable", "--undo", "--json").document["changed"]
    assert runtime.cluster.heartbeat("drainable", (), look_ahead=0) is NodeState.UP


def test_a_host_that_nobody_knows_is_told_of(orch: Orch) -> None:
    answer = orch("drain", "no-such-host")

    assert (answer.code, answer.out) == (2, "")
    assert "unknown host 'no-such-host'" in answer.err
    assert orch("undrain", "../jobs").code == 2
