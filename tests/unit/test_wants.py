"""Conditions on GPUs and host: what is accepted, and how they travel."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.job import LeaseMode, Resources
from orchestrator.domain.request import CommandRequest, Limits, new_job
from orchestrator.domain.request_wants import AlternativeRequest, alternative
from orchestrator.domain.wants import Alternative, Wants, describe_wants, is_model, wants_from, wants_text
from orchestrator.errors import InvalidJob, InvalidRequest

ID = "00000000-0000-7000-8000-000000000001"

_models = st.lists(st.sampled_from(["H100", "A100", "RTX 4090", "L40S"]), max_size=2, unique=True).map(tuple)
_memory = st.none() | st.integers(1, 1 << 20)
_profile = st.sampled_from([None, "1g.10gb", "3g.40gb"])
_alternatives = st.builds(Alternative, st.integers(1, 8), st.none(), _models, _memory, _profile)
conditions = st.builds(
    Wants,
    models=_models,
    min_memory_mib=_memory,
    mig_profile=_profile,
    labels=st.dictionaries(st.sampled_from(["zone", "rack"]), st.sampled_from("abc")).map(
        lambda labels: tuple(sorted(labels.items()))
    ),
    cpus=st.integers(0, 64),
    host_memory_mib=st.integers(0, 1 << 20),
    alternatives=st.lists(_alternatives, max_size=3).map(tuple),
)


def resources(**options: object) -> Resources:
    return new_job(CommandRequest(argv=("true",), **options), id=ID, limits=Limits()).resources  # type: ignore[arg-type]


@given(conditions)
def test_conditions_come_back_as_they_were_stored(wants: Wants) -> None:
    assert wants_from(wants_text(wants)) == (None if wants == Wants() else wants)


def test_no_condition_costs_nothing() -> None:
    assert wants_text(None) is None
    assert wants_text(Wants()) is None
    assert resources(gpus=1).wants is None


@pytest.mark.parametrize("text", ["[]", "{", '{"labels": 1, "cpus": "x"}', '{"alternatives": [{}]}'])
def test_a_malformed_document_is_told_apart(text: str) -> None:
    """It may come from a stream, where anybody can write."""
    with pytest.raises(ValueError, match=r"."):
        wants_from(text)


@pytest.mark.parametrize(
    ("model", "wanted", "expected"),
    [
        ("NVIDIA A100-SXM4-40GB", "A100", True),
        ("NVIDIA A100-SXM4-40GB", "a100-sxm4-40gb", True),
        ("NVIDIA A100-SXM4-40GB", "A10", False),
        ("NVIDIA GeForce RTX 4090", "rtx 4090", True),
        ("NVIDIA GeForce RTX 4090", "RTX 409", False),
        ("NVIDIA L40S", "L40", False),
    ],
)
def test_a_type_names_whole_words_of_a_model(model: str, wanted: str, expected: bool) -> None:
    assert is_model(model, wanted) is expected


def test_saying_something_of_gpus_asks_for_one() -> None:
    assert resources(gpu_type="H100").gpus == 1
    assert resources(min_memory_mib=1000).gpus == 1
    assert resources(mig="1g.10gb").gpus == 1
    assert resources(cpus=4).gpus == 0


def test_alternatives_are_options_in_order_under_the_same_host_conditions() -> None:
    asked = resources(
        gpus=2,
        gpu_type="H100",
        cpus=8,
        constraints={"zone": "a"},
        alternatives=(AlternativeRequest(gpus=4, gpu_type="A100"), AlternativeRequest(gpu_memory_mib=500)),
    )
    first, second, third = asked.options

    assert [(option.gpus, option.gpu_memory_mib) for option in asked.options] == [(2, None), (4, None), (1, 500)]
    assert [option.wants.models for option in asked.options if option.wants] == [("H100",), ("A100",), ()]
    assert all(
        option.wants and (option.wants.cpus, option.wants.labels) == (8, (("zone", "a"),)) for option in asked.options
    )
    assert [option.mode for option in (first, second, third)] == [
        LeaseMode.EXCLUSIVE,
        LeaseMode.EXCLUSIVE,
        LeaseMode.SHARED,
    ]
    assert Resources(1).options == (Resources(1),)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"gpu_type": "H100||A100"}, "gpu_type"),
        ({"gpu_type": "H100;DROP"}, "gpu_type"),
        ({"gpus": 0, "gpu_type": "H100"}, "gpu_type: says something of GPUs, but gpus is 0"),
        ({"mig": "big"}, "mig"),
        ({"mig": "1g.10gb", "gpu_memory_mib": 100}, "mig"),
        ({"min_memory_mib": 0}, "min_memory_mib"),
        ({"cpus": -1}, "cpus"),
        ({"memory_mib": 1 << 30}, "memory_mib"),
        ({"constraints": {"a b": "c"}}, "constraints"),
        ({"constraints": {"zone": ""}}, "constraints: zone"),
        ({"constraints": {f"label-{n}": "x" * 60 for n in range(40)}}, "too long together"),
        ({"alternatives": (AlternativeRequest(gpus=1),)}, "alternatives: are other GPUs for a job that asks for GPUs"),
        ({"gpus": 1, "alternatives": (AlternativeRequest(gpus=0),)}, "alternatives[0].gpus"),
        ({"gpus": 1, "alternatives": (AlternativeRequest(mig="x"),)}, "alternatives[0].mig"),
        ({"gpus": 1, "alternatives": (AlternativeRequest(gpus=1),) * 9}, "alternatives: must be at most 8"),
    ],
)
def test_what_makes_no_sense_is_refused_in_the_callers_words(options: dict[str, object], fault: str) -> None:
    with pytest.raises(InvalidJob) as caught:
        resources(**options)
    assert fault in str(caught.value)


def test_an_alternative_as_people_write_it() -> None:
    assert alternative({"gpus": 2, "min_memory": "40GiB"}) == AlternativeRequest(gpus=2, min_memory_mib=40960)
    with pytest.raises(InvalidRequest, match="'gpu' is none of"):
        alternative({"gpu": 2})


def test_conditions_in_words() -> None:
    wants = dataclasses.replace(Wants(), models=("H100", "A100"), labels=(("zone", "a"),), cpus=4)
    assert describe_wants(wants) == " of type H100 or A100 where zone=a with 4 CPUs"


def test_the_choice_is_the_first_option_that_the_gpus_meet() -> None:
    h100, a100, part = ("NVIDIA H100", 80, None), ("NVIDIA A100", 40, None), ("NVIDIA H100", 10, "1g.10gb")
    others = (Alternative(2, models=("A100",)), Alternative(1, 8), Alternative(1, mig_profile="1g.10gb"))
    asked = Resources(1, wants=Wants(models=("H100",), alternatives=others))

    assert asked.choice([h100], None) == 1
    assert asked.choice([a100, a100], None) == 2
    assert asked.choice([a100], 8) == 3
    assert asked.choice([part], None) == 4
    for other in ([a100], [h100, a100], [], [part, part]):
        assert asked.choice(other, None) is None
    assert asked.choice([a100], 9) is None
    assert Resources(1).choice([h100], None) is None
