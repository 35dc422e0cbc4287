"""What operators have done with a GPU over HTTP."""

from fastapi.testclient import TestClient

from orchestrator.domain.cluster import GpuHealth, GpuOrder, GpuStanding
from orchestrator.runtime import Runtime
from tests.support.running import confirming, register

PROBLEM = "urn:gpu-orchestrator:problem:"


def test_a_gpu_is_quarantined_released_and_reset(api: TestClient, runtime: Runtime) -> None:
    """It is leased to nobody from then on, until its host has heard of its release and calls it healthy again."""
    register(runtime, "alpha", 1)
    struck = GpuStanding(GpuHealth.HEALTHY, 2)
    runtime.cluster.note_gpu_standings("alpha", {"alpha-0": struck})

    held = api.post("/gpus/alpha-0/quarantine")
    assert held.status_code == 200
    assert (held.json()["uuid"], held.json()["health"]) == ("alpha-0", "quarantined")
    assert held.json()["health_reason"].startswith("quarantined by ")
    assert api.get("/gpus").json()["gpus"] == [held.json()]
    with confirming(runtime):
        refused = api.post("/leases", json={"gpus": 1})
    assert (refused.status_code, refused.json()["type"]) == (409, f"{PROBLEM}no-gpu-free")

    released = api.post("/gpus/alpha-0/release").json()
    assert (released["health_reason"].split()[0], released["strikes"]) == ("released", 2)
    assert runtime.cluster.gpu_standings("alpha")["alpha-0"].order == GpuOrder(releases=1)
    runtime.cluster.note_gpu_standings("alpha", {"alpha-0": struck})
    with confirming(runtime):
        lease = api.post("/leases", json={"gpus": 1})
    assert (lease.status_code, lease.json()["gpus"]) == (201, ["alpha-0"])

    again = api.post("/gpus/alpha-0/reset")
    assert (again.status_code, again.json()["strikes"], again.json()["health"]) == (200, 0, "healthy")
    assert again.json()["lease"] == lease.json()["id"], "what runs there goes on"
    kinds = [event["kind"] for event in api.get("/events").json()["events"] if event["data"].get("by")]
    assert [kind for kind in kinds if kind.startswith("gpu_")] == ["gpu_quarantine", "gpu_release", "gpu_reset"]


def test_a_gpu_that_nobody_knows_is_not_found(api: TestClient) -> None:
    for action in ("quarantine", "release", "reset"):
        answer = api.post(f"/gpus/GPU-nowhere/{action}")
        assert (answer.status_code, answer.json()["type"]) == (404, f"{PROBLEM}unknown-gpu")
