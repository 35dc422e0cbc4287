"""Simulated GPUs, described by a TOML file that may be rewritten while it is read.

    [[gpus]]
    uuid = "GPU-…"          # required, unique
    index = 0               # required, unique
    model = "Simulated"     # required
    memory_mib = 81920      # required
    used_mib = 0
    health = "healthy"      # or suspect, quarantined, lost
    [[gpus.processes]]
    pid = 4711
    used_mib = 1024

``driver_version``, ``utilization_percent``, ``temperature_celsius`` and ``power_watts`` may be given too, and for a MIG
instance ``mig_profile`` and ``parent_uuid``. ``xid`` is the latest error that the driver would have reported,
``xid_count`` how many there were; ``ecc_corrected`` and ``ecc_uncorrected`` are counts of memory errors, ``slowed_by``
is a list of "heat" and "power". ``numa`` is the NUMA node that a GPU is near to, ``links`` the uuids of those that
it is linked to. What processes use by themselves (``simulated_use``) is added to the figures given. ``self_test`` is
how a self-test ends, "passes" unless it "fails" or "hangs". ``tells_processes = true`` says that all that use a GPU are
named: without it a program that names no process may be at work all the same. ``hangs = true`` hangs whoever reads
the GPU, as a broken card's driver does.
"""

import json
import os
import tempfile
import time
import tomllib
import uuid
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuProcess, GpuSample
from orchestrator.errors import GpusUnavailable
from orchestrator.gpus.card_choice import every_card, say_nothing
from orchestrator.gpus.simulated_use import read_uses

DRIVER_VERSION: Final = "simulated"
MEMORY_MIB: Final = 81920

_NO_TEXTS: Final[Mapping[str, str]] = MappingProxyType({})
_REQUIRED: Final = ("uuid", "index", "model", "memory_mib")
_READINGS: Final = (
    *("utilization_percent", "temperature_celsius", "power_watts", "xid"),
    *("ecc_uncorrected", "ecc_corrected"),
)
_INSTANCE: Final = ("mig_profile", "parent_uuid")
_TOPOLOGY: Final = ("numa", "links")
_KNOWN: Final = {
    *_REQUIRED,
    *_READINGS,
    *_INSTANCE,
    *_TOPOLOGY,
    *("driver_version", "used_mib", "health", "xid_count", "processes", "slowed_by"),
    *("self_test", "tells_processes", "hangs"),
}
_SELF_TESTS: Final = ("passes", "fails", "hangs")


class SimulatedDriver:
    """Reads the file again whenever it has changed."""

    def __init__(
        self,
        path: Path,
        *,
        about: Callable[[int | None], None] = say_nothing,
        reads: Callable[[int], bool] = every_card,
    ) -> None:
        """Read this file; ``about`` and ``reads`` are as for real GPUs."""
        self._path, self._about, self._reads = path, about, reads
        self._hanging: frozenset[str] = frozenset()
        self._version: tuple[int, int, int] | None = None
        self._samples: tuple[GpuSample, ...] = ()

    def sample(self) -> tuple[GpuSample, ...]:
        """Return the GPUs that the file describes now, with what processes use of them.

        Raises:
            GpusUnavailable: If it cannot be read, naming the line or the field; earlier readings do not stand in.
        """
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                version = (status.st_mtime_ns, status.st_size, status.st_ino)
                if version != self._version:
                    self._version = None
                    document = tomllib.load(file)
                    self._samples = tuple(one for one in _parse(document) if self._reads(one.gpu.index))
                    self._hanging = frozenset(one["uuid"] for one in document.get("gpus", []) if one.get("hangs"))
                    self._version = version
        except OSError as error:
            self._version = None
            raise GpusUnavailable(f"{self._path}: {error.strerror}") from error
        except (ValueError, TypeError) as error:  # TOML's and Unicode's errors are ValueErrors
            raise GpusUnavailable(f"{self._path}: {error}") from error
        for sample in self._samples:
            self._ask(sample.gpu)
        return _with_uses(self._samples, self._path)

    def _ask(self, gpu: Gpu) -> None:
        """Read a GPU; one that hangs does not come back, whatever is written meanwhile."""
        self._about(gpu.index)
        while gpu.uuid in self._hanging:
            time.sleep(1)

    def close(self) -> None:
        """Hold nothing, so let go of nothing."""


