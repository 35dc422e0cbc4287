"""What makes a GPU clean."""

from dataclasses import replace

from orchestrator.gpus.simulated import make_gpus
from orchestrator.guardian.handoff import Handoff

CARD, OTHER = make_gpus(2, owner="test")
UUID = CARD.gpu.uuid


def test_a_gpu_that_nothing_used_since_its_clean_reading_is_clean() -> None:
    handoff = Handoff(512)
    handoff.note_reading([CARD, OTHER], 10.0)
    assert handoff.doubt(UUID) is None

    handoff.note_use([UUID], 11.0)
    assert "has not been read since" in str(handoff.doubt(UUID))
    assert handoff.doubt(OTHER.gpu.uuid) is None

    handoff.note_reading([CARD, OTHER], 10.5)  # it began before the use ended
    assert handoff.doubt(UUID) is not None
    handoff.note_reading([CARD, OTHER], 11.5)
    assert handoff.doubt(UUID) is None


def test_memory_in_use_is_told_even_when_no_process_can_be_seen() -> None:
    handoff = Handoff(512)
    handoff.note_reading([replace(CARD, used_mib=512)], 1.0)
    assert handoff.doubt(UUID) is None
    handoff.note_reading([replace(CARD, used_mib=513)], 2.0)
    assert handoff.doubt(UUID) == f"{UUID} has 513 MiB in use that no lease explains, by no process that can be seen"


def test_a_gpu_that_is_gone_is_not_clean_and_one_never_heard_of_is_not_judged() -> None:
    handoff = Handoff(512)
    handoff.note_reading([CARD], 1.0)
    handoff.note_reading([], 2.0)

    assert "not told of" in str(handoff.doubt(UUID))
    assert handoff.doubt("GPU-unknown") is None


def test_an_older_reading_does_not_replace_a_newer_one() -> None:
    handoff = Handoff(512)
    handoff.note_reading([CARD], 5.0)
    handoff.note_reading([replace(CARD, used_mib=9000)], 4.0)

    assert handoff.doubt(UUID) is None
