"""What endpoints are given: the runtime and the services over it, made once an app."""

import threading
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from orchestrator.api.job_metrics import EndedJobs
from orchestrator.api.metrics import Requests
from orchestrator.runtime import Runtime
from orchestrator.services.cancel import CancelService
from orchestrator.services.submit import SubmitService


@dataclass(frozen=True, slots=True)
class Services:
    """The outside world and what is done with it."""

    runtime: Runtime
    submits: SubmitService
    cancels: CancelService
    ended: EndedJobs
    requests: Requests = field(default_factory=Requests)
    stopping: threading.Event = field(default_factory=threading.Event)  # the process is to end: answer what waits

    @classmethod
    def over(cls, runtime: Runtime) -> "Services":
        """Make the services of one app."""
        return cls(runtime, SubmitService(runtime, ask_hosts=True), CancelService(runtime), EndedJobs(runtime.times))


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Given = Annotated[Services, Depends(_services)]