def read_self_test(path: Path, uuid: str) -> str:
    """Return how a self-test of a GPU ends; one that the file does not describe fails.

    Raises:
        GpusUnavailable: If the file cannot be read.
    """
    SimulatedDriver(path).sample()  # checks it all
    entries = tomllib.loads(path.read_text(encoding="utf-8")).get("gpus", [])
    return next((str(entry.get("self_test", "passes")) for entry in entries if entry["uuid"] == uuid), "fails")


def make_gpus(
    count: int, *, owner: str, model: str = "Simulated GPU", memory_mib: int = MEMORY_MIB
) -> tuple[GpuSample, ...]:
    """Return ``count`` idle GPUs whose uuids depend on ``owner`` alone.

    Two stacks on one host must name different owners: device locks go by uuid.
    """
    return tuple(
        GpuSample(
            gpu=Gpu(
                uuid=f"GPU-{uuid.uuid5(uuid.NAMESPACE_URL, f'orchestrator:{owner}/{index}')}",
                index=index,
                model=model,
                memory_mib=memory_mib,
                driver_version=DRIVER_VERSION,
            ),
            used_mib=0,
            health=GpuHealth.HEALTHY,
            processes=(),
            utilization_percent=None,
            temperature_celsius=None,
            power_watts=None,
        )
        for index in range(count)
    )


