"""What the endpoints of worker pools take, as JSON."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api import bounds
from orchestrator.api.schemas import AlternativeBody, Labels, Size, asked_gpus
from orchestrator.domain.pool import DEFAULT_LOADER, PoolRequest
from orchestrator.domain.request_wants import alternative
from orchestrator.domain.size import parse_mebibytes

Text = Annotated[str, Field(max_length=4096)]


class PoolBody(BaseModel):
    """A pool to start."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Text = Field(json_schema_extra=bounds.WORD)
    model: Text | None = Field(
        default=None, description="What its runners have loaded; default: the name.", json_schema_extra=bounds.NAME
    )
    task: Text = Field(
        default=DEFAULT_LOADER,
        description="The Celery task that loads it, called with model=MODEL.",
        json_schema_extra=bounds.TASK,
    )
    arguments: dict[str, Any] = Field(default_factory=dict, description="Further keywords of that task.")
    gpus: int | None = Field(
        default=None, description="Whole GPUs of each runner; default: 1.", json_schema_extra=bounds.GPUS
    )
    gpu_memory: Size | None = Field(default=None, description="A share of one GPU, as 12GiB or a number of MiB.")
    gpu_type: Text | None = Field(
        default=None, description="Models that would do, as H100|A100.", json_schema_extra=bounds.KIND
    )
    min_memory: Size | None = Field(default=None, description="Least memory of each GPU, as 40GiB.")
    mig: Text | None = Field(
        default=None, description="MIG instances of this profile in place of cards.", json_schema_extra=bounds.PROFILE
    )
    constraints: Labels = Field(default_factory=dict, description="Labels of the hosts.")
    cpus: int | None = Field(
        default=None, description="CPUs of the host that each runner is counted with.", json_schema_extra=bounds.CPUS
    )
    memory: Size | None = Field(default=None, description="Memory of the host, likewise.")
    alternatives: list[AlternativeBody] = Field(
        default_factory=list, description="Other GPUs, in order of preference.", json_schema_extra=bounds.ALTERNATIVES
    )
    min: int = Field(
        default=1,
        description="Runners that are there even if nobody asks for them.",
        json_schema_extra=bounds.LEAST_RUNNERS,
    )
    max: int | None = Field(
        default=None, description="Runners at most; default: as min.", json_schema_extra=bounds.MAX_RUNNERS
    )
    idle_seconds: float | None = Field(
        default=None,
        description="Runners beyond min leave after so long without a job; default: the policy's.",
        json_schema_extra=bounds.IDLE,
    )
    load_seconds: float = Field(
        default=600.0, description="A load that takes longer has failed.", json_schema_extra=bounds.LOAD
    )
    pinned: bool = Field(default=False, description="Runners do not leave for being idle, nor for others.")
    tenant: Text | None = Field(
        default=None, description="Whose jobs run in it; default: everybody's.", json_schema_extra=bounds.WORD
    )
    priority: int = Field(default=5, description="Of its loads, 0 to 9.", json_schema_extra=bounds.PRIORITY)

    def to_request(self) -> PoolRequest:
        """Return the request; its values are checked where all requests are."""
        return PoolRequest(
            name=self.name,
            model=self.model,
            task=self.task,
            arguments=self.arguments,
            **asked_gpus(self),
            cpus=self.cpus,
            memory_mib=parse_mebibytes(self.memory),
            alternatives=tuple(alternative(other.model_dump(exclude_unset=True)) for other in self.alternatives),
            least=self.min,
            most=self.max,
            idle_seconds=self.idle_seconds,
            load_seconds=self.load_seconds,
            pinned=self.pinned,
            tenant=self.tenant,
            priority=self.priority,
        )


class ScaleBody(BaseModel):
    """What to change of a pool's size; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    min: int | None = Field(default=None, json_schema_extra=bounds.LEAST_RUNNERS)
    max: int | None = Field(default=None, json_schema_extra=bounds.MAX_RUNNERS)
    pinned: bool | None = None
    idle_seconds: float | None = Field(default=None, json_schema_extra=bounds.IDLE)


class PreloadBody(BaseModel):
    """Runners that are to be there now."""

    model_config = ConfigDict(extra="forbid", strict=True)

    runners: int | None = Field(
        default=None,
        description="At least so many; default: as many as the pool may have.",
        json_schema_extra=bounds.LEAST_RUNNERS,
    )


class SwapBody(BaseModel):
    """What the runners are to have loaded instead."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: Text = Field(json_schema_extra=bounds.NAME)
    arguments: dict[str, Any] | None = Field(default=None, description="Keywords of the loader; default: as before.")


class PoolsOrder(BaseModel):
    """An order to every pool."""

    model_config = ConfigDict(extra="forbid", strict=True)

    order: Literal["stop", "drain", "sleep", "wake"]
