"""NVML's answers and errors, from a double with pynvml's own constants and error types."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuProcess, GpuSample
from orchestrator.errors import GpusUnavailable
from orchestrator.gpus.driver import open_driver
from orchestrator.gpus.nvml import LOOK_AGAIN, NvmlDriver

MIB = 1 << 20


@dataclass(frozen=True)
class Code:
    """An error code as an answer."""

    code: int


@dataclass
class Card:
    """One card of the double; a ``Code`` in place of a value is raised when the value is asked for."""

    uuid: str | bytes
    name: str = "NVIDIA H100"
    memory: Any = 80 * 1024
    used: Any = 3
    reserved: int = 600
    utilization: Any = 41
    temperature: Any = 55
    power: Any = 123_456
    compute: Any = ()
    graphics: Any = ()
    remapped: Any = (0, 0, 0, 0)
    mig: Any = Code(pynvml.NVML_ERROR_NOT_SUPPORTED)
    instances: tuple["Card | None", ...] = ()
    handle: Any = None
    reasons: Any = 0
    errors: Any = (0, 0)  # memory errors, corrected and not
    linked: Any = frozenset()  # to these cards
    nodes: Any = Code(pynvml.NVML_ERROR_NOT_SUPPORTED)


@dataclass
class Double:
    """The functions that the driver calls, over cards; everything else is pynvml's own."""

    cards: list[Card] = field(default_factory=list)
    init: int = 0
    calls: list[str] = field(default_factory=list)
    session: int = 0  # an error code that every card answers with
    events: Any = ()  # what the driver has to report: (uuid, XID), or a ``Code`` where it cannot

    def __getattr__(self, name: str) -> Any:
        if name.startswith(("NVML_", "NVMLError", "nvmlMemory_v2", "nvmlEventType", "nvmlClocksThrottleReason")):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def nvmlInit(self) -> None:
        self.calls.append("init")
        self._answer(Code(self.init) if self.init else None)

    def nvmlShutdown(self) -> None:
        self.calls.append("shutdown")

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"570.1"

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:
        self._answer(self.cards[index].handle)
        return self.cards[index]

    def nvmlDeviceGetUUID(self, card: Card) -> str | bytes:
        return card.uuid

    def nvmlDeviceGetName(self, card: Card) -> str:
        return card.name

    def nvmlDeviceGetMemoryInfo(self, card: Card, version: int | None = None) -> Any:
        used = self._answer(card.used)
        if version is None:
            used += card.reserved
        return SimpleNamespace(total=self._answer(card.memory) * MIB, used=used * MIB)

    def nvmlDeviceGetUtilizationRates(self, card: Card) -> Any:
        return SimpleNamespace(gpu=self._answer(card.utilization))

    def nvmlDeviceGetTemperature(self, card: Card, sensor: int) -> Any:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._answer(card.temperature)

    def nvmlDeviceGetPowerUsage(self, card: Card) -> Any:
        return self._answer(card.power)

    def nvmlDeviceGetComputeRunningProcesses(self, card: Card) -> Any:
        return self._processes(card.compute)

    def nvmlDeviceGetGraphicsRunningProcesses(self, card: Card) -> Any:
        return self._processes(card.graphics)

    def nvmlDeviceGetRemappedRows(self, card: Card) -> Any:
        return self._answer(card.remapped)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Card) -> Any:
        return self._answer(card.reasons)

    def nvmlDeviceGetTotalEccErrors(self, card: Card, kind: int, counter: int) -> Any:
        assert counter == pynvml.NVML_VOLATILE_ECC
        kinds = (pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED)
        return self._answer(card.errors)[kinds.index(kind)]

    def nvmlDeviceGetP2PStatus(self, card: Card, other: Card, what: int) -> Any:
        assert what == pynvml.NVML_P2P_CAPS_INDEX_NVLINK
        is_linked = other.uuid in self._answer(card.linked)
        return pynvml.NVML_P2P_STATUS_OK if is_linked else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED

    def nvmlDeviceGetMemoryAffinity(self, card: Card, words: int, scope: int) -> Any:
        assert scope == pynvml.NVML_AFFINITY_SCOPE_NODE
        return [sum(1 << node % 64 for node in self._answer(card.nodes) if node // 64 == n) for n in range(words)]

    def nvmlEventSetCreate(self) -> list[str]:
        self._answer(self.events)
        return []

    def nvmlDeviceRegisterEvents(self, card: Card, kinds: int, events: list[str]) -> None:
        assert kinds == pynvml.nvmlEventTypeXidCriticalError
        events.append(str(card.uuid))

    def nvmlEventSetWait_v2(self, events: list[str], milliseconds: int) -> Any:
        assert milliseconds == 0
        if not self.events:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_TIMEOUT)
        (uuid, xid), *self.events = self.events
        assert uuid in events
        return SimpleNamespace(device=Card(uuid), eventData=xid)

    def nvmlDeviceGetMigMode(self, card: Card) -> Any:
        return self._answer(card.mig)

    def nvmlDeviceGetMaxMigDeviceCount(self, card: Card) -> int:
        return len(card.instances)

    def nvmlDeviceGetMigDeviceHandleByIndex(self, card: Card, position: int) -> Card:
        instance = card.instances[position]
        if instance is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return instance

    def _processes(self, listed: Any) -> Any:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self._answer(listed)]

    def _answer(self, value: Any) -> Any:
        if self.session:
            raise pynvml.NVMLError(self.session)
        if isinstance(value, Code):
            raise pynvml.NVMLError(value.code)
        return value


