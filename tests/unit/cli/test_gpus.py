"""What ``orch gpus`` shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestrator.api.schemas import Seen, node_document
from orchestrator.domain.cluster import Gpu, GpuHealth, GpuHolder, GpuRecord, NodeState
from orchestrator.domain.gpu_memory import ForeignUse
from orchestrator.ports import NodeRecord
from orchestrator.testing.clock import FakeClock
from orchestrator_cli.commands import gpus as verb
from orchestrator_cli.main import cli

SHARES = (GpuHolder(7, 4000, ("job-1",), "ann"), GpuHolder(8, 2000, ("job-2", "job-3"), "ben"))
STRANGER = ForeignUse(3000, ("pid 77 (carl): 3000 MiB",), clean=False)


def card(index: int, *, links: tuple[str, ...] = (), numa: int | None = None, **fields: Any) -> GpuRecord:
    gpu = Gpu(f"GPU-{index}", index, "H100", 80_000, "1", numa=numa, links=links)
    return GpuRecord(gpu, "a", GpuHealth.HEALTHY, 500, 0, None, 40, 50, 300, **fields)


def documents(*cards: GpuRecord, tenant: str | None = None, **holders: tuple[GpuHolder, ...]) -> list[dict[str, Any]]:
    by_uuid = {name.replace("_", "-"): found for name, found in holders.items()}
    now = FakeClock().now()
    node = NodeRecord("a", "boot", "w", 1, NodeState.UP, ("gpu",), 2, 0, now, True, cards)
    found: list[dict[str, Any]] = node_document(node, Seen(by_uuid, tenant))["gpus"]
    return found


def show(monkeypatch: pytest.MonkeyPatch, found: list[dict[str, Any]], *arguments: str) -> Result:
    class Client:
        def gpus(self) -> list[dict[str, Any]]:
            return found

    @contextmanager
    def open_client() -> Iterator[Client]:
        yield Client()

    monkeypatch.setattr(verb, "open_client", open_client)
    return CliRunner().invoke(cli, ["gpus", *arguments], catch_exceptions=False)


def test_who_has_a_gpu_and_what_is_amiss_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    hot = card(1, warning="slowed down by heat", foreign=STRANGER)
    shown = show(monkeypatch, documents(card(0), hot, GPU_1=SHARES))
    title, idle, shared = shown.stdout.splitlines()

    columns = "NODE GPU MODEL HEALTH LIVE USED MIB RESERVED TOTAL FOREIGN UTIL TEMP POWER LEASE JOB TENANT MIG UUID"
    assert title.split() == columns.split()
    readings = "500 0 80000 {} 40 50 300"
    assert " ".join(idle.split()) == f"a 0 H100 healthy yes {readings.format(0)} - - - - GPU-0"
    holders = "7 +1 job-1 +1 ann +1"
    assert " ".join(shared.split()) == f"a 1 H100 healthy! yes {readings.format(3000)} {holders} - GPU-1"
    assert shown.stderr.splitlines() == [
        "GPU GPU-1: slowed down by heat",
        "GPU GPU-1: in use without a lease: pid 77 (carl): 3000 MiB",
    ]


def test_of_other_tenants_it_is_only_told_that_they_are_there() -> None:
    (found,) = documents(card(1, foreign=STRANGER), tenant="ann", GPU_1=SHARES)
    mine, others = found["holders"]
    assert (mine["jobs"], mine["tenant"]) == (["job-1"], "ann")
    assert others == {"lease": 8, "memory_mib": 2000, "jobs": [], "tenant": None, "holder": None}
    assert (found["foreign_mib"], found["foreign_by"]) == (3000, [])


def test_what_joins_the_gpus_of_a_host_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = (card(0, links=("GPU-1",), numa=0), card(1, links=("GPU-0",), numa=0), card(2, numa=0), card(3))
    lines = show(monkeypatch, documents(*cards), "--topology").stdout.splitlines()

    assert [line.split()[:6] for line in lines] == [
        ["a", "GPU0", "GPU1", "GPU2", "GPU3", "NUMA"],
        ["0", "x", "NV", "NODE", "-", "0"],
        ["1", "NV", "x", "NODE", "-", "0"],
        ["2", "NODE", "NODE", "x", "-", "0"],
        ["3", "-", "-", "-", "x", "-"],
    ]
