"""What endpoints are given: the runtime and the services over it, made once an app."""

import threading
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from orchestrator.api.feed import Feed
from orchestrator.api.job_metrics import EndedJobs
from orchestrator.api.lease_metrics import LeaseRequests
from orchestrator.api.metrics import Requests
from orchestrator.api.stays import Stays
from orchestrator.runtime import Runtime
from orchestrator.services.cancel import CancelService
from orchestrator.services.submit import SubmitService
from orchestrator.services.tokens import TokenService


@dataclass(frozen=True, slots=True)
class Services:
    """The outside world and what is done with it."""

    runtime: Runtime
    submits: SubmitService
    cancels: CancelService
    ended: EndedJobs
    feed: Feed
    tokens: TokenService
    stays: Stays
    requests: Requests = field(default_factory=Requests)
    lease_requests: LeaseRequests = field(default_factory=LeaseRequests)
    stopping: threading.Event = field(default_factory=threading.Event)  # the process is to end: answer what waits

    @classmethod
    def over(cls, runtime: Runtime) -> "Services":
        """Make the services of one app."""
        stopping = threading.Event()
        tokens = TokenService(runtime.access, runtime.clock)
        return cls(
            runtime,
            SubmitService(runtime, ask_hosts=True),
            CancelService(runtime),
            EndedJobs(runtime.times),
            Feed(runtime.events, stopping),
            tokens,
            Stays(tokens, stopping),
            stopping=stopping,
        )


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Given = Annotated[Services, Depends(_services)]
