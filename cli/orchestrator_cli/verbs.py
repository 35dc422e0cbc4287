"""Which module has which verb: a verb loads its own module only, because people wait for it."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

import click

#: Modules of ``orchestrator_cli.commands`` and the verbs in each one's ``COMMANDS``.
VERBS: Final[Mapping[str, Sequence[str]]] = {
    "jobs": ("submit", "run", "ps", "status", "logs", "wait", "cancel", "why"),
    "orders": ("priority", "hold", "release", "retry"),
    "queues": ("queue", "policy"),
    "events": ("events",),
    "cluster": ("nodes", "queues"),
    "gpus": ("gpus",),
    "leases": ("lease", "leases"),
    "pools": ("pool",),
    "tenants": ("tenants",),
    "access": ("whoami", "audit"),
    "usage": ("usage",),
    "dlq": ("dlq",),
    "drains": ("drain", "undrain"),
    "database": ("db",),
    "admin": ("admin",),
    "tokens": ("token",),
    "processes": ("worker", "beat", "api", "flower"),
    "stack": ("up", "down"),
}
_MODULE_OF: Final = {verb: module for module, verbs in VERBS.items() for verb in verbs}


class LazyGroup(click.Group):
    """A group whose verbs are loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every verb's name."""
        return sorted({*_MODULE_OF, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb, loading its module."""
        module = _MODULE_OF.get(cmd_name)
        if module is None:
            return super().get_command(ctx, cmd_name)
        commands: Sequence[click.Command] = import_module(f"orchestrator_cli.commands.{module}").COMMANDS
        return next(command for command in commands if command.name == cmd_name)
