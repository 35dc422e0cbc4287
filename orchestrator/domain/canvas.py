"""What a Celery canvas says of the calls that it has not made yet, and who waits for whom: pure functions.

A message carries the rest of its chain, its callbacks and the body of its chord; Celery has chosen their ids already.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

from orchestrator.domain.job import JobState

Signature: TypeAlias = Mapping[str, Any]
#: Ids of the calls whose ends let what comes next begin.
Ends: TypeAlias = tuple[str, ...]

#: Calls of one message's canvas that are looked at; a larger canvas keeps its later members to itself until then.
MOST_CALLS: Final = 10_000


@dataclass(frozen=True, slots=True)
class CanvasCancelled:
    """Which jobs of a canvas or group were cancelled, and which run and were asked to end; by id."""

    canvas_id: str  # the root or the group
    cancelled: tuple[str, ...]
    stopping: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Need:
    """Something that a blocked job waits for: a job, or a plain task, whose state nobody records."""

    id: str
    state: JobState | None


@dataclass(frozen=True, slots=True)
class Call:
    """A task that a canvas is going to call."""

    id: str
    task: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]
    needs: Ends  # the calls right before it
    group_id: str | None


def calls_behind(
    task_id: str, embed: Mapping[str, Any], *, group_id: str | None = None, most: int = MOST_CALLS
) -> tuple[Call, ...]:
    """Return the calls that follow a message, each after those it waits for.

    Errbacks are left out: nobody waits for them. So is a call whose id is not chosen yet.

    Args:
        task_id: The message's own.
        embed: ``callbacks``, ``chain`` (its next call last, as Celery stores it) and ``chord`` of the message.
        group_id: The group that the message belongs to.
        most: Calls beyond this number are left out.
    """
    walk = _Walk(most)
    walk.after_call(embed, (task_id,), group_id)
    return tuple(walk.calls.values())


def group_of(embed: Mapping[str, Any]) -> str | None:
    """Return the group that a message without one belongs to as the beginning of one of its chains."""
    chain = embed.get("chain") or ()
    last = chain[0] if chain else None  # the chain is stored with its end first
    found = (last.get("options") or {}).get("group_id") if isinstance(last, Mapping) else None
    return found if isinstance(found, str) else None


def nearest_needs(calls: Sequence[Call], jobs: Collection[str]) -> tuple[Call, ...]:
    """Return the calls that are jobs, each with all that it waits for up to and including the nearest jobs before it.

    A plain task between two jobs can fail without anybody's record of it being kept, so the later job waits for both.

    Args:
        calls: As ``calls_behind`` returns them.
        jobs: The ids of the calls that are jobs. What is no call here is where the canvas begins, and ends the search.
    """
    plain = {call.id: call for call in calls if call.id not in jobs}
    known: dict[Ends, Ends] = {}  # members of a group wait for the same

    def nearest(needs: Ends) -> Ends:
        found: dict[str, None] = {}
        ahead = list(reversed(needs))
        while ahead:  # not in the order of the calls: one that several paths lead to waits for later ones too
            need = ahead.pop()
            if need not in found:
                found[need] = None
                ahead += reversed(plain[need].needs if need in plain else ())
        return tuple(found)

    for call in calls:
        if call.id in jobs and call.needs not in known:
            known[call.needs] = nearest(call.needs)
    return tuple(replace(call, needs=known[call.needs]) for call in calls if call.id in jobs)


def dependents(edges: Iterable[tuple[str, str]], ended: Collection[str]) -> set[str]:
    """Return everything that waits, directly or not, for something that ended.

    Args:
        edges: Pairs of what waits and what it waits for.
        ended: Where to begin; not part of the answer.
    """
    waiting: dict[str, set[str]] = defaultdict(set)
    for child, need in edges:
        waiting[need].add(child)
    found: set[str] = set()
    frontier = set(ended)
    while frontier:
        frontier = {child for need in frontier for child in waiting.get(need, ())} - found
        found |= frontier
    return found


class _Walk:
    """Collects calls; each method returns the ids after which what stands behind begins."""

    def __init__(self, most: int) -> None:
        self.calls: dict[str, Call] = {}
        self._most = most

    def after_call(self, options: Mapping[str, Any], ends: Ends, group_id: str | None) -> Ends:
        """Follow what a call leads to: ``options`` are a message's embedded ones, or a signature's own."""
        for name in ("callbacks", "link"):
            for callback in _signatures(options.get(name)):
                self.visit(callback, ends, group_id)
        body = options.get("chord")
        if isinstance(body, Mapping):
            self.visit(body, ends, None)
        for signature in reversed(_signatures(options.get("chain"))):
            ends = self.visit(signature, ends, group_id)
        return ends

    def visit(self, signature: Signature, needs: Ends, group_id: str | None) -> Ends:
        """Follow a signature of any type."""
        kwargs = signature.get("kwargs") or {}
        options = signature.get("options") or {}
        match signature.get("subtask_type"):
            case "chain":
                ends = needs
                for step in _signatures(kwargs.get("tasks")):
                    ends = self.visit(step, ends, group_id)
            case "group":
                ends = self._all(kwargs.get("tasks"), needs, _text(options.get("task_id")) or group_id)
            case "chord":
                header = kwargs.get("header")
                header_group = _text(options.get("task_id")) or group_id
                if isinstance(header, Mapping):
                    header = (header.get("kwargs") or {}).get("tasks")
                ends = self._all(header, needs, header_group)
                body = kwargs.get("body")
                ends = self.visit(body, ends, group_id) if isinstance(body, Mapping) else ends
            case _:
                return self._call(signature, needs, group_id)
        return self.after_call({name: options[name] for name in ("link", "chain") if name in options}, ends, group_id)

    def _all(self, signatures: Any, needs: Ends, group_id: str | None) -> Ends:
        return tuple(end for member in _signatures(signatures) for end in self.visit(member, needs, group_id))

    def _call(self, signature: Signature, needs: Ends, group_id: str | None) -> Ends:
        options = signature.get("options") or {}
        task_id = _text(options.get("task_id"))
        if task_id is None:
            return needs
        known = self.calls.get(task_id)
        if known is not None:
            self.calls[task_id] = replace(known, needs=tuple(dict.fromkeys((*known.needs, *needs))))
            return (task_id,)
        if len(self.calls) >= self._most:
            return needs
        group_id = _text(options.get("group_id")) or group_id
        task, args = str(signature.get("task")), tuple(signature.get("args") or ())
        self.calls[task_id] = Call(task_id, task, args, signature.get("kwargs") or {}, options, needs, group_id)
        return self.after_call(options, (task_id,), group_id)


def _signatures(value: Any) -> list[Signature]:
    if isinstance(value, Mapping):
        return [value]
    return [item for item in value or () if isinstance(item, Mapping)] if isinstance(value, list | tuple) else []


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