def only(double: Double) -> GpuSample:
    """Return the sample of the double's one card."""
    (sample,) = NvmlDriver(double).sample()
    return sample


def test_a_card_is_read() -> None:
    """Units are MiB, percent, degrees and watts; names may be bytes; a process in both lists is counted once."""
    card = Card(b"GPU-a", used=5, compute=[(11, 7 * MIB), (12, None)], graphics=[(11, 9 * MIB), (3, MIB)])

    assert only(Double([card])) == GpuSample(
        gpu=Gpu("GPU-a", 0, "NVIDIA H100", 80 * 1024, "570.1"),
        used_mib=5,
        health=GpuHealth.HEALTHY,
        processes=(GpuProcess(3, 1), GpuProcess(11, 9), GpuProcess(12, 0)),
        utilization_percent=41,
        temperature_celsius=55,
        power_watts=123,
        ecc_uncorrected=0,
        ecc_corrected=0,
        tells_processes=True,
    )


def test_what_slows_a_card_down_and_its_memory_errors_are_read() -> None:
    """Idle clocks and the power cap are a card's everyday life."""
    reasons = {
        pynvml.nvmlClocksThrottleReasonGpuIdle | pynvml.nvmlClocksThrottleReasonSwPowerCap: (),
        pynvml.nvmlClocksThrottleReasonHwThermalSlowdown: ("heat",),
        pynvml.nvmlClocksThrottleReasonSwThermalSlowdown: ("heat",),
        pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown: ("power",),
        pynvml.nvmlClocksThrottleReasonAll: ("heat", "power"),
    }
    for mask, slowed_by in reasons.items():
        assert only(Double([Card("GPU-a", reasons=mask)])).slowed_by == slowed_by
    sample = only(Double([Card("GPU-a", errors=(70, 2))]))
    assert (sample.ecc_corrected, sample.ecc_uncorrected) == (70, 2)
    untold = only(Double([Card("GPU-a", errors=Code(pynvml.NVML_ERROR_NOT_SUPPORTED))]))
    assert (untold.ecc_corrected, untold.ecc_uncorrected) == (None, None)