def write_gpus(
    path: Path, gpus: Iterable[GpuSample], *, self_tests: Mapping[str, str] = _NO_TEXTS, hanging: Collection[str] = ()
) -> None:
    """Replace the file in one step, so that no reader sees half of it.

    ``self_tests`` says by uuid how those end that do not pass, ``hanging`` which GPUs hang who reads them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(
                "\n".join(
                    _format(sample, self_tests.get(sample.gpu.uuid), sample.gpu.uuid in hanging) for sample in gpus
                )
            )
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _with_uses(samples: tuple[GpuSample, ...], path: Path) -> tuple[GpuSample, ...]:
    uses = defaultdict(list)
    for pid, used in read_uses(path):
        for gpu, mib in used.items():
            uses[gpu].append(GpuProcess(pid, mib))
    if not uses:
        return samples
    return tuple(
        replace(
            sample,
            used_mib=sample.used_mib + sum(process.used_mib for process in uses[sample.gpu.uuid]),
            processes=(*sample.processes, *uses[sample.gpu.uuid]),
        )
        for sample in samples
    )


def _format(sample: GpuSample, self_test: str | None, hangs: bool) -> str:
    gpu = sample.gpu
    fields: dict[str, Any] = {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "model": gpu.model,
        "memory_mib": gpu.memory_mib,
        "driver_version": gpu.driver_version,
        "used_mib": sample.used_mib,
        "health": str(sample.health),
        "xid_count": sample.xid_count,
    }
    fields |= {name: getattr(sample, name) for name in _READINGS if getattr(sample, name) is not None}
    fields |= {name: getattr(gpu, name) for name in _INSTANCE if getattr(gpu, name) is not None}
    if gpu.numa is not None:
        fields["numa"] = gpu.numa
    fields |= {name: list(texts) for name, texts in (("links", gpu.links), ("slowed_by", sample.slowed_by)) if texts}
    if sample.tells_processes:
        fields["tells_processes"] = True
    if hangs:
        fields["hangs"] = True
    if self_test is not None:
        fields["self_test"] = self_test
    lines = ["[[gpus]]", *(f"{name} = {_toml(value)}" for name, value in fields.items())]
    for process in sample.processes:
        lines += ["[[gpus.processes]]", f"pid = {process.pid}", f"used_mib = {process.used_mib}"]
    return "\n".join(lines) + "\n"


def _toml(value: str | int | list[str]) -> str:
    # TOML's strings are JSON's, but for surrogate pairs, which it refuses, and DEL, which it wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _parse(document: Mapping[str, Any]) -> tuple[GpuSample, ...]:
    unknown = sorted(set(document) - {"gpus"})
    if unknown:
        raise ValueError(f"{unknown[0]}: no such field")
    entries = _tables(document.get("gpus", []), "gpus")
    samples = tuple(_parse_gpu(entry, f"gpus[{position}]") for position, entry in enumerate(entries))
    for name in ("uuid", "index"):
        values = [getattr(sample.gpu, name) for sample in samples]
        for position, value in enumerate(values):
            if value in values[:position]:
                raise ValueError(f"gpus[{position}].{name}: {value!r} is taken by another GPU")
    return samples


def _parse_gpu(entry: Mapping[str, Any], where: str) -> GpuSample:
    _check_names(entry, where, _KNOWN, _REQUIRED)
    health = entry.get("health", GpuHealth.HEALTHY)
    if health not in list(GpuHealth):
        raise ValueError(f"{where}.health: {health!r} is none of {', '.join(GpuHealth)}")
    if (self_test := entry.get("self_test", "passes")) not in _SELF_TESTS:
        raise ValueError(f"{where}.self_test: {self_test!r} is none of {', '.join(_SELF_TESTS)}")
    _flag(entry.get("hangs", False), f"{where}.hangs")
    readings: dict[str, Any] = {name: _whole(entry, name, where) if name in entry else None for name in _READINGS}
    processes = _tables(entry.get("processes", []), f"{where}.processes")
    return GpuSample(
        gpu=Gpu(
            uuid=_text(entry, "uuid", where),
            index=_whole(entry, "index", where),
            model=_text(entry, "model", where),
            memory_mib=_whole(entry, "memory_mib", where),
            driver_version=_text({"driver_version": DRIVER_VERSION} | dict(entry), "driver_version", where),
            mig_profile=_text(entry, "mig_profile", where) if "mig_profile" in entry else None,
            parent_uuid=_text(entry, "parent_uuid", where) if "parent_uuid" in entry else None,
            numa=_whole(entry, "numa", where) if "numa" in entry else None,
            links=_texts(entry.get("links", []), f"{where}.links"),
        ),
        used_mib=_whole({"used_mib": 0} | dict(entry), "used_mib", where),
        health=GpuHealth(health),
        processes=tuple(_parse_process(item, f"{where}.processes[{n}]") for n, item in enumerate(processes)),
        **readings,
        slowed_by=_texts(entry.get("slowed_by", []), f"{where}.slowed_by"),
        xid_count=_whole({"xid_count": 0} | dict(entry), "xid_count", where),
        tells_processes=_flag(entry.get("tells_processes", False), f"{where}.tells_processes"),
    )


def _parse_process(entry: Mapping[str, Any], where: str) -> GpuProcess:
    _check_names(entry, where, {"pid", "used_mib"}, ("pid",))
    return GpuProcess(_whole(entry, "pid", where), _whole({"used_mib": 0} | dict(entry), "used_mib", where))


def _tables(value: object, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise TypeError(f"{where}: expected [[{where}]] tables")
    return value


def _check_names(entry: Mapping[str, Any], where: str, known: set[str], required: Iterable[str]) -> None:
    for name in sorted(set(entry) - known):
        raise ValueError(f"{where}.{name}: no such field")
    for name in required:
        if name not in entry:
            raise ValueError(f"{where}.{name}: missing")


def _whole(entry: Mapping[str, Any], name: str, where: str) -> int:
    value = entry[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"{where}.{name}: expected a whole number of at least 0, not {value!r}")
    return value


def _text(entry: Mapping[str, Any], name: str, where: str) -> str:
    value = entry[name]
    if not isinstance(value, str) or not value:
        raise TypeError(f"{where}.{name}: expected a text, not {value!r}")
    return value


def _flag(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{where}: expected true or false, not {value!r}")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise TypeError(f"{where}: expected a list of texts, not {value!r}")
    return tuple(value)
