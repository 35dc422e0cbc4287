"""docs/cli.md tells of every verb, option, JSON field and exit code."""

import dataclasses
import re
from pathlib import Path

import click
import pytest

from orchestrator.errors import Conflict, InvalidRequest, OrchestratorError, Unavailable
from orchestrator_cli.main import exit_code
from orchestrator_cli.stack.lifecycle import Stack, Stopped
from orchestrator_cli.stack.supervision import PartState
from tests.support.cli_fields import ATTEMPT, FIELDS, POOL_ORDERS
from tests.support.verbs import every_verb

TEXT = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
#: Verbs whose section lists the fields elsewhere: those of a job.
SEE_ALSO = {"run": "A job", "ps": "A job", "status": "A job", "nodes": "`orch gpus`"}
SEE_ALSO |= dict.fromkeys(("gpus quarantine", "gpus release", "gpus reset"), "`orch gpus`")
SEE_ALSO |= {f"pool {verb}": "A worker pool" for verb in POOL_ORDERS}
STACK_FIELDS = {
    "up": {field.name for kind in (Stack, PartState) for field in dataclasses.fields(kind)},
    "down": {field.name for field in dataclasses.fields(Stopped)},
}


def section(title: str) -> str:
    """Return the section whose heading names this, up to the next heading of its level or above."""
    found = re.search(rf"^### [^\n]*{re.escape(title)}(?![\w-])[^\n]*\n(.*?)(?=^##|\Z)", TEXT, re.M | re.S)
    assert found, f"docs/cli.md has no section {title}"
    return found[0]


VERBS = {" ".join(path): command for path, command in every_verb()}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_and_option_is_described(verb: str) -> None:
    text = section(f"orch {verb}") + (section("orch submit") if verb == "run" else "")
    options = [option for one in VERBS[verb].params if isinstance(one, click.Option) for option in one.opts]

    assert [option for option in options if option not in text] == []


@pytest.mark.parametrize("verb", sorted(FIELDS | STACK_FIELDS))  # names alone: the order of a set differs by process
def test_every_field_of_the_json_is_described(verb: str) -> None:
    fields = (FIELDS | STACK_FIELDS)[verb]
    name = verb.partition(" --")[0]
    text = section(f"orch {name}") + (section(SEE_ALSO[name]) if name in SEE_ALSO else "")
    wanted = fields | (ATTEMPT if verb == "status" else set())

    assert sorted(field for field in wanted if f"`{field}`" not in text) == []


def test_every_verb_with_json_has_its_fields_pinned() -> None:
    with_json = {
        verb for verb, command in VERBS.items() if any("--json" in parameter.opts for parameter in command.params)
    }

    assert with_json == {verb for verb in FIELDS | STACK_FIELDS if " --" not in verb}


def test_every_exit_code_is_described() -> None:
    codes = {exit_code(kind.__new__(kind)) for kind in (OrchestratorError, InvalidRequest, Unavailable, Conflict)}

    assert [code for code in sorted(codes | {0, 124, 125, 130}) if f"\n| {code} |" not in TEXT] == []
