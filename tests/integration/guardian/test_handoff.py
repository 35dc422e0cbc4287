"""A GPU goes to its next exclusive user only when nothing of the one before is left on it."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.cluster import GpuProcess, GpuSample
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.guardian.messages import GpuReport, SpawnFailed
from tests.support.guardian import Host, StartHost


@pytest.fixture
def card(tmp_path: Path) -> GpuSample:
    """Return the one GPU that the file describes."""
    (sample,) = make_gpus(1, owner=str(tmp_path))
    write_gpus(tmp_path / "gpus.toml", [sample])
    return sample


def start(start_host: StartHost, tmp_path: Path, **values: float) -> Host:
    """Start a guardian that has read the GPUs once, and reads them again only when it has to."""
    host = start_host(simulated_gpus=tmp_path / "gpus.toml", sample_seconds=600, sampler_deadline_seconds=900, **values)
    host.expect(GpuReport)
    return host


def test_a_reading_is_made_for_the_next_user(start_host: StartHost, tmp_path: Path, card: GpuSample) -> None:
    """Nobody waits for the next sample: it would come in ten minutes."""
    host = start(start_host, tmp_path)
    for name in ("r1", "r2", "r3"):
        assert host.run(name, argv=("true",), gpus=(card.gpu.uuid,)).exit_code == 0


def test_a_user_waits_until_the_memory_is_back(start_host: StartHost, tmp_path: Path, card: GpuSample) -> None:
    host = start(start_host, tmp_path, clean_wait_seconds=60)
    host.run("r1", argv=("true",), gpus=(card.gpu.uuid,))
    write_gpus(tmp_path / "gpus.toml", [replace(card, used_mib=4000)])
    host.spawn("r2", argv=("true",), gpus=(card.gpu.uuid,))
    host.spawn("r3", argv=("true",))
    host.expect_end("r3")  # later, without GPUs, and not held up
    assert host.journal()[-1]["runner"] == "r3"

    write_gpus(tmp_path / "gpus.toml", [card])

    assert host.expect_end("r2").exit_code == 0


def test_a_gpu_that_does_not_come_clean_is_named(start_host: StartHost, tmp_path: Path, card: GpuSample) -> None:
    """With who uses it, as far as the driver tells; and the next start is judged by itself."""
    host = start(start_host, tmp_path, clean_wait_seconds=0.3)
    host.run("r1", argv=("true",), gpus=(card.gpu.uuid,))
    write_gpus(tmp_path / "gpus.toml", [replace(card, used_mib=4000, processes=(GpuProcess(4711, 3900),))])
    host.spawn("r2", argv=("true",), gpus=(card.gpu.uuid,))
    failed = host.expect(SpawnFailed, "r2")

    assert failed.unclean == (card.gpu.uuid,)
    assert failed.reason == (f"{card.gpu.uuid} has 4000 MiB in use that no lease explains (pid 4711: 3900 MiB)")
    write_gpus(tmp_path / "gpus.toml", [card])
    assert host.run("r3", argv=("true",), gpus=(card.gpu.uuid,)).exit_code == 0


def test_a_share_is_not_judged_by_its_neighbours(start_host: StartHost, tmp_path: Path, card: GpuSample) -> None:
    write_gpus(tmp_path / "gpus.toml", [replace(card, used_mib=4000)])
    host = start(start_host, tmp_path, clean_wait_seconds=0.1)

    assert host.run(argv=("true",), gpus=(card.gpu.uuid,), exclusive=False).exit_code == 0
