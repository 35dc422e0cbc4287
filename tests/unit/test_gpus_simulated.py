"""Simulated GPUs: what is written is read, changes are seen, faults are named."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuProcess, GpuSample
from orchestrator.errors import GpusUnavailable
from orchestrator.gpus.simulated import SimulatedDriver, make_gpus, read_self_test, write_gpus

VALID = '[[gpus]]\nuuid = "GPU-a"\nindex = 0\nmodel = "S"\nmemory_mib = 100\n'

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
counts = st.integers(0, 1 << 40)
optional = st.none() | st.integers(0, 1000)


@st.composite
def samples(draw: st.DrawFn) -> tuple[GpuSample, ...]:
    """Draw GPUs with distinct uuids and indexes."""
    uuids = draw(st.lists(texts, unique=True, max_size=4))
    return tuple(
        GpuSample(
            gpu=Gpu(
                *(uuid, index, draw(texts), draw(counts), draw(texts)),
                numa=draw(optional),
                links=tuple(draw(st.lists(texts, max_size=3))),
            ),
            used_mib=draw(counts),
            health=draw(st.sampled_from(GpuHealth)),
            processes=tuple(draw(st.lists(st.builds(GpuProcess, counts, counts), max_size=3))),
            utilization_percent=draw(optional),
            temperature_celsius=draw(optional),
            power_watts=draw(optional),
            ecc_uncorrected=draw(optional),
            ecc_corrected=draw(optional),
            slowed_by=tuple(draw(st.lists(texts, max_size=2))),
            tells_processes=draw(st.booleans()),
        )
        for index, uuid in enumerate(uuids)
    )


@given(samples())
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, gpus: tuple[GpuSample, ...]) -> None:
    """Every reading survives the file, whatever its texts hold."""
    path = tmp_path_factory.mktemp("gpus") / "gpus.toml"
    write_gpus(path, gpus)

    assert SimulatedDriver(path).sample() == gpus


def test_how_a_self_test_ends_is_read(tmp_path: Path) -> None:
    """It passes unless the file says otherwise, or does not know the GPU."""
    path, gpus = tmp_path / "gpus.toml", make_gpus(3, owner="test")
    passes, fails, hangs = (sample.gpu.uuid for sample in gpus)
    write_gpus(path, gpus, self_tests={fails: "fails", hangs: "hangs"})

    found = [read_self_test(path, uuid) for uuid in (passes, fails, hangs, "GPU-x")]
    assert found == ["passes", "fails", "hangs", "fails"]
    assert SimulatedDriver(path).sample() == gpus


def test_a_gpu_is_named_before_it_is_read_and_can_be_left_out(tmp_path: Path) -> None:
    """One that hangs is read by nobody who leaves it out."""
    path, gpus = tmp_path / "gpus.toml", make_gpus(3, owner="test")
    write_gpus(path, gpus, hanging=[gpus[1].gpu.uuid])
    told: list[int | None] = []

    assert SimulatedDriver(path, about=told.append, reads=lambda index: index != 1).sample() == (gpus[0], gpus[2])
    assert told == [0, 2]


def test_a_rewritten_file_is_read_again(tmp_path: Path) -> None:
    """A replacement counts even if size and time stay the same, as the file is another one."""
    path = tmp_path / "gpus.toml"
    first, second = make_gpus(1, owner="first"), make_gpus(1, owner="other")
    write_gpus(path, first)
    driver = SimulatedDriver(path)
    assert driver.sample() == first

    before = path.stat()
    write_gpus(path, second)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    assert path.stat().st_size == before.st_size
    assert driver.sample() == second
    assert [entry.name for entry in tmp_path.iterdir()] == ["gpus.toml"]


def test_an_unchanged_file_is_not_parsed_again(tmp_path: Path) -> None:
    """The same reading object comes back."""
    write_gpus(tmp_path / "gpus.toml", make_gpus(2, owner="x"))
    driver = SimulatedDriver(tmp_path / "gpus.toml")

    assert driver.sample() is driver.sample()


def test_made_gpus_differ_by_owner_and_are_stable() -> None:
    """Two stacks on a host never share a uuid; one stack keeps its own over restarts."""
    first, again, other = (make_gpus(3, owner=owner) for owner in ("a", "a", "b"))

    assert first == again
    assert len({sample.gpu.uuid for sample in first + other}) == 6
    assert [sample.gpu.index for sample in first] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[[gpus]]\nuuid = \n", "line 2"),
        ("gpus = 3", "gpus: expected [[gpus]] tables"),
        ("cards = 3", "cards: no such field"),
        (VALID.replace('uuid = "GPU-a"\n', ""), "gpus[0].uuid: missing"),
        (VALID + "colour = 1", "gpus[0].colour: no such field"),
        (VALID.replace("= 100", "= -1"), "gpus[0].memory_mib: expected a whole number of at least 0, not -1"),
        (VALID.replace("= 100", "= true"), "gpus[0].memory_mib: expected a whole number of at least 0, not True"),
        (VALID.replace('"S"', "5"), "gpus[0].model: expected a text, not 5"),
        (VALID.replace('"GPU-a"', '""'), "gpus[0].uuid: expected a text, not ''"),
        (VALID + 'health = "tired"', "gpus[0].health: 'tired' is none of healthy, suspect, quarantined, lost"),
        (VALID + "health = 3", "gpus[0].health: 3 is none of healthy"),
        (VALID + "power_watts = 1.5", "gpus[0].power_watts: expected a whole number of at least 0, not 1.5"),
        (VALID + "[[gpus.processes]]\nused_mib = 1", "gpus[0].processes[0].pid: missing"),
        (VALID + "processes = [1]", "gpus[0].processes: expected"),
        (VALID + VALID, "gpus[1].uuid: 'GPU-a' is taken by another GPU"),
        (VALID + VALID.replace("GPU-a", "GPU-b"), "gpus[1].index: 0 is taken by another GPU"),
    ],
)
def test_a_malformed_file_is_an_error_that_names_the_place(tmp_path: Path, text: str, reason: str) -> None:
    """The error is the answer, again and again, until the file is right; an earlier reading does not stand in."""
    path = tmp_path / "gpus.toml"
    path.write_text(VALID)
    driver = SimulatedDriver(path)
    assert len(driver.sample()) == 1
    path.write_text(text)

    for _ in range(2):
        with pytest.raises(GpusUnavailable) as caught:
            driver.sample()
        assert reason in str(caught.value)
        assert str(path) in str(caught.value)
    path.write_text(VALID)
    assert len(driver.sample()) == 1


def test_a_missing_file_and_one_of_bytes_are_errors(tmp_path: Path) -> None:
    """Neither is taken for a host without GPUs."""
    path = tmp_path / "gpus.toml"
    with pytest.raises(GpusUnavailable, match="No such file or directory"):
        SimulatedDriver(path).sample()
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(GpusUnavailable, match="utf-8"):
        SimulatedDriver(path).sample()


def test_an_empty_file_is_a_host_without_gpus(tmp_path: Path) -> None:
    """No GPU is a valid number of them."""
    (tmp_path / "gpus.toml").touch()

    assert SimulatedDriver(tmp_path / "gpus.toml").sample() == ()
