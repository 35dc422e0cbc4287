"""``orch admin sweep``."""

import re

from tests.integration.cli.conftest import Orch
from tests.support.cli_fields import FIELDS


def test_a_sweep_is_run_and_listed(orch: Orch) -> None:
    done = orch("admin", "sweep", "prune", "--json").document
    listed = orch("admin", "sweep", "--list", "--json").document
    table = orch("admin", "sweep", "--list")
    words = orch("admin", "sweep", "--reclaim")

    assert set(done) == FIELDS["admin sweep"]
    assert {key for one in listed for key in one} == FIELDS["admin sweep --list"]
    assert next(one["passes"] for one in listed if one["name"] == "prune") >= 1
    assert "prune" in table.out
    assert re.match(r"expire_leases: \d+ in \d+\.\d+ s\n", words.out)


def test_a_wrong_sweep_is_a_mistake(orch: Orch) -> None:
    assert orch("admin", "sweep").code == 2
    assert orch("admin", "sweep", "prune", "--list").code == 2
    unknown = orch("admin", "sweep", "nonsense")
    assert (unknown.code, "there are: expire_leases" in unknown.err) == (2, True)