def test_how_cards_are_joined_is_read() -> None:
    """Links go both ways; a card that cannot be asked, or is near to no node or several, is joined to nothing."""
    sick = Card("GPU-d", linked=Code(pynvml.NVML_ERROR_GPU_IS_LOST), nodes=Code(pynvml.NVML_ERROR_UNKNOWN))
    cards = [Card("GPU-a", linked={"GPU-c"}, nodes=[0]), Card("GPU-b", nodes=[0, 1]), Card("GPU-c", nodes=[65]), sick]
    split = Card("GPU-e", mig=[1, 1], instances=(Card("MIG-1", "NVIDIA H100 MIG 1g.10gb"),), nodes=[0])
    gpus = [sample.gpu for sample in NvmlDriver(Double([sick, *cards[:3], split])).sample()]

    assert {gpu.uuid: (gpu.links, gpu.numa) for gpu in gpus} == {
        "GPU-a": (("GPU-c",), 0),
        "GPU-b": ((), None),
        "GPU-c": (("GPU-a",), 65),
        "GPU-d": ((), None),
        "MIG-1": ((), None),
    }


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_what_a_card_does_not_tell_is_none(code: int) -> None:
    """Missing readings are not zeros, and no sign of illness."""
    card = Card("GPU-a", utilization=Code(code), temperature=Code(code), power=Code(code), remapped=Code(code))
    card.compute = card.graphics = Code(code)
    sample = only(Double([card]))

    assert (sample.utilization_percent, sample.temperature_celsius, sample.power_watts) == (None, None, None)
    assert (sample.processes, sample.health, sample.used_mib) == ((), GpuHealth.HEALTHY, 3)
    assert not sample.tells_processes


def test_an_old_driver_without_the_second_memory_call_is_asked_the_first_way() -> None:
    """What the driver reserves for itself is then part of what is used."""
    double = Double([Card("GPU-a")])
    first = double.nvmlDeviceGetMemoryInfo

    def ask(card: Card, version: int | None = None) -> Any:
        if version is not None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
        return first(card)

    double.nvmlDeviceGetMemoryInfo = ask  # type: ignore[method-assign]

    assert only(double).used_mib == 603


def test_a_board_that_shares_the_hosts_memory_is_no_error() -> None:
    """Its memory cannot be told."""
    sample = only(Double([Card("GPU-a", memory=Code(pynvml.NVML_ERROR_NOT_SUPPORTED))]))

    assert (sample.gpu.memory_mib, sample.used_mib, sample.health) == (0, 0, GpuHealth.HEALTHY)


@pytest.mark.parametrize(
    ("code", "health"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, GpuHealth.LOST),
        (pynvml.NVML_ERROR_RESET_REQUIRED, GpuHealth.QUARANTINED),
        (pynvml.NVML_ERROR_UNKNOWN, GpuHealth.SUSPECT),
        (pynvml.NVML_ERROR_TIMEOUT, GpuHealth.SUSPECT),
    ],
)
def test_a_sick_card_does_not_hide_the_others(code: int, health: GpuHealth) -> None:
    """It keeps its identity, has no readings, and comes back when it answers again."""
    sick, well = Card("GPU-a"), Card("GPU-b")
    driver = NvmlDriver(Double([sick, well]))
    before = driver.sample()
    sick.used = Code(code)

    lost, other = driver.sample()
    assert (lost.gpu, lost.health, lost.used_mib, lost.processes) == (before[0].gpu, health, 0, ())
    assert other == before[1]
    sick.used = 3
    assert driver.sample() == before


def test_a_card_too_sick_to_be_named_is_left_out() -> None:
    """At the start nothing is known about it; the others are offered."""
    double = Double([Card("GPU-a", handle=Code(pynvml.NVML_ERROR_GPU_IS_LOST)), Card("GPU-b")])

    assert [(sample.gpu.uuid, sample.gpu.index) for sample in NvmlDriver(double).sample()] == [("GPU-b", 1)]


