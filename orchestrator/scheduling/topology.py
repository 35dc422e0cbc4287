"""Which GPUs of a host go together: linked ones first, then those near to the same memory, then any."""

from collections import Counter
from collections.abc import Sequence
from enum import IntEnum
from itertools import combinations, pairwise
from math import comb
from typing import Final, NamedTuple

#: Up to so many sets are all compared; of more, those that grow from one GPU each.
MOST_SETS: Final = 300


class Place(NamedTuple):
    """Where a free GPU stands on its host; None, and no links, where nobody tells."""

    uuid: str
    numa: int | None = None
    links: frozenset[str] = frozenset()


class Bond(IntEnum):
    """What holds a set together, the closest first."""

    LINKED = 0  # each to each
    NEAR = 1  # all to the same NUMA node
    LOOSE = 2


def choose(free: Sequence[Place], count: int) -> tuple[str, ...]:
    """Return the uuids of ``count`` of the free GPUs that are closest to each other, in the order given.

    Of sets alike, the one that cuts the fewest links to GPUs that stay free, then the first: one GPU is taken where it
    breaks up nothing.
    """
    if count >= len(free) or _alike(free):
        return tuple(place.uuid for place in free[:count])
    number = {place.uuid: position for position, place in enumerate(free)}
    if comb(len(free), count) <= MOST_SETS:
        sets = list(combinations(free, count))
    else:
        sets = [tuple(sorted(_grow(free, first, count), key=lambda p: number[p.uuid])) for first in free]
    best = min(sets, key=lambda chosen: (*_cost(free, chosen), [number[place.uuid] for place in chosen]))
    return tuple(place.uuid for place in best)


def closest_bond(free: Sequence[Place], count: int) -> Bond:
    """Return what holds those together that ``choose`` takes, without comparing sets where none can be linked."""
    uuids = {place.uuid for place in free}
    linked = [len(place.links & uuids) for place in free]
    if count == 2 and any(linked):
        return Bond.LINKED
    is_exact = comb(len(free), count) <= MOST_SETS or not any(linked)
    if is_exact and sum(links >= count - 1 for links in linked) < count:
        near = Counter(place.numa for place in free if place.numa is not None)
        return Bond.NEAR if max(near.values(), default=0) >= count else Bond.LOOSE
    by_uuid = {place.uuid: place for place in free}
    return bond([by_uuid[uuid] for uuid in choose(free, count)])


def bond(chosen: Sequence[Place]) -> Bond:
    """Return what holds these GPUs together."""
    if all(other.uuid in place.links for place, other in combinations(chosen, 2)):
        return Bond.LINKED
    near = len({place.numa for place in chosen}) == 1 and chosen[0].numa is not None
    return Bond.NEAR if near else Bond.LOOSE


def _alike(free: Sequence[Place]) -> bool:
    """No set is better than another: nothing is linked or everything is, and none is nearer."""
    if any(left.numa != right.numa for left, right in pairwise(free)):
        return False
    uuids = {place.uuid for place in free}
    linked = [len(place.links & uuids) for place in free]
    return all(number == 0 for number in linked) or all(number == len(uuids) - 1 for number in linked)


def _cost(free: Sequence[Place], chosen: Sequence[Place]) -> tuple[int, int, int, int]:
    inside = {place.uuid for place in chosen}
    outside = {place.uuid for place in free} - inside
    links = sum(len(place.links & inside) for place in chosen)
    cut = sum(len(place.links & outside) for place in chosen)
    return bond(chosen), -links, len({place.numa for place in chosen}), cut


def _grow(free: Sequence[Place], first: Place, count: int) -> list[Place]:
    """Return a set around one GPU, each further one being the closest to those before it."""
    chosen, left = [first], [place for place in free if place is not first]
    while len(chosen) < count:
        inside = {place.uuid for place in chosen}
        closest = max(left, key=lambda place: (len(place.links & inside), place.numa == first.numa))
        chosen.append(closest)
        left.remove(closest)
    return chosen
