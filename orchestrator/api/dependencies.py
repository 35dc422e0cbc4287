"""What endpoints are given: the runtime and the services over it, made once an app."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from orchestrator.runtime import Runtime
from orchestrator.services.cancel import CancelService
from orchestrator.services.submit import SubmitService


@dataclass(frozen=True, slots=True)
class Services:
    """The outside world and what is done with it."""

    runtime: Runtime
    submits: SubmitService
    cancels: CancelService

    @classmethod
    def over(cls, runtime: Runtime) -> "Services":
        """Make the services of one app."""
        return cls(runtime, SubmitService(runtime, ask_hosts=True), CancelService(runtime))


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Given = Annotated[Services, Depends(_services)]
