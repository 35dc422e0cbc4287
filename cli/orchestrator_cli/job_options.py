"""The options of a job, shared by the verbs that submit one."""

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from orchestrator.errors import InvalidRequest
from orchestrator_cli.values import Alternative, Assignment, Duration, RetryClass, Size

_OPTIONS: Final = (
    click.option("--gpus", type=int, default=None, help="Whole GPUs of one host, all or nothing."),
    click.option("--gpu-memory", type=Size(), help="A share of one GPU's memory, as 12GiB."),
    click.option("--gpu-type", metavar="MODELS", help="Models that would do, as 'H100|A100'."),
    click.option("--min-memory", type=Size(), help="Least memory of each GPU, as 40GiB."),
    click.option("--mig", metavar="PROFILE", help="MIG instances in place of whole cards, as 1g.10gb."),
    click.option(
        "--constraint",
        "constraints",
        type=Assignment(),
        multiple=True,
        metavar="LABEL=VALUE",
        help="Only hosts with this label; node=NAME names one host.",
    ),
    click.option("--cpus", type=int, help="CPUs of the host that the job is counted with."),
    click.option("--mem", "memory", type=Size(), help="Memory of the host, likewise, as 64GiB."),
    click.option(
        "--or",
        "alternatives",
        type=Alternative(),
        multiple=True,
        metavar="GPUS",
        help="Other GPUs that would do, as gpus=2,gpu-type=A100.",
    ),
    click.option("--priority", type=int, help="0 to 9; 9 starts first.  [default: 5]"),
    click.option("--time-limit", type=Duration(), help="End the job after so long, as 2h."),
    click.option("--warn", type=Duration(), help="Send SIGUSR1 so long before the time limit, as 5m."),
    click.option("--grace", type=Duration(), help="From TERM to KILL.  [default: 10s]"),
    click.option("--name", help="What people see.  [default: the program]"),
    click.option("--queue", help="Queue.  [default: gpu]"),
    click.option("--env", "environment", type=Assignment(), multiple=True, metavar="K=V", help="Set a variable."),
    click.option(
        "--secret", "secrets", multiple=True, metavar="NAME", help="Set a variable to a secret that the host has."
    ),
    click.option("--cwd", help="Working directory.  [default: this one]"),
    click.option("--retries", type=int, default=0, help="Further attempts after a failed one."),
    click.option(
        "--retry-on",
        type=RetryClass(),
        multiple=True,
        metavar="CLASS[=N]",
        help="Try again after such failures only, as oom=2; without a number --retries says how often.",
    ),
    click.option("--key", help="Idempotency key: the same key names the same job."),
    click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED),
)


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a job to a verb."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def job_body(
    *,
    argv: Sequence[str],
    environment: Sequence[tuple[str, str]],
    cwd: str | None,
    retries: int,
    retry_on: Sequence[tuple[str, int | None]],
    constraints: Sequence[tuple[str, str]],
    warn: float | None,
    **options: Any,
) -> dict[str, Any]:
    """Return the options as ``POST /jobs/submit`` takes them.

    Raises:
        InvalidRequest: If one of them makes no sense.
    """
    if retries < 0:
        raise InvalidRequest("--retries must not be negative")
    limit = options["time_limit"]
    if warn is not None and (limit is None or not 0 < warn < limit):
        raise InvalidRequest("--warn needs a longer --time-limit")
    body = {name: value for name, value in options.items() if value not in (None, ())}
    body |= {} if warn is None else {"soft_time_limit": limit - warn}
    return (
        body
        | {
            "constraints": dict(constraints),
            "argv": list(argv),
            "env": dict(environment),
            "cwd": _absolute(cwd),
            "max_attempts": retries + 1,
        }
        | ({"retry_on": dict(retry_on)} if retry_on else {})
    )


def _absolute(cwd: str | None) -> str:
    try:
        return os.path.abspath(cwd or os.getcwd())
    except OSError as error:
        raise InvalidRequest(f"the current directory cannot be told ({error.strerror}); give --cwd") from error
