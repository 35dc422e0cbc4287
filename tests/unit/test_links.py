"""Links of the OpenAPI document lead from answers that have what they name."""

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.links import ORIGINS

DOCUMENT = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Follow a reference; of alternatives the first object or list is meant."""
    while "$ref" in schema or "anyOf" in schema:
        if "anyOf" in schema:
            schema = next(one for one in schema["anyOf"] if one.get("type") != "null")
        else:
            schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


@pytest.mark.parametrize("origin", [one for found in ORIGINS.values() for one in found], ids=str)
def test_a_link_starts_from_something_that_the_answer_has(origin: Any) -> None:
    answer = DOCUMENT["paths"][origin.path][origin.method]["responses"][origin.status]
    schema = answer["content"]["application/json"]["schema"]
    for part in origin.pointer.strip("/").split("/"):
        schema = resolved(schema)
        schema = schema["items"] if part.isdecimal() else schema["properties"][part]
    assert resolved(schema)["type"] == "string"
