"""Changes that are made only if nobody else has made one since."""

from tests.integration.cli.conftest import Orch


def test_a_change_of_what_somebody_else_changed_is_refused(orch: Orch) -> None:
    """For a queue, the policy and a pool: exit code 4, and nothing is changed."""
    orch("submit", "--", "true")  # makes the queue
    queue = orch("queue", "set", "gpu", "--most-running", "5", "--json").document
    policy = orch("policy", "set", "pool_idle_seconds=500", "--json").document
    pool = orch("pool", "start", "versioned", "--json").document
    fresh = orch("queue", "set", "gpu", "--no-most-running", "--if-version", str(queue["version"]), "--json")
    stale = [
        orch("queue", "set", "gpu", "--most-running", "0", "--if-version", str(queue["version"])),
        orch("policy", "set", "safe_mode=on", "--if-version", str(policy["version"] - 1)),
        orch("pool", "scale", "versioned", "--max", "9", "--if-version", str(pool["version"] + 1)),
        orch("pool", "preload", "versioned", "--if-version", str(pool["version"] + 1)),
        orch("pool", "swap", "versioned", "other", "--if-version", str(pool["version"] + 1)),
    ]
    orch("pool", "stop", "versioned")

    assert fresh.document["most_running"] is None
    assert [answer.code for answer in stale] == [4] * 5
    assert orch("policy", "--json").document["safe_mode"] is False
    assert orch("pool", "status", "versioned", "--json").document["model"] == "versioned"
