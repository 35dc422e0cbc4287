"""On which pools a smoke test runs."""

import pytest

POOLS = ("prefork", "runners")


def on(*in_make_test: str) -> pytest.MarkDecorator:
    """Run a test on both pools, those named in `make test` too and the others in `make smoke` alone."""
    cases = [pytest.param(pool, marks=() if pool in in_make_test else pytest.mark.smoke) for pool in POOLS]
    return pytest.mark.parametrize("default_worker_container_cls", cases, indirect=True)
