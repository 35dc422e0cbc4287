"""Jobs as the trees that their canvases are: who was called by whom, who waits for whom."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias

from orchestrator.client import Client
from orchestrator_cli import show

Document: TypeAlias = Mapping[str, Any]
#: Members of a canvas that are shown.
MOST_MEMBERS: Final = 500
#: A line: what stands before the job, and the job; or, for a root or group that is no job, its words and None.
Line: TypeAlias = tuple[str, Document | None]


def with_canvases(client: Client, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the jobs with all members of their canvases, newest first, each canvas where its newest job was."""
    roots = list(dict.fromkeys(job["root"] or job["id"] for job in jobs))
    in_canvas = {job["root"] for job in jobs if job["root"]}
    found = {job["id"]: job for job in jobs}
    members = {root: client.jobs(root=root, limit=MOST_MEMBERS)["jobs"] for root in roots if root in in_canvas}
    return [job for root in roots for job in members.get(root) or [found[root]]]


def show_tree(jobs: Sequence[Document]) -> None:
    """Print the trees as a table."""
    show.table(
        ["JOB", "NAME", "STATE", "GPUS", "NODE", "TRY", "RUN", "AGE", "WAITS FOR"],
        (
            [
                place + job["id"],
                job["name"],
                job["state"],
                show.gpus(job),
                job["node"],
                job["attempt"] or None,
                show.run_time(job),
                show.age(job["created_at"]),
                f"{len(job['needs'])} tasks" if len(job["needs"]) > 1 else "1 task" if job["needs"] else None,
            ]
            if job is not None
            else [place, *[""] * 8]
            for place, job in tree_lines(jobs)
        ),
        can_go=("NODE", "TRY", "GPUS", "RUN", "WAITS FOR"),
    )


def tree_lines(jobs: Sequence[Document]) -> Iterator[Line]:
    """Yield the jobs, newest canvas first and within one oldest first, each behind its place in the tree."""
    by_id = {job["id"]: job for job in jobs}
    canvases: dict[str, list[Document]] = {}
    for job in jobs:  # newest first
        canvases.setdefault(job["root"] or job["id"], []).insert(0, job)
    for root, members in canvases.items():
        if root in by_id and by_id[root] not in members:
            members.insert(0, by_id[root])
        if len(members) == 1 and members[0]["id"] == root:
            yield "", members[0]
        else:
            yield from _canvas(root, members)


def _canvas(root: str, members: Sequence[Document]) -> Iterator[Line]:
    children: dict[str | None, list[Document]] = defaultdict(list)
    known = {job["id"] for job in members}
    for job in members:
        children[_above(job, known)].append(job)
    if root in known:
        tops = children.pop(None)
        first = next(job for job in tops if job["id"] == root)
        children[root] += [job for job in tops if job is not first]
        yield "", first
        yield from _below(root, children, "")
        return
    group = any(job["group"] == root for job in members)
    yield f"{'group' if group else 'task'} {root}", None
    children[root] = children.pop(None, [])
    yield from _below(root, children, "")


def _above(job: Document, known: set[str]) -> str | None:
    """Return the job under which this one is drawn."""
    candidates = [job["parent"], *(need["id"] for need in job.get("needs") or ())]
    return next((one for one in candidates if one in known and one != job["id"]), None)


def _below(job_id: str, children: Mapping[str | None, list[Document]], indent: str) -> Iterator[Line]:
    under = children.get(job_id, [])
    for place, child in enumerate(under):
        last = place == len(under) - 1
        yield f"{indent}{'└─ ' if last else '├─ '}", child
        yield from _below(child["id"], children, indent + ("   " if last else "│  "))