@pytest.mark.parametrize(
    ("rows", "health"),
    [
        ((9, 0, 0, 0), GpuHealth.HEALTHY),
        ((0, 1, 0, 0), GpuHealth.HEALTHY),
        ((0, 1, 1, 0), GpuHealth.SUSPECT),
        ((1, 0, 1, 0), GpuHealth.HEALTHY),
        ((0, 1, 1, 1), GpuHealth.QUARANTINED),
    ],
)
def test_memory_that_cannot_be_repaired_makes_a_card_unfit(rows: tuple[int, int, int, int], health: GpuHealth) -> None:
    """Remapping that failed quarantines; one that waits for a reset after an uncorrectable error is suspect."""
    assert only(Double([Card("GPU-a", remapped=rows)])).health is health


def test_a_lost_session_is_unavailable_and_opened_again() -> None:
    """When the driver goes away under us, the error says so and the next call starts afresh."""
    double = Double([Card("GPU-a")])
    driver = NvmlDriver(double)
    driver.sample()
    double.session = pynvml.NVML_ERROR_DRIVER_NOT_LOADED
    with pytest.raises(GpusUnavailable, match="NVML: Driver Not Loaded"):
        driver.sample()
    double.session = 0

    assert len(driver.sample()) == 1
    assert double.calls == ["init", "shutdown", "init"]


def test_it_is_initialised_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's state does not survive a fork: another pid opens it again, and closes only what it opened."""
    double = Double([Card("GPU-a")])
    driver = NvmlDriver(double)
    driver.sample()
    driver.sample()
    assert double.calls == ["init"]

    monkeypatch.setattr(os, "getpid", lambda: -1)
    driver.sample()
    driver.close()
    driver.close()
    assert double.calls == ["init", "init", "shutdown"]


def test_instances_stand_for_a_card_in_mig_mode() -> None:
    """Each instance is a GPU with its own uuid, memory and profile; empty places are passed over."""
    names = "NVIDIA H100 MIG 1g.10gb", "NVIDIA H100 MIG 2g.20gb"
    instances = (Card("MIG-1", names[0], memory=10240), None, Card("MIG-2", names[1], memory=20480))
    double = Double([Card("GPU-a", mig=[1, 1], instances=instances), Card("GPU-b", mig=[0, 0])])

    assert [sample.gpu for sample in NvmlDriver(double).sample()] == [
        Gpu("MIG-1", 0, "NVIDIA H100", 10240, "570.1", "1g.10gb", "GPU-a"),
        Gpu("MIG-2", 0, "NVIDIA H100", 20480, "570.1", "2g.20gb", "GPU-a"),
        Gpu("GPU-b", 1, "NVIDIA H100", 80 * 1024, "570.1"),
    ]


def test_a_card_that_is_split_into_no_instances_yet_is_nobodys() -> None:
    """As a whole it can be opened by no program."""
    assert NvmlDriver(Double([Card("GPU-a", mig=[1, 1]), Card("GPU-b")])).sample()[0].gpu.uuid == "GPU-b"


def later(driver: NvmlDriver) -> dict[str, Gpu]:
    """Read until the cards have been looked for again, and return what there is then."""
    for _ in range(LOOK_AGAIN):
        samples = driver.sample()
    return {sample.gpu.uuid: sample.gpu for sample in samples}


SPLIT = (Card("MIG-1", "NVIDIA H100 MIG 1g.10gb", memory=10240), Card("MIG-2", "NVIDIA H100 MIG 2g.20gb"))


