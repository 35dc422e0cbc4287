"""What an answer leads to: OpenAPI links from an answer that names something to the operations on it."""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple


class _Origin(NamedTuple):
    """Where a name of something is told: in the answer of which operation, and where in it."""

    path: str
    method: str
    status: str
    pointer: str


#: By the path of the thing itself.
ORIGINS: Final = {
    "/jobs/{job_id}": (
        _Origin("/jobs/submit", "post", "201", "/id"),
        _Origin("/jobs", "get", "200", "/jobs/0/id"),
    ),
    "/dlq/{job_id}": (_Origin("/dlq", "get", "200", "/dead_letters/0/id"),),
    "/queues/{name}": (_Origin("/queues", "get", "200", "/queues/0/name"),),
    "/nodes/{name}": (_Origin("/nodes", "get", "200", "/nodes/0/name"),),
    "/tokens/{name}": (
        _Origin("/tokens", "post", "201", "/name"),
        _Origin("/tokens", "get", "200", "/tokens/0/name"),
    ),
    "/leases/{token}": (_Origin("/leases", "post", "201", "/token"),),
    "/pools/{name}": (
        _Origin("/pools", "post", "201", "/name"),
        _Origin("/pools", "get", "200", "/pools/0/name"),
    ),
    "/gpus/{uuid}": (_Origin("/gpus", "get", "200", "/gpus/0/uuid"),),
    "/control/sweeps/{name}": (_Origin("/control/sweeps", "get", "200", "/sweeps/0/name"),),
}


def add_links(document: dict[str, Any]) -> None:
    """Add links to an OpenAPI document; an operation on something gets one from each answer that names such a thing."""
    for thing, operation in _on_things(document):
        parameter = thing[thing.rindex("{") + 1 : -1]
        for origin in ORIGINS[thing]:
            answer = document["paths"][origin.path][origin.method]["responses"][origin.status]
            link = {
                "operationId": operation["operationId"],
                "parameters": {f"path.{parameter}": f"$response.body#{origin.pointer}"},
            }
            answer.setdefault("links", {})[operation["operationId"]] = link


def _on_things(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        if "}" not in path:
            continue
        thing = path[: path.index("}") + 1]
        if thing not in ORIGINS:
            raise LookupError(f"{path}: say in ORIGINS which answers name such a thing")
        for operation in methods.values():
            yield thing, operation
