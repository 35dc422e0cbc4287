"""What every verb has, and what the process ends with."""

import inspect

import click
import pytest
from click.testing import CliRunner

from orchestrator import errors
from orchestrator.client import RemoteError
from orchestrator.errors import Conflict, InvalidRequest, OrchestratorError, Unavailable
from orchestrator_cli.main import cli, exit_code
from tests.support.verbs import every_verb

#: Verbs that become a process, and so have no document to print.
WITHOUT_JSON = {"worker", "beat", "api", "flower", "lease"}
BRANCHES = ((InvalidRequest, 2), (Unavailable, 3), (Conflict, 4))
ERRORS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, OrchestratorError)]


VERBS = list(every_verb())


def expected(kind: type[OrchestratorError]) -> int:
    return next((code for branch, code in BRANCHES if issubclass(kind, branch)), 1)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_ends_the_process_with_its_branchs_code(kind: type[OrchestratorError]) -> None:
    """Whether it was raised here or named by the API."""
    here = kind.__new__(kind)
    there = RemoteError({"type": f"urn:gpu-orchestrator:problem:{kind.code}", "status": 500, "detail": "x"})

    assert exit_code(here) == exit_code(there) == expected(kind)


@pytest.mark.parametrize(("status", "code"), [(400, 2), (404, 2), (422, 2), (409, 4), (500, 3), (503, 3)])
def test_a_problem_of_an_unknown_type_is_judged_by_its_status(status: int, code: int) -> None:
    assert exit_code(RemoteError({"type": "about:blank", "status": status})) == code


def test_no_two_errors_have_the_same_code() -> None:
    """Clients find the class by it; a base without one of its own is never raised."""
    codes = [kind.code for kind in ERRORS if "code" in vars(kind)]

    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize(("path", "command"), VERBS, ids=[" ".join(path) for path, _ in VERBS])
def test_every_verb_explains_itself(path: tuple[str, ...], command: click.Command) -> None:
    for flag in ("--help", "-h"):
        answer = CliRunner().invoke(cli, [*path, flag])
        assert answer.exit_code == 0, answer.output
        assert command.help
        assert "Usage:" in answer.output


@pytest.mark.parametrize(("path", "command"), VERBS, ids=[" ".join(path) for path, _ in VERBS])
def test_every_verb_with_something_to_tell_has_json(path: tuple[str, ...], command: click.Command) -> None:
    options = {option for parameter in command.params for option in parameter.opts}

    assert ("--json" in options) == (path[0] not in WITHOUT_JSON)


@pytest.mark.parametrize(("path", "command"), VERBS, ids=[" ".join(path) for path, _ in VERBS])
def test_every_option_says_what_it_does(path: tuple[str, ...], command: click.Command) -> None:
    silent = [
        parameter.opts[0]
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.help and not parameter.show_default
    ]

    assert silent == []