@pytest.mark.parametrize(
    ("change", "uuids"),
    [
        (lambda double: double.cards.append(Card("GPU-c")), ["GPU-a", "GPU-b", "GPU-c"]),
        (lambda double: double.cards.pop(), ["GPU-a"]),
        (lambda double: setattr(double.cards[1], "uuid", "GPU-z"), ["GPU-a", "GPU-z"]),
        (lambda double: vars(double.cards[1]).update(mig=[1, 1], instances=SPLIT), ["GPU-a", "MIG-1", "MIG-2"]),
        (lambda double: vars(double.cards[1]).update(mig=[1, 1]), ["GPU-a"]),
    ],
    ids=["grows", "shrinks", "changes identity", "is split", "is to be split"],
)
def test_a_host_whose_cards_change_is_read_anew(change: Callable[[Double], None], uuids: list[str]) -> None:
    """Without a restart of the process, and only then; what errors there were stays known."""
    double = Double([Card("GPU-a"), Card("GPU-b")], events=[("GPU-a", 79)])
    driver = NvmlDriver(double)
    assert list(later(driver)) == ["GPU-a", "GPU-b"]
    assert double.calls == ["init"]

    change(double)
    assert list(later(driver)) == uuids
    assert double.calls == ["init", "shutdown", "init"]
    first, *_ = driver.sample()
    assert (first.gpu.uuid, first.xid, first.xid_count) == ("GPU-a", 79, 1)
    later(driver)
    assert len(double.calls) == 3


def test_an_instance_that_is_made_or_unmade_is_seen() -> None:
    double = Double([Card("GPU-a", mig=[1, 1], instances=(SPLIT[0], None))])
    driver = NvmlDriver(double)
    assert list(later(driver)) == ["MIG-1"]
    double.cards[0].instances = SPLIT
    assert list(later(driver)) == ["MIG-1", "MIG-2"]
    double.cards[0].instances = (None, SPLIT[1])
    assert list(later(driver)) == ["MIG-2"]


def test_a_card_too_sick_to_be_named_is_offered_once_it_answers() -> None:
    double = Double([Card("GPU-a", handle=Code(pynvml.NVML_ERROR_GPU_IS_LOST)), Card("GPU-b")])
    driver = NvmlDriver(double)
    assert list(later(driver)) == ["GPU-b"]
    assert double.calls == ["init"], "a card that still does not answer is no other card"
    double.cards[0].handle = None
    assert list(later(driver)) == ["GPU-a", "GPU-b"]


def test_a_card_that_the_driver_has_and_nvml_does_not_tell_of_has_it_opened_anew(tmp_path: Path) -> None:
    """NVML finds the cards when it is opened."""
    (tmp_path / "0000:01:00.0").mkdir()
    double = Double([Card("GPU-a")])
    driver = NvmlDriver(double, drivers_cards=tmp_path)
    later(driver)
    (tmp_path / "0000:02:00.0").mkdir()
    later(driver)
    assert double.calls == ["init", "shutdown", "init"]


def test_a_sick_card_that_does_not_say_who_it_is_keeps_its_name() -> None:
    """Nor are the others opened anew for it."""
    double = Double([Card("GPU-a"), Card("GPU-b")])
    driver = NvmlDriver(double)
    later(driver)
    double.cards[0].used = double.cards[0].handle = Code(pynvml.NVML_ERROR_GPU_IS_LOST)
    later(driver)
    assert [sample.health for sample in driver.sample()] == [GpuHealth.LOST, GpuHealth.HEALTHY]
    assert double.calls == ["init"]


def test_a_handle_that_has_become_invalid_is_a_lost_gpu_and_looked_for_at_once() -> None:
    """An instance that was unmade, or a card that was taken out."""
    unmade = replace(SPLIT[0])
    double = Double([Card("GPU-a", mig=[1, 1], instances=(unmade,)), Card("GPU-b")])
    driver = NvmlDriver(double)
    driver.sample()
    unmade.used = Code(pynvml.NVML_ERROR_INVALID_ARGUMENT)
    double.cards[0].instances = (SPLIT[1],)

    assert [(s.gpu.uuid, s.health) for s in driver.sample()] == [
        ("MIG-1", GpuHealth.LOST),
        ("GPU-b", GpuHealth.HEALTHY),
    ]
    assert [sample.gpu.uuid for sample in driver.sample()] == ["MIG-2", "GPU-b"]


