"""NVIDIA GPUs, read through NVML.

NVML's state does not survive a fork, so it is initialised once for each process id. One sick card does not hide the
others: its sample carries its health instead of readings. What NVML cannot tell is None.

The cards are found when NVML is opened, and looked for again every few readings: it is opened anew when there are
others, or one was split into other instances.

A broken card may hang whoever asks it. So it is said which one is asked next, and cards can be left out.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuProcess, GpuSample
from orchestrator.errors import GpusUnavailable
from orchestrator.gpus.card_choice import every_card, say_nothing
from orchestrator.gpus.nvml_topology import read_links, read_numa

logger = logging.getLogger(__name__)

MIB: Final = 1 << 20
#: Most errors that one reading takes in.
MOST_EVENTS: Final = 100
MILLIWATTS: Final = 1000
#: After so many readings it is looked whether the cards are still those that were found.
LOOK_AGAIN: Final = 10
#: Where the driver has an entry for each of its cards: NVML tells of those alone that were there when it was opened.
DRIVERS_CARDS: Final = Path("/proc/driver/nvidia/gpus")

#: Names of NVML's codes after which nothing can be read until it is initialised anew.
_SESSION_LOST: Final = ("UNINITIALIZED", "DRIVER_NOT_LOADED", "LIBRARY_NOT_FOUND", "LIB_RM_VERSION_MISMATCH")
#: Names of those that say that the card, the driver or our rights have no answer.
_UNTOLD: Final = ("NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH")
#: Names of those that a card answers with that is not there any more; of an instance, whose handle has become invalid.
_GONE: Final = ("GPU_IS_LOST", "INVALID_ARGUMENT", "NOT_FOUND")


@dataclass(frozen=True, slots=True)
class _Card:
    handle: Any
    gpu: Gpu


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which cards there are."""

    entries: frozenset[str]  # of the driver
    slots: tuple[tuple[str, ...] | None, ...]  # by index: uuid, MIG mode and instances; None where it cannot be told

    def differs_from(self, earlier: "_Layout") -> bool:
        """Tell whether there are other cards than earlier; one that cannot be asked now may still be the same."""
        if self.entries != earlier.entries or len(self.slots) != len(earlier.slots):
            return True
        return any(now not in (None, was) for now, was in zip(self.slots, earlier.slots, strict=True))


