"""Several jobs on one GPU, each held to its part of the memory."""

import subprocess
import sys
from collections.abc import Mapping

from orchestrator.domain.job import FailureClass, JobState
from orchestrator.gpus.simulated import make_gpus, write_gpus
from orchestrator.services.why import explain
from tests.support.cluster import Cluster
from tests.support.waiting import wait_for

MEMORY_MIB = 81_920
#: Uses so much of its GPU, as the file and then MIB:SECONDS say.
USE = (sys.executable, "-m", "orchestrator.gpus.simulated_use")


def test_an_over_user_is_ended_within_two_readings_while_its_neighbours_finish(cluster: Cluster) -> None:
    """It is warned in its output and in its history first, and not tried again by itself.

    What it uses is used by a daemon that has left its session. A job with a GPU of its own is measured only.
    """
    cluster.worker("a", gpus=2)
    daemon = " ".join((*USE, str(cluster.home / "a.toml"), "3000:1", "9000:60"))
    greedy = cluster.command("sh", "-c", f"(setsid {daemon} &)& sleep 60", gpu_memory_mib=4096, max_attempts=3)
    modest = cluster.command(*USE, str(cluster.home / "a.toml"), "4000:5", gpu_memory_mib=4096)
    whole = cluster.command(*USE, str(cluster.home / "a.toml"), "70000:5", gpus=1)
    ended = {job.id: job for job in cluster.wait_for_end([greedy, modest, whole])}

    over = ended[greedy]
    assert (over.state, over.failure_class, over.attempt) == (JobState.FAILED, FailureClass.VRAM_EXCEEDED, 1)
    assert over.reason == "it uses 9000 MiB of GPU memory, its share is 4096 MiB"
    output = cluster.output(greedy)
    warning = output.index("; it is ended at the next reading that shows over 4608 MiB")
    assert warning < output.index("; the job is ended")
    (event,) = [event for event in cluster.runtime.jobs.history(greedy) if event.kind == "vram_warned"]
    assert (event.data, event.node) == ({"used_mib": 9000, "share_mib": 4096}, "a")
    assert {ended[modest].state, ended[whole].state} == {JobState.SUCCEEDED}
    peaks = {job: cluster.runtime.jobs.attempts(job)[0].peak_gpu_memory_mib for job in ended}
    assert peaks == {greedy: 9000, modest: 4000, whole: 70_000}
    assert "orchestrator:" not in cluster.output(modest) + cluster.output(whole)


def test_four_quarters_share_a_gpu_and_a_fifth_waits_as_all_do_for_a_stranger(cluster: Cluster) -> None:
    """Beside a process without a lease a share is put, but no lease on the whole: ``orch why`` says so.

    It is not tried either, and held against no card.
    """
    cards = cluster.home / "a.toml"
    (card,) = make_gpus(1, owner=f"{cluster.home.name}-a", memory_mib=MEMORY_MIB)
    write_gpus(cards, [card])
    cluster.worker("a")
    cluster.beat()
    done = cluster.home / "done"
    wait = f"while not __import__('os').path.exists({str(done)!r}): __import__('time').sleep(0.05)"
    quarters = [cluster.command(sys.executable, "-c", wait, gpu_memory_mib=MEMORY_MIB // 4) for _ in range(4)]
    for job in quarters:
        cluster.wait_for_state(job, JobState.RUNNING)
    fifth = cluster.command("true", gpu_memory_mib=MEMORY_MIB // 4)
    whole = cluster.command("true", gpus=1)
    too_large = cluster.command("true", gpu_memory_mib=MEMORY_MIB - 20_000 + 1)
    wait_for_words(cluster, {fifth: "at most 0 MiB of one are free, on a"})
    assert cluster.job(fifth).state is JobState.PENDING
    (record,) = cluster.runtime.cluster.nodes()[0].gpus
    assert record.reserved_mib == MEMORY_MIB
    assert {cluster.runtime.jobs.attempts(job)[0].gpus for job in quarters} == {(card.gpu.uuid,)}

    environment = cluster.environment() | {"CUDA_VISIBLE_DEVICES": card.gpu.uuid}
    with subprocess.Popen([*USE, str(cards), "20000:600"], env=environment) as stranger:
        try:
            wait_for(lambda: foreign(cluster)[0] == 20_000, within_seconds=20, describe=cluster.logs)
            assert f"pid {stranger.pid} (" in foreign(cluster)[1]
            done.touch()
            assert {job.state for job in cluster.wait_for_end([*quarters, fifth])} == {JobState.SUCCEEDED}
            foreign_use = "in use without a lease"
            wait_for_words(cluster, {whole: f"{foreign_use}: 1 on a", too_large: f"20000 MiB of one are {foreign_use}"})
        finally:
            stranger.kill()
    assert {job.state for job in cluster.wait_for_end([whole, too_large])} == {JobState.SUCCEEDED}
    assert cluster.runtime.cluster.gpu_standings("a")[card.gpu.uuid].strikes == 0
    assert [event.kind for event in cluster.runtime.jobs.history(whole)].count("claim") == 1


def wait_for_words(cluster: Cluster, ends: Mapping[str, str]) -> None:
    """Wait until ``orch why`` says so of each of these jobs, at the end."""

    def words() -> dict[str, str]:
        return {job: explain(cluster.runtime, job)[0].words for job in ends}

    wait_for(
        lambda: all(words()[job].endswith(end) for job, end in ends.items()),
        within_seconds=30,
        describe=lambda: f"{words()}\n{cluster.logs()}",
    )


def foreign(cluster: Cluster) -> tuple[int, str]:
    (record,) = cluster.runtime.cluster.nodes()[0].gpus
    return record.foreign.used_mib, "; ".join(record.foreign.by)
