"""The commands of the stack as `orch` has them, with the program of the tests for its own parts."""

import sys
from pathlib import Path

import click

from orchestrator_cli.commands.stack import COMMANDS
from orchestrator_cli.stack import parts

parts.PROGRAM = (sys.executable, str(Path(__file__).with_name("program.py")))

if __name__ == "__main__":
    click.Group("orch", {command.name: command for command in COMMANDS})()
