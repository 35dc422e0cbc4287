"""What the settings say that every job of a worker is held to."""

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestrator.config import Settings, load_settings
from orchestrator.errors import InvalidSettings
from orchestrator.worker.confinement import Confinement, confine
from orchestrator_cli.main import cli


def test_a_job_is_held_to_nothing_but_leaving_no_dumps() -> None:
    """Unless the operator asks for more."""
    assert confine(Settings()) == Confinement(nice=None, rlimits={"core": 0}, umask=None, no_new_privileges=False)


def test_a_job_is_held_to_what_the_operator_says() -> None:
    limits = {"nofile": 64, "core": 1 << 20}
    settings = Settings(runner_nice=5, runner_rlimits=limits, runner_umask="027", runner_no_new_privileges=True)
    assert confine(settings) == Confinement(nice=5, rlimits=limits, umask=0o027, no_new_privileges=True)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"runner_rlimits": {"nofiles": 1}}, "nofiles: no such limit; there are as, core, cpu"),
        ({"runner_rlimits": {"nofile": -1}}, "runner_rlimits.nofile"),
        ({"runner_nice": -1}, "runner_nice"),
        ({"runner_umask": "088"}, "runner_umask"),
        ({"runner_umask": "77"}, "runner_umask"),
    ],
)
def test_what_cannot_be_asked_for_is_named(values: dict[str, Any], fault: str) -> None:
    """Nobody is made stronger than the worker, either."""
    with pytest.raises(InvalidSettings, match=fault):
        load_settings(**values)


def test_a_limit_that_the_worker_may_not_set_is_refused_at_its_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one line; else every job would fail for it."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # the kernel has no unlimited one of these
    settings = Settings(runner_rlimits={"nofile": hard + 1})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InvalidSettings, match=rf"runner_rlimits.nofile: {hard + 1} is above the {hard} that"):
        confine(settings)

    def go_on(*_: object) -> None:
        pytest.fail("Celery was started")

    monkeypatch.setattr(os, "execv", go_on)
    variables = {"HOME": str(tmp_path), "RUNNER_RLIMITS": json.dumps(settings.runner_rlimits)}
    answer = CliRunner().invoke(cli, ["worker"], env={f"ORCHESTRATOR_{name}": each for name, each in variables.items()})
    assert (answer.exit_code, answer.output.count("\n")) == (2, 1)
    assert answer.output.startswith("orch: invalid settings: runner_rlimits.nofile: ")

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert confine(settings).rlimits["nofile"] == hard + 1
