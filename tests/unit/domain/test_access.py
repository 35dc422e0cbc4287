"""Which commands a role may run, and what of that a settings file may say."""

import pytest
from pydantic import ValidationError

from orchestrator.config import Settings
from orchestrator.domain.access import Role, refused_command

ALLOWED = {Role.SUBMITTER: ("/opt/train",), Role.ADMIN: ("*",)}

#: Variables by which whoever sets them runs code of their own in a program of somebody else's.
MAKES_ANOTHER_PROGRAM = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "BASH_ENV", "ENV", "GIT_SSH_COMMAND")


@pytest.mark.parametrize("role", list(Role), ids=str)
def test_without_a_list_nobody_is_restricted(role: Role) -> None:
    assert refused_command(role, ["sh"], environment=["PATH"], allowed={}) is None


@pytest.mark.parametrize(
    ("role", "argv", "environment", "words"),
    [
        (Role.SUBMITTER, ["/opt/train", "x"], [], None),
        (Role.SUBMITTER, ["/opt/train/../sh"], [], "may run /opt/train"),
        (Role.SUBMITTER, [], [], "may run /opt/train"),
        *((Role.SUBMITTER, ["/opt/train"], [name], "no variables") for name in MAKES_ANOTHER_PROGRAM),
        (Role.OPERATOR, ["/opt/train"], [], "no commands"),
        (Role.ADMIN, ["sh"], ["PATH"], None),
    ],
)
def test_a_role_runs_what_its_list_has(role: Role, argv: list[str], environment: list[str], words: str | None) -> None:
    refused = refused_command(role, argv, environment=environment, allowed=ALLOWED)

    assert (refused is None) if words is None else (refused is not None and words in refused)


def test_a_list_names_programs_by_their_whole_path() -> None:
    """A bare name would be whatever PATH or the working directory makes of it."""
    with pytest.raises(ValidationError, match="absolute path"):
        Settings(allowed_commands={Role.SUBMITTER: ("train",)})
    with pytest.raises(ValidationError, match="viewer"):
        Settings(allowed_commands={"root": ("*",)})  # type: ignore[dict-item]


def test_a_list_may_be_given_as_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_ALLOWED_COMMANDS", '{"submitter": ["/opt/train"]}')

    assert Settings().allowed_commands == {Role.SUBMITTER: ("/opt/train",)}
