"""Every text that the API takes has a bound, and the description says so: clients and fuzzers go by it."""

import json
from collections.abc import Iterator
from typing import Any, Final

from tests.support.openapi import PATH

DOCUMENT: Final[dict[str, Any]] = json.loads(PATH.read_text())
BOUNDS: Final = frozenset({"maxLength", "enum", "const", "format", "pattern"})
#: What a program is given is bounded as a whole, by ``max_payload_bytes``.
OF_THE_PAYLOAD: Final = frozenset({"SubmitBody.argv[]", "SubmitBody.env{}"})


def test_every_text_of_a_path_a_query_or_a_header_is_bounded() -> None:
    parameters = [
        (f"{method} {path} {parameter['name']}", parameter["schema"])
        for path, operations in DOCUMENT["paths"].items()
        for method, operation in operations.items()
        for parameter in operation.get("parameters", ())
    ]
    assert len(parameters) > 50
    assert [where for name, schema in parameters for where in unbounded(name, schema)] == []


def test_every_text_of_a_body_is_bounded() -> None:
    bodies = [
        operation["requestBody"]
        for operations in DOCUMENT["paths"].values()
        for operation in operations.values()
        if "requestBody" in operation
    ]
    names = sorted({name for body in bodies for name in named(body)})
    assert {"SubmitBody", "LeaseBody", "PoolBody"} <= set(names)
    schemas = DOCUMENT["components"]["schemas"]
    assert {where for name in names for where in unbounded(name, schemas[name])} == OF_THE_PAYLOAD


def unbounded(where: str, schema: dict[str, Any]) -> Iterator[str]:
    """Yield where texts of any length are taken."""
    if schema.get("type") == "string" and not BOUNDS & schema.keys():
        yield where
    for choice in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from unbounded(where, choice)
    if "items" in schema:
        yield from unbounded(f"{where}[]", schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        yield from unbounded(f"{where}{{}}", schema["additionalProperties"])
    for name, inner in schema.get("properties", {}).items():
        yield from unbounded(f"{where}.{name}", inner)


def named(part: Any) -> Iterator[str]:
    """Yield the names of the schemas that a part of the document refers to, and those that they refer to."""
    if isinstance(part, dict):
        if "$ref" in part:
            name = part["$ref"].rpartition("/")[2]
            yield name
            yield from named(DOCUMENT["components"]["schemas"][name])
        for inner in part.values():
            yield from named(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from named(inner)
