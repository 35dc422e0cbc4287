"""The API's reference for people, docs/api-reference.md, out of its description."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

PATH: Final = Path(__file__).parents[2] / "docs" / "api-reference.md"
HEAD: Final = """# API reference

Every operation of the HTTP API, made from [openapi.json](openapi.json) by `make openapi`; what holds for all of them
is in [api.md](api.md). A field or parameter marked `*` must be given; others need not be, and are what stands behind
`=` then. Every operation but those of health answers problems as well: 400, 401, 403, 404, 408, 413, 422, 429, 503,
and what else its line names."""
_COMMON: Final = frozenset({"400", "401", "403", "404", "408", "413", "422", "429", "503"})
#: Of what a type bounds: lowest, highest, and the word for it.
_BOUNDS: Final = (
    ("minimum", "maximum", ""),
    ("minLength", "maxLength", " characters"),
    ("minItems", "maxItems", " of them"),
)
#: Bodies that are parts of others.
PARTS: Final = frozenset({"AlternativeBody"})
#: Longest list of values that is written out.
MOST_VALUES: Final = 12


def reference_text(document: Mapping[str, Any]) -> str:
    """Return the reference of a description."""
    return "\n".join([HEAD, *_operations(document), "", "## What is answered", "", *_answers(document)]) + "\n"


def _operations(document: Mapping[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation.get("tags", ["health"])[0], []).append((method, path, operation))
    for tag, operations in by_tag.items():
        yield f"\n## {tag.capitalize()}"
        for method, path, operation in operations:
            yield f"\n### `{method.upper()} {path}`\n"
            yield _sentences(operation.get("description", operation["summary"]))
            yield f"Role: {operation.get('x-role', 'none')}. Answers {_answered(operation)}."
            rows = [*_parameters(document, operation), *_body(document, operation)]
            if rows:
                yield "\n| | type | |\n| --- | --- | --- |"
                yield from rows


def _sentences(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _answered(operation: Mapping[str, Any]) -> str:
    told = []
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        if status.startswith("2"):
            kinds = [_name(one["schema"]) for kind, one in content.items() if "json" in kind]
            kinds += [f"`{kind}`" for kind in content if "json" not in kind]
            told.append(f"{status} {' or '.join(kinds)}".rstrip())
        elif status not in _COMMON:
            told.append(status)
    return ", ".join(told)


def _parameters(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    for one in operation.get("parameters", ()):
        mark = "*" if one["required"] and one["in"] != "path" else ""
        said = one.get("description", one["schema"].get("description", ""))
        said = f"Deprecated. {said}" if one.get("deprecated") else said
        kind = _type(document, one["schema"]).removesuffix(" or null") + _default(one["schema"])
        yield f"| `{one['name']}`{mark} ({one['in']}) | {kind} | {_cell(said)} |"


def _body(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
    if schema is None:
        return
    many = " or a list of such" if any(one.get("type") == "array" for one in schema.get("oneOf", ())) else ""
    body = _resolved(document, next(iter(schema.get("oneOf", [schema]))))
    if many:
        yield f"| body | {body['title']}{many} | |"
    for name, field in body["properties"].items():
        mark = "*" if name in body.get("required", ()) else ""
        kind = _type(document, field) + _default(field)
        yield f"| `{name}`{mark} | {kind} | {_cell(field.get('description', ''))} |"


def _default(schema: Mapping[str, Any]) -> str:
    return f", `= {json.dumps(schema['default'])}`" if schema.get("default") not in (None, [], {}) else ""


def _answers(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield each kind of answer with its fields."""
    kinds = {
        name: schema
        for name, schema in document["components"]["schemas"].items()
        if "properties" in schema and (not name.endswith("Body") or name in PARTS)
    }
    for name, schema in sorted(kinds.items()):
        fields = ", ".join(f"`{field}` {_type(document, kind)}" for field, kind in schema["properties"].items())
        yield f'- <a id="{name.lower()}"></a>**{name}**: {fields}'


def _type(document: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Return what a value is, with its bounds."""
    if "$ref" in schema:
        found = _resolved(document, schema)
        return _values(found["enum"]) if "enum" in found else _name(schema)
    if "anyOf" in schema or "oneOf" in schema:
        bounds = {name: schema[name] for names in _BOUNDS for name in names if name in schema}
        kinds = [
            _type(document, one | (bounds if one.get("type") != "null" else {}))
            for one in schema.get("anyOf", schema.get("oneOf"))
        ]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema:
        return _values(schema["enum"])
    if "const" in schema:
        return _values([schema["const"]])
    kind = schema.get("format") or schema.get("type", "anything")
    if kind == "array":
        inner = _type(document, schema.get("items", {}))
        kind = f"list of ({inner})" if " " in inner else f"list of {inner}"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        kind = f"object of {_type(document, schema['additionalProperties'])}"
    return ", ".join([kind, *_bounds(schema)])


def _bounds(schema: Mapping[str, Any]) -> Iterator[str]:
    for lowest, highest, word in _BOUNDS:
        low, high = schema.get(lowest), schema.get(highest)
        if lowest == "minimum" and "exclusiveMinimum" in schema:
            yield f"more than {_number(schema['exclusiveMinimum'])}"
        if low is not None and high is not None:
            yield f"{_number(low)} to {_number(high)}{word}"
        elif low is not None or high is not None:
            yield f"at {'least' if high is None else 'most'} {_number(low if high is None else high)}{word}"


def _values(values: list[Any]) -> str:
    shown = [f"`{value}`" for value in values[:MOST_VALUES]]
    return " ".join(shown) + (" …" if len(values) > MOST_VALUES else "")


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_name(one) for one in schema["anyOf"]))
    return f"list of {_name(schema['items'])}" if schema.get("type") == "array" else schema.get("type", "JSON")


def _resolved(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: Mapping[str, Any] = document["components"]["schemas"][name] if name else schema
    return found


def _cell(text: str) -> str:
    return _sentences(text).replace("|", "\\|")
