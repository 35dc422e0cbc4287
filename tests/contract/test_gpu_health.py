"""What is remembered of GPUs, on both databases."""

from dataclasses import replace

import pytest

from orchestrator.domain.cluster import GpuAction, GpuHealth, GpuOrder, GpuSample, GpuStanding
from orchestrator.errors import UnknownGpu
from tests.contract.conftest import Stores

HEALTHY = GpuStanding()
STRUCK = GpuStanding(GpuHealth.QUARANTINED, 1, "XID 79")


def samples(stores: Stores) -> list[GpuSample]:
    return [
        GpuSample(record.gpu, 0, GpuHealth.HEALTHY, (), None, None, None)
        for node in stores.cluster.nodes()
        for record in node.gpus
    ]


def test_a_change_of_health_is_kept_with_an_event_and_nothing_else_is_written(stores: Stores) -> None:
    stores.register("a", 2)
    before = stores.count("events")
    stores.cluster.note_gpu_standings("a", {"a-0": STRUCK, "a-1": HEALTHY})
    stores.cluster.note_gpu_standings("a", {"a-0": STRUCK, "a-1": HEALTHY})

    assert stores.count("events") == before + 1
    assert stores.count_events("gpu_quarantined") == 1
    assert stores.cluster.gpu_standings("a") == {"a-0": STRUCK, "a-1": HEALTHY}
    (node,) = stores.cluster.nodes()
    assert [(gpu.health, gpu.strikes, gpu.health_reason) for gpu in node.gpus] == [
        (GpuHealth.QUARANTINED, 1, "XID 79"),
        (GpuHealth.HEALTHY, 0, None),
    ]


def test_a_warning_is_kept_with_an_event_when_it_comes_and_when_it_goes(stores: Stores) -> None:
    """It takes the GPU from nobody."""
    stores.register("a", 1)
    hot = replace(HEALTHY, warning="slowed down by heat")
    for standing in (hot, hot, HEALTHY, HEALTHY, hot):
        stores.cluster.note_gpu_standings("a", {"a-0": standing})

    assert [stores.count_events(kind) for kind in ("gpu_warned", "gpu_warning_over")] == [2, 1]
    assert stores.cluster.gpu_standings("a") == {"a-0": hot}
    assert stores.cluster.nodes()[0].gpus[0].warning == "slowed down by heat"
    assert stores.claim(stores.submit().seq, "a-0").granted


def test_a_quarantine_by_hand_is_in_force_before_the_host_hears_of_it(stores: Stores) -> None:
    """Its heartbeat, which still calls the GPU healthy, changes nothing."""
    stores.register("a", 1)
    stores.cluster.order_gpu("a-0", GpuAction.QUARANTINE, by="ann")
    orders = stores.cluster.note_gpu_standings("a", {"a-0": HEALTHY})
    stores.cluster.heartbeat("a", samples(stores), look_ahead=0)

    assert orders == {"a-0": GpuOrder(held=True)}
    assert stores.cluster.gpu_standings("a")["a-0"].health is GpuHealth.QUARANTINED
    assert stores.claim(stores.submit().seq, "a-0").granted == ()


def test_orders_are_counted_so_that_none_is_missed_or_heard_twice(stores: Stores) -> None:
    stores.register("a", 1)
    stores.cluster.note_gpu_standings("a", {"a-0": STRUCK})
    for action in (GpuAction.QUARANTINE, GpuAction.RELEASE, GpuAction.RESET):
        stores.cluster.order_gpu("a-0", action, by="ann")

    standing = stores.cluster.gpu_standings("a")["a-0"]
    assert (standing.order, standing.strikes, standing.reason) == (GpuOrder(False, 2, 1), 0, "reset by ann")


def test_a_registration_keeps_strikes_and_orders(stores: Stores) -> None:
    stores.register("a", 1)
    stores.cluster.note_gpu_standings("a", {"a-0": STRUCK})
    stores.cluster.order_gpu("a-0", GpuAction.QUARANTINE, by="ann")
    stores.register("a", 1, pid=2)

    standing = stores.cluster.gpu_standings("a")["a-0"]
    assert (standing.strikes, standing.order) == (1, GpuOrder(held=True))


def test_an_unknown_gpu_is_told(stores: Stores) -> None:
    with pytest.raises(UnknownGpu):
        stores.cluster.order_gpu("GPU-nowhere", GpuAction.RESET, by="ann")
