"""Which models make room, and what a use counts: decided without a model and without a GPU."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.scheduling.evictions import HIT_RATE_HALF_LIFE, Hits, LoadedModel, choose_victims

HALF_LIFE = HIT_RATE_HALF_LIFE.total_seconds()

#: Few values, so that equal scores and sizes of 0 are common.
SCORES = st.sampled_from([0.0, 0.5, 1.0, 7.0]) | st.floats(0, 1e6)
SIZES = st.sampled_from([0, 1, 400]) | st.integers(0, 80_000)
NEEDS = st.integers(-1000, 1500) | st.integers(-100_000, 500_000)


@st.composite
def loaded_models(draw: st.DrawFn) -> list[LoadedModel]:
    """Models in any order of use, none of them named twice."""
    kinds = draw(st.lists(st.tuples(SIZES, SCORES, st.booleans()), max_size=8))
    return [LoadedModel(f"m{place}", *kind) for place, kind in enumerate(kinds)]


def model(name: str, **fields: Any) -> LoadedModel:
    return LoadedModel(**{"name": name, "size_mib": 400, "score": 1.0, "in_use": False} | fields)


def unused_mib(models: list[LoadedModel]) -> int:
    return sum(one.size_mib for one in models if not one.in_use)


@given(loaded_models(), NEEDS)
def test_a_model_in_use_is_never_chosen(models: list[LoadedModel], needed: int) -> None:
    in_use = {one.name for one in models if one.in_use}
    assert in_use.isdisjoint(choose_victims(models, needed) or [])


@given(loaded_models(), NEEDS)
def test_the_chosen_make_room_unless_nothing_can(models: list[LoadedModel], needed: int) -> None:
    victims = choose_victims(models, needed)
    if victims is None:
        assert unused_mib(models) < needed
    else:
        assert sum(one.size_mib for one in models if one.name in victims) >= needed


@given(loaded_models(), NEEDS)
def test_never_more_than_needed_are_chosen(models: list[LoadedModel], needed: int) -> None:
    """Without the last chosen one there would not be room."""
    victims = choose_victims(models, needed)
    if victims:
        assert sum(one.size_mib for one in models if one.name in victims[:-1]) < needed


@given(loaded_models(), NEEDS)
def test_the_cheapest_go_first(models: list[LoadedModel], needed: int) -> None:
    """Whatever takes memory and is not chosen costs at least as much; at the same cost it was used later."""
    victims = choose_victims(models, needed) or []
    rank = {one.name: (one.score, place) for place, one in enumerate(models)}
    spared = [one.name for one in models if one.name not in victims and not one.in_use and one.size_mib]
    assert victims == sorted(victims, key=rank.__getitem__)
    assert all(rank[victim] < rank[other] for victim in victims for other in spared)


def test_what_takes_no_memory_stays() -> None:
    models = [model("on the host", size_mib=0, score=0.0), model("a")]
    assert choose_victims(models, 400) == ["a"]
    assert choose_victims(models, 401) is None


def test_where_there_is_room_nobody_goes() -> None:
    assert choose_victims([model("a")], 0) == []
    assert choose_victims([], -1) == []
    assert choose_victims([], 1) is None


def test_a_use_counts_half_after_a_half_life() -> None:
    hits = Hits().with_use(50.0)
    assert hits.count_at(50.0) == 1.0
    assert hits.count_at(50.0 + HALF_LIFE) == pytest.approx(0.5)
    assert hits.with_use(50.0 + HALF_LIFE).count == pytest.approx(1.5)


def test_a_steady_rate_is_told() -> None:
    hits, now = Hits(), 0.0
    while now < 20 * HALF_LIFE:
        now += 4.0
        hits = hits.with_use(now)
    assert hits.rate_at(now) == pytest.approx(0.25, rel=0.01)


def test_yesterdays_uses_count_nothing() -> None:
    hits = Hits(count=1_000_000.0, at=0.0)
    assert hits.count_at(timedelta(days=1).total_seconds()) < 1e-6
    assert hits.count_at(timedelta(days=3650).total_seconds()) == 0.0