@dataclass
class Asked(Double):
    """Notes which card is asked, by every function that is given one."""

    log: list[str | int | None] = field(default_factory=list)

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("nvmlDevice") or name == "nvmlDeviceGetCount":
            return found

        def ask(card: Any, *arguments: Any) -> Any:
            which = card if isinstance(card, int) else self.cards.index(card)
            self.log.append(f"card {which}")
            return found(card, *arguments)

        return ask


def test_a_card_is_named_before_it_is_asked_anything() -> None:
    """So that it is known which one hangs whoever asks."""
    double = Asked([Card("GPU-a"), Card("GPU-b"), Card("GPU-c", nodes=[0])])
    driver = NvmlDriver(double, about=double.log.append)
    for _ in range(LOOK_AGAIN):
        driver.sample()

    named: str | int | None = "nothing"
    for entry in double.log:
        if isinstance(entry, str):
            assert named in (None, int(entry.removeprefix("card ")))
        else:
            named = entry
    alone = [entry for before, entry in pairwise(double.log) if before is None and isinstance(entry, str)]
    assert len(alone) == 1, "only how the cards are joined is asked of several at once, when NVML is opened"


def test_a_card_that_is_left_out_is_never_asked() -> None:
    """Nor does it look as if it had changed."""
    double = Asked([Card("GPU-a"), Card("GPU-b"), Card("GPU-c")])
    driver = NvmlDriver(double, reads=lambda index: index != 1)
    assert list(later(driver)) == ["GPU-a", "GPU-c"]
    assert double.calls == ["init"]
    assert set(double.log) == {"card 0", "card 2"}


def test_errors_that_the_driver_reports_are_counted() -> None:
    """The latest of each card, and how many there were; an instance's are its card's."""
    split = Card("GPU-b", mig=[1, 1], instances=(Card("MIG-1", "NVIDIA H100 MIG 1g.10gb"),))
    double = Double([Card("GPU-a"), split], events=[("GPU-a", 31), ("GPU-a", 79), ("GPU-b", 48)])
    driver = NvmlDriver(double)

    assert [(s.gpu.uuid, s.xid, s.xid_count) for s in driver.sample()] == [("GPU-a", 79, 2), ("MIG-1", 48, 1)]
    double.events = [("GPU-a", 13)]
    assert [(s.xid, s.xid_count) for s in driver.sample()] == [(13, 3), (48, 1)]


def test_a_driver_that_cannot_report_errors_is_read_all_the_same() -> None:
    assert only(Double([Card("GPU-a")], events=Code(pynvml.NVML_ERROR_NOT_SUPPORTED))).xid_count == 0


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_a_host_without_nvidias_driver_has_no_gpus(code: int) -> None:
    """A CPU-only host is no error."""
    assert open_driver(None, library=Double(init=code)).sample() == ()


def test_a_broken_driver_is_not_taken_for_none() -> None:
    """A mismatch between library and kernel module is told at every sample."""
    driver = open_driver(None, library=Double([Card("GPU-a")], init=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    for _ in range(2):
        with pytest.raises(GpusUnavailable, match=r"[Mm]ismatch"):
            driver.sample()


def test_a_file_stands_for_the_hosts_gpus(tmp_path: Any) -> None:
    """With simulated GPUs NVML is not even opened."""
    double = Double([Card("GPU-a")])
    (tmp_path / "gpus.toml").touch()

    assert open_driver(tmp_path / "gpus.toml", library=double).sample() == ()
    assert double.calls == []


def test_this_hosts_own_library_answers_or_is_missing() -> None:
    """With the real binding: GPUs with uuids, or none."""
    driver = open_driver(None)
    try:
        assert all(sample.gpu.uuid.startswith(("GPU-", "MIG-")) for sample in driver.sample())
    finally:
        driver.close()
