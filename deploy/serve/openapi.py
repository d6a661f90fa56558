"""The OpenAPI 3.1 document of ``streamgru serve``, from its routes and types."""

from importlib.metadata import version
from typing import Any, Final

import msgspec

from deploy.serve import answers
from deploy.serve.routes import ROUTES, Committed, Route
from pipeline.messages import Forecast

_REFERENCE: Final = "#/components/schemas/{name}"
_PROBLEMS: Final = {
    401: "a token is needed",
    403: "another host or another site",
    404: "not found",
    422: "a parameter is invalid",
    503: "no broker answers, or no stream is free",
}


def document() -> dict[str, Any]:
    """The document; every route of ``ROUTES`` is in it."""
    types = [answers.Problem]
    for route in ROUTES:
        types += [kind for kind in (_answer_type(route), route.body, *route.events.values()) if kind is not None]
    _, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamgru serve",
            "version": version("streamgru"),
            "description": "The live stream, as a read-only process sees it.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "cookie": {"type": "apiKey", "in": "cookie", "name": "streamgru_session"},
            },
        },
        "security": [{}, {"token": []}, {"cookie": []}],
    }


def _answer_type(route: Route) -> Any:
    return Forecast if route.answer is Committed else route.answer


def _reference(kind: Any) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=kind.__name__)}


def _operation(route: Route) -> dict[str, Any]:
    problem = _reference(answers.Problem)
    good: dict[str, Any] = {"description": route.summary}
    if route.answer is not None:
        good["content"] = {route.media_type: {"schema": _reference(_answer_type(route))}}
    elif route.events:
        data = [_reference(kind) for kind in route.events.values()]
        text = f"data of the events {', '.join(route.events)}, in this order of types"
        good["content"] = {route.media_type: {"schema": {"oneOf": data, "description": text}}}
    elif route.method == "get":
        good["content"] = {route.media_type: {}}
    if route.headers:
        good["headers"] = {
            name: {"description": text, "schema": {"type": "integer"}} for name, text in route.headers.items()
        }
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method}{route.path}".replace("/", "_").replace(".", "_").replace("-", "_"),
        "parameters": _parameters(route),
        "responses": {
            "200" if route.method == "get" else "204": good,
            **{
                str(status): {"description": _PROBLEMS[status], "content": {"application/json": {"schema": problem}}}
                for status in route.problems
            },
        },
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _reference(route.body)}},
        }
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    (schema,), components = msgspec.json.schema_components([route.query], ref_template=_REFERENCE)
    properties = components[route.query.__name__].get("properties", {})
    required = components[route.query.__name__].get("required", [])
    assert "$ref" in schema
    found = []
    for name, rule in properties.items():
        rule = dict(rule)
        parameter = {"name": name, "in": "query", "required": name in required, "schema": rule}
        if text := rule.pop("description", ""):
            parameter["description"] = text
        found.append(parameter)
    return found
