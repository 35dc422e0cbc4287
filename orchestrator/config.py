"""Settings: one frozen object, read once from TOML files and ``ORCHESTRATOR_*`` variables, passed in everywhere.

A variable beats the settings file; that beats what the home's own stack says of itself (``<home>/stack.toml``, written
by ``orch up``), and that beats the default. The settings file is ``ORCHESTRATOR_CONFIG``, else
``<home>/orchestrator.toml`` when it exists. Lists are given in variables as JSON.
"""

import os
import resource
import socket
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from orchestrator.domain.access import ANY_PROGRAM, Role
from orchestrator.errors import InvalidSettings
from orchestrator.home import default_home

PREFIX = "ORCHESTRATOR_"

Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


def offered_cpus() -> int:
    """Return the CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def offered_memory_mib() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


class Settings(BaseSettings):
    """Every setting with its default; durations are in seconds."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")
    toml_file: ClassVar[Path | None] = None

    home: Path = Field(default_factory=default_home, description="Data of the embedded stack and the client's profile.")
    database_url: SecretStr = Field(default=SecretStr(""), description="SQLAlchemy URL; default: SQLite in the home.")
    redis_url: SecretStr = Field(
        default=SecretStr("redis://127.0.0.1:6379/0"), description="redis://, rediss:// or unix:// URL of the streams."
    )
    node: str = Field(
        default_factory=socket.gethostname,
        pattern=r"^[A-Za-z0-9._-]{1,64}$",
        description="This host's name; leases and journals are kept under it.",
    )
    simulated_gpus: Path | None = Field(default=None, description="TOML file of simulated GPUs; default: NVML.")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Lowest level logged.")
    traces: bool = Field(default=False, description="Send OpenTelemetry traces; OTEL_EXPORTER_OTLP_ENDPOINT: where to.")
    log_format: Literal["text", "json"] = Field(
        default="text", description="Lines for people, or a JSON object a line for a log store."
    )

    default_queue: str = Field(default="gpu", description="Queue of jobs that name none.")
    queues: tuple[str, ...] = Field(default=("gpu", "preloads"), description="Queues that exist from the start.")
    max_payload_bytes: Count = Field(default=1 << 20, description="Largest payload of a job.")
    max_priority: int = Field(default=9, ge=0, le=9, description="Highest priority a job may ask for.")

    lease_ttl: Seconds = Field(default=15, description="A lease lives so long after its last renewal.")
    lease_margin: Seconds = Field(default=3, description="A holder trusts its lease so much less than the TTL.")
    expiry_grace: Seconds = Field(default=5, description="A lease is expired only so long after its end.")
    max_lost: Count = Field(default=3, description="A job that lost its worker so often becomes a dead letter.")
    lost_delay: float = Field(default=1, ge=0, description="A lost job waits so long before its next attempt.")
    leader_ttl: Seconds = Field(default=8, description="A leader's term lives so long after its last renewal.")
    isolation: Literal["auto", "process", "cgroup"] = Field(
        default="auto",
        description="Control groups around runners: where the host permits them, never, or no worker without.",
    )
    sweep_interval: Seconds = Field(default=1, description="The leader's global pass runs so often.")
    recheck_interval: Seconds = Field(default=8, description="An unclaimed entry is looked for so often.")
    look_ahead: float = Field(default=0.5, ge=0, description="So much work may be admitted beyond capacity.")
    retention: Seconds = Field(default=30 * 86_400, description="Ended jobs are deleted after so long.")
    audit_retention: Seconds = Field(default=365 * 86_400, description="Lines of the audit are deleted after so long.")
    max_look_ahead_jobs: int = Field(default=512, ge=0, description="At most so many jobs ahead, for each host.")
    visibility: Seconds = Field(
        default=60, description="An entry whose consumer was silent so long is delivered again."
    )

    log_head_bytes: Count = Field(default=256 << 10, description="Output kept from the start of an attempt.")
    log_tail_bytes: Count = Field(default=1 << 20, description="Output kept from the end of an attempt.")
    default_grace: Seconds = Field(default=10, description="From TERM to KILL when a job is ended.")
    shutdown_timeout: float = Field(
        default=0, ge=0, description="A worker that stops lets jobs run so long, then requeues them; 0: no bound."
    )
    runner_idle: Seconds = Field(default=60, description="A warm runner without a job is ended after so long.")
    runner_max_jobs: int = Field(default=0, ge=0, description="A warm runner is ended after so many jobs; 0: never.")
    runner_max_memory_mib: int = Field(
        default=0, ge=0, description="A warm runner whose memory has grown beyond this is ended; 0: never."
    )
    runner_nice: int | None = Field(default=None, ge=0, le=19, description="Added to the niceness of every job.")
    runner_rlimits: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default_factory=dict, description="Resource limits of every job's processes, as nofile, nproc or fsize."
    )
    runner_umask: str | None = Field(
        default=None, pattern="^[0-7]{3}$", description="File mode bits that jobs' files lack, as 077; default: ours."
    )
    runner_no_new_privileges: bool = Field(
        default=False, description="No job gets other rights by sudo or a setuid program."
    )
    gpu_clean_wait: Seconds = Field(default=10, description="A GPU that is not clean so long is quarantined.")
    kill_wait: float = Field(
        default=10,
        gt=0,
        le=20,  # a guardian that starts has 25 s to be ready, and may find a process that does not end
        description="A process that outlives KILL so long is given up: its job ends, its GPUs are kept out.",
    )
    gpu_clean_memory_mib: int = Field(default=512, ge=0, description="A GPU with more in use is not clean.")
    gpu_share_tolerance_mib: int = Field(
        default=512, ge=0, description="A job may use so much more of a GPU than its share before it is ended."
    )
    gpu_headroom_mib: int = Field(default=0, ge=0, description="So much of each GPU is not lent out in shares.")
    gpu_quarantine: Seconds = Field(
        default=60, description="A GPU's first quarantine lasts so long, each further one double."
    )
    gpu_self_test: float = Field(
        default=30, ge=0, description="Longest self-test before a quarantine ends by itself; 0: readings alone decide."
    )
    gpu_recover: Seconds = Field(default=30, description="A suspect GPU is healthy after so long of good readings.")
    idle_gpu_warn: float = Field(default=600, ge=0, description="A job whose GPUs do nothing is warned; 0: never.")
    idle_gpu_end: float = Field(default=0, ge=0, description="A job whose GPUs do nothing so long is ended; 0: never.")
    idle_gpu_percent: int = Field(default=0, ge=0, le=99, description="A GPU utilized no more than this does nothing.")
    idle_gpu_grace: float = Field(
        default=0, ge=0, description="A job may so long from its start on load what it needs."
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Labels of this host, for --constraint.")
    cpus: int = Field(default_factory=offered_cpus, ge=0, description="CPUs of this host that jobs may ask for.")
    memory_mib: int = Field(
        default_factory=offered_memory_mib, ge=0, description="Memory of this host that jobs may ask for."
    )
    lock_dir: Path | None = Field(default=None, description="Device locks; default: /run/orchestrator, else the home.")
    allowed_cwd: tuple[Path, ...] = Field(default=(), description="If set, commands may run only below these.")

    api_host: str = Field(default="127.0.0.1", description="Address that the API binds.")
    api_port: int = Field(default=8470, ge=1, le=65535, description="Port that the API binds.")
    api_token: SecretStr | None = Field(default=None, description="Bearer token of the API, with full rights.")
    api_token_file: Path | None = Field(default=None, description="File that holds that token.")
    api_requests_per_minute: Count = Field(
        default=6000, description="Requests a minute that a token may send to one process, unless it says otherwise."
    )
    api_body_seconds: Seconds = Field(default=30, description="A request's body has to come within this.")
    allowed_commands: dict[Role, tuple[str, ...]] = Field(
        default_factory=dict,
        description="If set, the programs that each role may run as commands; * is any, no entry is none.",
    )
    secrets_dir: Path | None = Field(
        default=None, description="Holds TENANT/NAME files that jobs refer to; default: secrets in the home."
    )
    api_url: str | None = Field(default=None, description="Where clients find the API; default: host and port.")
    flower_port: int = Field(default=5555, ge=1, le=65535, description="Port that Flower binds.")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: arguments, variables, file."""
        chosen = os.environ.get(PREFIX + "CONFIG")
        path = Path(chosen or default_home() / "orchestrator.toml")
        if chosen and not path.is_file():
            raise InvalidSettings([f"{PREFIX}CONFIG: no file {path}"])
        files = [file for file in (path, default_home() / "stack.toml") if file.is_file()]
        return init_settings, env_settings, *(TomlConfigSettingsSource(settings_cls, toml_file=file) for file in files)

    @field_validator("runner_rlimits")
    @classmethod
    def _limits_exist(cls, limits: dict[str, int]) -> dict[str, int]:
        known = sorted(name.removeprefix("RLIMIT_").lower() for name in dir(resource) if name.startswith("RLIMIT_"))
        if unknown := sorted(limits.keys() - set(known)):
            raise ValueError(f"{', '.join(unknown)}: no such limit; there are {', '.join(known)}")
        return limits

    @model_validator(mode="after")
    def _margins_fit(self) -> Self:
        if self.lease_margin * 2 > self.lease_ttl:
            raise ValueError("lease_margin must be at most half of lease_ttl")
        return self

    @model_validator(mode="after")
    def _programs_are_paths(self) -> Self:
        programs = {program for each in self.allowed_commands.values() for program in each}
        if relative := sorted(one for one in programs if one != ANY_PROGRAM and not one.startswith("/")):
            raise ValueError(f"allowed_commands: {', '.join(relative)}: a program is an absolute path, or *")
        return self

    @property
    def database(self) -> str:
        """The database's URL, password included; never log it."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.home / 'orchestrator.db'}"

    @property
    def redis(self) -> str:
        """The streams' URL, password included; never log it."""
        return self.redis_url.get_secret_value()

    @property
    def client_url(self) -> str:
        """Where this process's clients find the API."""
        host = f"[{self.api_host}]" if ":" in self.api_host else self.api_host
        return self.api_url or f"http://{host}:{self.api_port}"

    @property
    def lease_ttl_delta(self) -> timedelta:
        """The leases' time to live."""
        return timedelta(seconds=self.lease_ttl)

    @property
    def recheck_delta(self) -> timedelta:
        """How often an unclaimed entry is looked for."""
        return timedelta(seconds=self.recheck_interval)

    def bearer_token(self) -> str | None:
        """Return the API's token, from the setting or its file; None when there is none.

        Raises:
            InvalidSettings: If the file cannot be read.
        """
        if self.api_token is not None:
            return self.api_token.get_secret_value()
        if self.api_token_file is None:
            return None
        try:
            return self.api_token_file.read_text().strip()
        except OSError as error:
            raise InvalidSettings([f"api_token_file: {error.strerror}: {self.api_token_file}"]) from error


def masked_url(url: str) -> str:
    """Return a URL without its password, for people to read."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    user, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}"))


def load_settings(**overrides: Any) -> Settings:
    """Read the settings of this process.

    Raises:
        InvalidSettings: Naming every setting that is wrong, with its source's spelling and what it should be.
    """
    _refuse_unknown_variables(os.environ)
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise InvalidSettings([_fault(dict(fault)) for fault in error.errors()]) from error
    except (OSError, ValueError) as error:
        raise InvalidSettings([str(error)]) from error


def _fault(fault: Mapping[str, Any]) -> str:
    name = ".".join(str(part) for part in fault["loc"]) or "settings"
    return f"{name} ({PREFIX}{name.upper()}): {fault['msg']}"


#: Variables of this prefix that are not settings: the file's place, what a runner is told, and the stack's own.
_OTHER_VARIABLES = {
    "CONFIG",
    "JOB_ID",
    "ATTEMPT",
    "FENCING_TOKEN",
    "CHECKPOINT",
    "CHECKPOINT_FILE",
    "GPU_MEMORY_MIB",
    "RUNNER_ID",
    "RUNNER_APP",
    "RUNNER_HOSTNAME",
    "TOKEN",
}


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = {name.upper() for name in Settings.model_fields} | _OTHER_VARIABLES
    unknown = sorted(name for name in environ if name.startswith(PREFIX) and name.removeprefix(PREFIX) not in known)
    if unknown:
        raise InvalidSettings([f"{name}: no such setting" for name in unknown])
