"""A verb loads its own module, and every verb of a module is found."""

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click

import orchestrator_cli.commands
from orchestrator_cli.main import cli
from orchestrator_cli.verbs import VERBS

#: What only some verbs need, and takes longest to load.
HEAVY = ("pydantic_settings", "sqlalchemy", "celery", "fastapi", "redis", "supervisor", "psutil")


def test_the_table_names_every_verb_of_every_module() -> None:
    directory = Path(orchestrator_cli.commands.__file__).parent
    modules = {path.stem for path in directory.glob("*.py")} - {"__init__"}
    with_verbs = {name for name in modules if hasattr(import_module(f"orchestrator_cli.commands.{name}"), "COMMANDS")}
    found = {
        name: [command.name for command in import_module(f"orchestrator_cli.commands.{name}").COMMANDS]
        for name in with_verbs
    }
    assert found == {name: list(verbs) for name, verbs in VERBS.items()}


def test_every_verb_is_listed_and_found() -> None:
    context = click.Context(cli)
    names = cli.list_commands(context)
    assert sorted(verb for verbs in VERBS.values() for verb in verbs) == names
    found = [cli.get_command(context, name) for name in names]
    assert [command.name for command in found if command] == names


def test_a_verb_of_every_day_loads_nothing_heavy() -> None:
    program = (
        "import sys; from orchestrator_cli.main import cli; cli.get_command(None, 'submit');"
        f"print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    argv, environment = [sys.executable, "-c", program], os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
