"""``orch pool``: what it prints, for people and for programs."""

from datetime import timedelta

from orchestrator.runtime import Runtime
from orchestrator.services.pools import PoolSweep
from tests.integration.cli.conftest import Orch
from tests.support.cli_fields import FIELDS


def test_a_pool_is_ordered_and_shown(orch: Orch, runtime: Runtime) -> None:
    """Every verb prints the pool; --wait says what it lacks."""
    made = orch("pool", "start", "cli", "--model", "m:1", "--arg", "bits=4", "--arg", "path=/w", "--max", "3", "--json")
    scaled = orch("pool", "scale", "cli", "--min", "2", "--pin", "--idle", "5m", "--json").document
    preloaded = orch("pool", "preload", "cli", "--json").document
    swapped = orch("pool", "swap", "cli", "m:2", "--json").document
    status = orch("pool", "status", "cli", "--json").document
    listed = orch("pool", "ls", "--json").document

    assert made.document["arguments"] == {"bits": 4, "path": "/w"}
    assert (scaled["min"], scaled["pinned"], scaled["idle_seconds"], preloaded["wanted"]) == (2, True, 300, 3)
    assert (swapped["model"], status["model"]) == ("m:2", "m:2")
    for verb, document in (("start", made.document), ("scale", scaled), ("status", status), ("ls", listed[0])):
        assert set(document) == FIELDS[f"pool {verb}"]
    table = orch("pool", "ls").out.splitlines()
    assert table[0] == "NAME  MODEL  STATE     READY  WANTED  MIN  MAX  RUNNING  DONE  TENANT  REASON"
    assert table[1].split()[:3] == ["cli", "m:2", "starting"]
    late = orch("pool", "preload", "cli", "2", "--wait", "0.1s")
    assert (late.code, late.err.strip()) == (2, "orch: pool cli is starting with 0 runners ready")

    whole = orch("pool", "sleep", "cli")
    assert whole.code == 2
    assert "share of a GPU" in whole.err
    assert orch("pool", "wake", "cli", "--json").document["asleep"] is False
    assert orch("pool", "drain", "cli", "--json").document["state"] == "draining"
    assert orch("pool", "stop", "cli", "--json").document["state"] == "draining"
    assert orch("pool", "rm", "cli").code == 4
    term = runtime.leadership.campaign("test", ttl=timedelta(seconds=60))
    assert term is not None
    PoolSweep(runtime).run(term.epoch)
    runtime.leadership.resign("test", term.epoch)
    assert "stopped" in orch("pool", "status", "cli").out
    assert orch("pool", "rm", "cli", "--json").document == {"name": "cli"}
    assert orch("pool", "status", "cli").code == 2
    assert orch("pool", "scale", "cli").code == 2


def test_every_pool_is_stopped_at_once(orch: Orch, runtime: Runtime) -> None:
    """A name or --all; and none is none."""
    assert orch("pool", "stop").code == orch("pool", "stop", "one", "--all").code == 2
    for name in ("one", "two"):
        orch("pool", "start", name)
    late = orch("pool", "drain", "--all", "--wait", "0.1s")
    assert (late.code, late.err.strip()) == (2, "orch: pool one is draining with 0 runners ready")
    stopped = orch("pool", "stop", "--all", "--json").document
    assert {one["name"]: one["state"] for one in stopped} == {"one": "draining", "two": "draining"}
    term = runtime.leadership.campaign("test", ttl=timedelta(seconds=60))
    PoolSweep(runtime).run(term.epoch)
    runtime.leadership.resign("test", term.epoch)
    table = orch("pool", "stop", "--all", "--wait", "1s").out.splitlines()
    assert [line.split()[:3] for line in table[1:]] == [["one", "one", "stopped"], ["two", "two", "stopped"]]
    for name in ("one", "two"):
        orch("pool", "rm", name)
    assert orch("pool", "stop", "--all").err.strip() == "no pools"
