"""How the cards of a host are joined, as NVML tells it: by NVLink, switches included, and to which NUMA node."""

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any, Final

#: Words of the set of NUMA nodes that is asked for, of 64 nodes each.
NODE_WORDS: Final = 4
_WORD_BITS: Final = 64


def read_links(library: Any, ask: Callable[..., Any], cards: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return for each card, given as handles by uuid, the uuids of those that NVLink joins it to."""
    links: dict[str, list[str]] = {uuid: [] for uuid in cards}
    for (uuid, card), (other_uuid, other) in combinations(cards.items(), 2):
        try:
            status = ask(library.nvmlDeviceGetP2PStatus, card, other, library.NVML_P2P_CAPS_INDEX_NVLINK)
        except library.NVMLError:
            continue  # one of them is sick: its readings will say so
        if status == library.NVML_P2P_STATUS_OK:
            links[uuid].append(other_uuid)
            links[other_uuid].append(uuid)
    return {uuid: tuple(found) for uuid, found in links.items()}


def read_numa(library: Any, ask: Callable[..., Any], card: Any) -> int | None:
    """Return the NUMA node whose memory is nearest to a card; None where there is no such one."""
    try:
        words = ask(library.nvmlDeviceGetMemoryAffinity, card, NODE_WORDS, library.NVML_AFFINITY_SCOPE_NODE)
    except library.NVMLError:
        return None
    nodes = [
        number * _WORD_BITS + bit
        for number, word in enumerate(words or ())
        for bit in range(_WORD_BITS)
        if int(word) >> bit & 1
    ]
    return nodes[0] if len(nodes) == 1 else None
