"""In which order waiting jobs are looked at."""

from collections.abc import Iterable

from orchestrator.scheduling.snapshot import Candidate


def ordering_key(candidate: Candidate) -> tuple[int, int]:
    """Return what candidates are sorted by: priority, 9 first, then arrival; the seq makes the order total."""
    return (-candidate.priority, candidate.seq)


def in_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Return the candidates, first one first."""
    return sorted(candidates, key=ordering_key)
