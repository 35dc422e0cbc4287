"""The OpenAPI document: FastAPI's, with who may call what."""

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts

from orchestrator.api import problems
from orchestrator.api.guard import OPEN_PATHS, needed
from orchestrator.api.links import add_links

SCHEME: Final = "token"
ROLES: Final = "Bearer token of the installation, or one made by `POST /tokens`. Roles: `x-role` of an operation."


def described(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return what replaces ``app.openapi``: it is made once, when it is first asked for."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = plain()
            _complete(app, document)
            app.openapi_schema = document
        return app.openapi_schema

    return openapi


def _complete(app: FastAPI, document: dict[str, Any]) -> None:
    document.setdefault("components", {}).setdefault("schemas", {})["Problem"] = problems.SCHEMA
    schemes = document["components"].setdefault("securitySchemes", {})
    schemes[SCHEME] = {"type": "http", "scheme": "bearer", "description": ROLES}
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if not isinstance(route, APIRoute) or context.path in OPEN_PATHS:
            continue
        for method in route.methods or ():
            operation = document["paths"][context.path][method.lower()]
            operation["security"] = [{SCHEME: []}]
            operation["x-role"] = needed(route, method).role.value
    add_links(document)