class NvmlDriver:
    """Samples every GPU of the host; a card in MIG mode is given as its instances."""

    def __init__(
        self,
        library: Any,
        *,
        drivers_cards: Path = DRIVERS_CARDS,
        about: Callable[[int | None], None] = say_nothing,
        reads: Callable[[int], bool] = every_card,
    ) -> None:
        """Wrap ``pynvml``, or something with the same functions, constants and error type.

        Args:
            library: It.
            drivers_cards: Where the driver has an entry for each card.
            about: Told before something is asked: the index of the card, or None if it is none alone.
            reads: Whether the card of an index is to be read; one that is not is never asked anything.
        """
        self._about, self._reads = about, reads
        self._nvml = library
        self._pid: int | None = None
        self._cards: tuple[_Card, ...] = ()
        self._drivers_cards, self._layout = drivers_cards, _Layout(frozenset(), ())
        self._readings = 0  # since the cards were last looked for
        self._events: Any = None  # NVML's set of events; None where there is none
        self._xids: dict[str, tuple[int, int]] = {}  # uuid -> the latest XID, and how many there were
        self._session_lost = {getattr(library, f"NVML_ERROR_{name}") for name in _SESSION_LOST}
        self._untold = {getattr(library, f"NVML_ERROR_{name}") for name in _UNTOLD}

    def sample(self) -> tuple[GpuSample, ...]:
        """Return a reading of every GPU, in NVML's order.

        Raises:
            GpusUnavailable: If the library or the driver does not answer; the next call starts afresh.
        """
        try:
            self._open()
            self._read_events()
            self._look_again()
            return tuple(self._sample_card(card) for card in self._cards)
        except self._nvml.NVMLError as error:
            self.close()
            raise GpusUnavailable(f"NVML: {error}") from error

    def close(self) -> None:
        """Let go of the library; a later ``sample`` opens it again."""
        if self._pid == os.getpid():
            try:
                self._nvml.nvmlShutdown()
            except self._nvml.NVMLError as error:
                if error.value not in self._session_lost:
                    raise GpusUnavailable(f"NVML: {error}") from error
            finally:
                self._pid = None
        self._pid, self._cards = None, ()

    def _open(self) -> None:
        if self._pid == os.getpid():
            return
        self._about(None)
        self._nvml.nvmlInit()
        self._pid = os.getpid()
        driver_version = _text(self._nvml.nvmlSystemGetDriverVersion())
        count = self._nvml.nvmlDeviceGetCount()
        self._layout, self._readings = self._lay_out(), 0
        self._cards = self._join([card for index in range(count) for card in self._find(index, driver_version)])
        self._listen(count)

    def _look_again(self) -> None:
        """Open NVML anew if there are other cards than before; the errors that they reported are remembered."""
        self._readings += 1
        if self._readings < LOOK_AGAIN:
            return
        self._readings = 0
        if self._lay_out().differs_from(self._layout):
            logger.warning("the host's GPUs have changed and are looked for anew")
            self.close()
            self._open()

    def _lay_out(self) -> _Layout:
        try:
            entries = frozenset(os.listdir(self._drivers_cards))
        except OSError:  # a driver for other systems than Linux's own has none
            entries = frozenset()
        count = self._nvml.nvmlDeviceGetCount()
        return _Layout(entries, tuple(self._slot(index) for index in range(count)))

    def _slot(self, index: int) -> tuple[str, ...] | None:
        nvml = self._nvml
        if not self._reads(index):
            return None
        self._about(index)
        try:
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            parts = self._instances(card)
            uuids = [_text(nvml.nvmlDeviceGetUUID(one)) for one in (card, *(parts or ()))]
        except nvml.NVMLError as error:
            if error.value in self._session_lost:
                raise
            return None
        return ("whole" if parts is None else "split", *uuids)

    def _listen(self, count: int) -> None:
        """Have the driver queue the errors that it reports, where it can."""
        nvml = self._nvml
        self._events = self._ask(nvml.nvmlEventSetCreate)
        if self._events is None:
            return
        for index in filter(self._reads, range(count)):
            self._about(index)
            try:
                card = nvml.nvmlDeviceGetHandleByIndex(index)
                self._ask(nvml.nvmlDeviceRegisterEvents, card, nvml.nvmlEventTypeXidCriticalError, self._events)
            except nvml.NVMLError as error:
                if error.value in self._session_lost:
                    raise
                logger.warning("errors of GPU %d are not told: NVML: %s", index, error)

    def _read_events(self) -> None:
        """Take in what the driver reported since the last reading."""
        nvml = self._nvml
        self._about(None)
        for _ in range(MOST_EVENTS if self._events is not None else 0):
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
            except nvml.NVMLError as error:
                if error.value in self._session_lost:
                    raise
                return  # a timeout: there is none
            uuid = self._ask(nvml.nvmlDeviceGetUUID, event.device)
            if uuid is not None:
                _latest, number = self._xids.get(_text(uuid), (0, 0))
                self._xids[_text(uuid)] = (int(event.eventData), number + 1)

    def _find(self, index: int, driver_version: str) -> list[_Card]:
        """Return the card at this index, or its instances; nothing when it is too sick to say which one it is."""
        if not self._reads(index):
            return []
        self._about(index)
        try:
            card = self._nvml.nvmlDeviceGetHandleByIndex(index)
            instances = self._instances(card)
            parts = (card,) if instances is None else instances  # split into none yet, it can be used by nobody
            return [_Card(part, self._describe(part, index, card, driver_version)) for part in parts]
        except self._nvml.NVMLError as error:
            if error.value in self._session_lost:
                raise
            logger.error("GPU %d cannot be identified and is left out: NVML: %s", index, error)
            return []

    def _join(self, found: list[_Card]) -> tuple[_Card, ...]:
        """Return the cards with how they are joined; an instance has no links."""
        self._about(None)
        whole = {card.gpu.uuid: card.handle for card in found if card.gpu.parent_uuid is None}
        links = read_links(self._nvml, self._ask, whole)
        numas = {uuid: read_numa(self._nvml, self._ask, handle) for uuid, handle in whole.items()}
        return tuple(
            replace(card, gpu=replace(card.gpu, numa=numas.get(card.gpu.uuid), links=links.get(card.gpu.uuid, ())))
            for card in found
        )

    def _describe(self, part: Any, index: int, card: Any, driver_version: str) -> Gpu:
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, part)  # None on boards that share the host's memory
        return Gpu(
            uuid=_text(self._nvml.nvmlDeviceGetUUID(part)),
            index=index,
            model=_text(self._nvml.nvmlDeviceGetName(card)),
            memory_mib=0 if memory is None else memory.total // MIB,
            driver_version=driver_version,
            mig_profile=None if part is card else self._profile(part),
            parent_uuid=None if part is card else _text(self._nvml.nvmlDeviceGetUUID(card)),
        )

    def _profile(self, instance: Any) -> str:
        """Return the profile of a MIG instance, which NVML tells as the last word of its name."""
        return _text(self._nvml.nvmlDeviceGetName(instance)).rpartition(" ")[2].lower()

    def _instances(self, card: Any) -> tuple[Any, ...] | None:
        """Return the MIG instances of a card; None when it is not in MIG mode."""
        mode = self._ask(self._nvml.nvmlDeviceGetMigMode, card)
        if mode is None or mode[0] != self._nvml.NVML_DEVICE_MIG_ENABLE:
            return None
        found = []
        for position in range(self._nvml.nvmlDeviceGetMaxMigDeviceCount(card)):
            try:
                found.append(self._nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, position))
            except self._nvml.NVMLError as error:
                if error.value != self._nvml.NVML_ERROR_NOT_FOUND:
                    raise
        return tuple(found)

    def _sample_card(self, card: _Card) -> GpuSample:
        self._about(card.gpu.index)
        try:
            return self._read(card)
        except self._nvml.NVMLError as error:
            if error.value in self._session_lost:
                raise
            health = self._health_after(error.value)
            if health is GpuHealth.LOST:
                self._readings = LOOK_AGAIN  # it is seen at once what there is in its place
            return GpuSample(card.gpu, 0, health, (), None, None, None)

    def _read(self, card: _Card) -> GpuSample:
        nvml, handle = self._nvml, card.handle
        utilization = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        processes = self._processes(handle)
        xid, xid_count = self._xids.get(card.gpu.parent_uuid or card.gpu.uuid, (None, 0))
        return GpuSample(
            gpu=card.gpu,
            used_mib=self._used_bytes(handle) // MIB,
            health=self._read_health(handle),
            processes=processes or (),
            utilization_percent=None if utilization is None else int(utilization.gpu),
            temperature_celsius=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
            power_watts=None if power is None else round(power / MILLIWATTS),
            xid=xid,
            xid_count=xid_count,
            slowed_by=self._slowed_by(handle),
            ecc_uncorrected=self._memory_errors(handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            ecc_corrected=self._memory_errors(handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            tells_processes=processes is not None,
        )

    def _slowed_by(self, handle: Any) -> tuple[str, ...]:
        # The power cap is left out: a GPU under full load is at its cap, and nothing is wrong with it.
        nvml = self._nvml
        reasons = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
        heat = nvml.nvmlClocksThrottleReasonHwThermalSlowdown | nvml.nvmlClocksThrottleReasonSwThermalSlowdown
        found = (("heat", heat), ("power", nvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown))
        return tuple(name for name, mask in found if reasons & mask)

    def _memory_errors(self, handle: Any, kind: int) -> int | None:
        count = self._ask(self._nvml.nvmlDeviceGetTotalEccErrors, handle, kind, self._nvml.NVML_VOLATILE_ECC)
        return None if count is None else int(count)

    def _used_bytes(self, handle: Any) -> int:
        # Version 2 leaves out what the driver keeps for itself (about 600 MiB of an H100); else no GPU looks idle.
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle, self._nvml.nvmlMemory_v2)
        if memory is None:
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
            except self._nvml.NVMLError as error:
                if error.value not in self._untold:  # a handle that was valid and is no more, among others
                    raise
                return 0
        return int(memory.used)

    def _processes(self, handle: Any) -> tuple[GpuProcess, ...] | None:
        computing = self._ask(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        drawing = self._ask(self._nvml.nvmlDeviceGetGraphicsRunningProcesses, handle)
        if computing is None:
            return None
        used: dict[int, int] = {}
        for process in (*computing, *(drawing or ())):
            mib = (process.usedGpuMemory or 0) // MIB
            used[process.pid] = max(mib, used.get(process.pid, 0))  # a process may be in both lists
        return tuple(GpuProcess(pid, mib) for pid, mib in sorted(used.items()))

    def _read_health(self, handle: Any) -> GpuHealth:
        rows = self._ask(self._nvml.nvmlDeviceGetRemappedRows, handle)
        if rows is None:
            return GpuHealth.HEALTHY
        _correctable, uncorrectable, pending, failed = rows
        if failed:
            return GpuHealth.QUARANTINED  # out of spare rows: the next memory error corrupts a job
        return GpuHealth.SUSPECT if pending and uncorrectable else GpuHealth.HEALTHY

    def _health_after(self, code: int) -> GpuHealth:
        if code in {getattr(self._nvml, f"NVML_ERROR_{name}") for name in _GONE}:
            return GpuHealth.LOST
        return GpuHealth.QUARANTINED if code == self._nvml.NVML_ERROR_RESET_REQUIRED else GpuHealth.SUSPECT

    def _ask(self, function: Any, *arguments: Any) -> Any:
        """Return an answer, or None where the card, the driver or our rights have none."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in self._untold or error.value == self._nvml.NVML_ERROR_INVALID_ARGUMENT:
                return None
            raise


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
