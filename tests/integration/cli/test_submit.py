"""What ``orch submit`` asks of GPUs and host is what is stored of the job."""

from dataclasses import replace

import pytest

from orchestrator.domain.cluster import Gpu, GpuHealth, GpuRecord, NodeState
from orchestrator.domain.job import Resources
from orchestrator.domain.wants import Alternative, Wants
from orchestrator.ports import NodeRecord
from orchestrator.runtime import Runtime
from tests.integration.cli.conftest import Orch
from tests.support.running import Running


@pytest.fixture
def hosts(runtime: Runtime) -> None:
    """A host with two H100s, two A100s and an instance, in zone a."""
    h100 = Gpu("rich-0", 0, "NVIDIA H100 80GB HBM3", 81_559, "1")
    a100 = replace(h100, model="NVIDIA A100-SXM4-40GB", memory_mib=40_960)
    cards = [h100, replace(h100, uuid="rich-1"), replace(a100, uuid="rich-2"), replace(a100, uuid="rich-3")]
    cards.append(replace(h100, uuid="rich-4", memory_mib=10_240, mig_profile="1g.10gb", parent_uuid="card"))
    records = tuple(
        GpuRecord(replace(gpu, index=index), "rich", GpuHealth.HEALTHY, 0, 0, None, 0)
        for index, gpu in enumerate(cards)
    )
    node = NodeRecord("rich", "boot", "w", 1, NodeState.UP, ("gpu",), 2, 0, runtime.clock.now(), True, records)
    offers = {"labels": {"zone": "a"}, "cpus": 32, "memory_mib": 128 << 10}
    runtime.cluster.register_node(replace(node, **offers))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["--gpu-type", "H100|A100"], Resources(1, wants=Wants(models=("H100", "A100")))),
        (["--gpus", "2", "--min-memory", "40GiB"], Resources(2, wants=Wants(min_memory_mib=40 << 10))),
        (["--mig", "1g.10gb"], Resources(1, wants=Wants(mig_profile="1g.10gb"))),
        (
            ["--gpus", "1", "--constraint", "zone=a", "--constraint", "node=rich"],
            Resources(1, wants=Wants(labels=(("node", "rich"), ("zone", "a")))),
        ),
        (["--cpus", "8", "--mem", "64GiB"], Resources(0, wants=Wants(cpus=8, host_memory_mib=64 << 10))),
        (["--gpu-memory", "12GiB", "--cpus", "1"], Resources(1, 12 << 10, Wants(cpus=1))),
        (
            [
                *("--gpus", "2", "--gpu-type", "H100", "--cpus", "16"),
                *("--or", "gpus=2,gpu-type=A100,min-memory=40GiB", "--or", "mig=1g.10gb", "--or", "gpu-memory=8GiB"),
            ],
            Resources(
                2,
                wants=Wants(
                    models=("H100",),
                    cpus=16,
                    alternatives=(
                        Alternative(2, models=("A100",), min_memory_mib=40 << 10),
                        Alternative(1, mig_profile="1g.10gb"),
                        Alternative(1, 8 << 10),
                    ),
                ),
            ),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("hosts")
def test_what_is_asked_for_is_what_is_stored(
    orch: Orch, runtime: Runtime, arguments: list[str], asked: Resources
) -> None:
    answer = orch("submit", *arguments, "--", "true")
    assert (answer.code, answer.err) == (0, "")
    job = runtime.jobs.get(answer.out.strip())
    assert job is not None
    assert job.resources == asked
    assert orch("cancel", job.id).code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--or", "gpus=two"], "gpus=two is not a whole number"),
        (["--or", "colour=red"], "'colour=red' is none of gpus=…, gpu-memory=…, gpu-type=…, min-memory=…, mig=…"),
        (["--or", "gpus=1,"], "'' is none of gpus=…"),
        (["--or", "gpus="], "'gpus=' is none of"),
        (["--constraint", "zone"], "'zone' is not NAME=VALUE"),
        (["--min-memory", "much"], "not a size"),
        (["--mem", "0"], "not a size"),
        (["--cpus", "some"], "'some' is not a valid integer"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_read_is_named(orch: Orch, arguments: list[str], words: str) -> None:
    answer = orch("submit", *arguments, "--", "true")
    assert (answer.code, answer.out) == (2, "")
    assert words in answer.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "1", "--or", "gpus=1,min-memory=huge"], "'huge' is not a size of memory"),
        (["--gpus", "1", "--or", "gpus=1,gpu-memory=1GiB,mig=1g.10gb"], "alternatives[0].mig: "),
        (["--gpu-type", "V100"], "no host has 1 GPU of type V100; the closest, "),
        (["--gpus", "1", "--constraint", "zone=nowhere"], "is not labelled zone=nowhere"),
        (["--cpus", "33"], "offers 32 CPUs"),
        (["--gpus", "3", "--gpu-type", "H100", "--or", "gpus=9"], "no host has 3 GPUs of type H100, or 9 GPUs"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.usefixtures("hosts")
def test_what_makes_no_sense_or_no_host_has_is_one_line_and_2(orch: Orch, arguments: list[str], words: str) -> None:
    answer = orch("submit", *arguments, "--", "true")
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith("orch: ")
    assert words in answer.err


@pytest.mark.usefixtures("hosts")
def test_status_shows_which_alternative_a_job_has_got(orch: Orch, runtime: Runtime) -> None:
    """And nothing of it for a job without any."""
    either = orch("submit", "--gpu-type", "H100", "--or", "gpus=2,gpu-type=A100", "--", "true").out.strip()
    asked = Resources(1, wants=Wants(models=("H100",), alternatives=(Alternative(2, models=("A100",)),)))
    Running(runtime, either, "rich", ("rich-2", "rich-3"), asked).end()
    plain = orch("submit", "--gpus", "1", "--", "true").out.strip()
    Running(runtime, plain, "rich", ("rich-0",)).end()

    titles, row = (line.split() for line in orch("status", either).out.splitlines()[-2:])
    assert row[titles.index("CHOICE")] == "2"
    assert [one["choice"] for one in orch("status", either, "--json").document["attempts"]] == [2]
    shown = orch("status", plain)
    assert (shown.code, "CHOICE" in shown.out) == (0, False)
