"""GET /openapi.json, made from the table of routes and the models, so that it says what the server does."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

from kserve.records import NETWORKS
from kserve.rule import Rule
from kserve.serving.models import EligibilityRequest, ProblemDocument
from kserve.serving.problems import KINDS
from kserve.serving.routes import MAX_TOPICS_PER_PAGE, TOPICS_PER_PAGE, Route
from kserve.settings import Settings

_REF = "#/components/schemas/{name}"
_EVERYWHERE = ("malformed-request", "expectation-failed", "headers-too-large", "internal", "bad-snapshot")
_WITH_A_KEY = ("unauthorized", "forbidden", "rate-limited", "quota-exhausted", "too-many-failures", "not-ready")
_LIMITS = ("RateLimit-Policy", "RateLimit", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset")
_WAITING = (429, 503)
"""Statuses that come with Retry-After."""

_PARAMETERS: dict[str, dict[str, Any]] = {
    "id": {"schema": {"type": "string", "pattern": "^(0|[1-9][0-9]{0,19})$"}, "example": "42"},
    "network": {"schema": {"type": "string", "enum": list(NETWORKS)}},
    "key": {"schema": {"type": "string", "minLength": 1}, "description": "an id or a name on the network"},
    "slug": {"schema": {"type": "string", "minLength": 1}},
}

_QUERY: dict[str, list[dict[str, Any]]] = {
    "/v3/identities/{network}/{key}": [
        {
            "name": "by",
            "schema": {"type": "string", "enum": ["id", "name"]},
            "description": "without it: id, then name",
        },
    ],
    "/v3/topics": [
        {"name": "after", "schema": {"type": "string"}, "description": "the slug that the page comes after"},
        {
            "name": "limit",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_TOPICS_PER_PAGE, "default": TOPICS_PER_PAGE},
        },
    ],
}

_BINARY = {
    "/v3/scores/batch": (
        "profile ids, 8 bytes each: unsigned, little-endian",
        "a record of 10 bytes for each id, little-endian: uint16 score in hundredths (65535: unscored, 65534: no such "
        "profile), int16 day, week and month change in hundredths (-32768: not known), uint8 status (0: no such "
        "profile, 1: unscored, 2: scored), a zero byte",
    ),
}
"""What goes in and out as bytes, of routes that take them too."""


def document(routes: tuple[Route, ...], settings: Settings, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these routes. ``version`` is the program's."""
    models = (
        [route.answer for route in routes] + [route.body for route in routes if route.body] + [ProblemDocument, Rule]
    )
    _, schemas = msgspec.json.schema_components(models, ref_template=_REF)
    _tighten(schemas, settings)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operations = paths.setdefault(route.path, {})
        operations[route.method.lower()] = _operation(route) | _security(route, settings)
        if route.method == "GET":
            operations["head"] = _operation(route, head=True) | _security(route, settings)
    return {
        "openapi": "3.1.0",
        "info": {"title": "kserve", "version": version, "description": "Scores, profiles, identities and eligibility."},
        "paths": paths,
        "components": {
            "schemas": msgspec.to_builtins(schemas),
            "headers": _HEADERS,
            "securitySchemes": _SCHEMES,
        },
    }


def _security(route: Route, settings: Settings) -> dict[str, Any]:
    """In which ways a key may be given, and which scope it needs; none of them, where none is needed."""
    if route.access.scope is None:
        return {}
    ways: list[dict[str, list[str]]] = [{name: [route.access.scope]} for name in _SCHEMES]
    return {"security": [*ways, {}] if settings.open else ways}


def _tighten(schemas: dict[str, Any], settings: Settings) -> None:
    """Say what the types cannot: the limits of this server, and that a rule has no other criteria."""
    ids = {"type": "array", "items": {"type": "string"}, "maxItems": settings.batch_limit}
    for name in ("BatchRequest", EligibilityRequest.__name__):
        schemas[name]["properties"]["ids"] = ids
    schemas["EligibilityRequest"]["properties"]["rule"] = {"$ref": _REF.format(name="Rule")}
    schemas["Rule"]["additionalProperties"] = False
    schemas["Rule"]["description"] = inspect.cleandoc(Rule.__doc__ or "").partition("\n\nRaises")[0]


def _operation(route: Route, head: bool = False) -> dict[str, Any]:
    summary = inspect.cleandoc(route.answer.__doc__ or "").partition("\n")[0]
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{'head' if head else route.method.lower()}{route.path}").strip("_"),
        "summary": summary,
        "parameters": _parameters(route.path),
        "responses": _responses(route, head),
    }
    if route.body is not None:
        schema = {"$ref": _REF.format(name=route.body.__name__)}
        content = {"application/json": {"schema": schema}, **_bytes(route.path, 0)}
        operation["requestBody"] = {"required": True, "content": content}
        operation["responses"]["200"]["content"] |= _bytes(route.path, 1)
    return operation


def _bytes(path: str, which: int) -> dict[str, Any]:
    if path not in _BINARY:
        return {}
    schema = {"type": "string", "format": "binary", "description": _BINARY[path][which]}
    return {"application/octet-stream": {"schema": schema}}


def _parameters(path: str) -> list[dict[str, Any]]:
    in_path = [
        {"name": name, "in": "path", "required": True, **_PARAMETERS[name]} for name in re.findall(r"\{(\w+)\}", path)
    ]
    return in_path + [{"in": "query", **parameter} for parameter in _QUERY.get(path, [])]


def _responses(route: Route, head: bool) -> dict[str, Any]:
    names = ("Kserve-Version", "X-Request-Id", "Cache-Control")
    told = _headers(*names, *(_LIMITS if route.access.scope is not None else ()))
    tagged = told | _headers("ETag") if route.cached else told
    responses: dict[str, Any] = {
        "200": _response("the answer", tagged, None if head else "application/json", route.answer.__name__)
    }
    if route.cached:
        responses["304"] = _response("what If-None-Match names is still so", _headers(*names, "ETag"), None, "")
    for status, titles in sorted(_titles(_problems(route)).items()):
        media = None if head else "application/problem+json"
        headers = told | _headers("Retry-After") if status in _WAITING else told
        responses[str(status)] = _response("; ".join(titles), headers, media, "ProblemDocument")
    return responses


def _problems(route: Route) -> tuple[str, ...]:
    access = route.access
    keyed = _WITH_A_KEY if access.scope is not None else ()
    costly = ("over-burst",) if access.scope is not None and not access.flat else ()
    shed = ("overloaded",) if access.klass is not None else ()
    return (*route.problems, *keyed, *costly, *shed, *_EVERYWHERE)


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _titles(slugs: tuple[str, ...]) -> dict[int, list[str]]:
    titles: dict[int, list[str]] = {}
    for slug in dict.fromkeys(slugs):
        kind = KINDS[slug]
        titles.setdefault(kind.status, []).append(f"{slug}: {kind.title}")
    return titles


def _response(description: str, headers: dict[str, Any], media: str | None, model: str) -> dict[str, Any]:
    content = {} if media is None else {"content": {media: {"schema": {"$ref": _REF.format(name=model)}}}}
    return {"description": description, "headers": headers, **content}


_TEXT = {"schema": {"type": "string"}}
_HEADERS = {
    "Kserve-Version": {"description": "the snapshot version of the answer", **_TEXT},
    "X-Request-Id": {"description": "the request's own X-Request-Id if it is well-formed, else a new one", **_TEXT},
    "Cache-Control": {"description": "how long the answer may be kept", **_TEXT},
    "ETag": {"description": "for If-None-Match", **_TEXT},
    "Retry-After": {"description": "seconds after which to ask again", **_TEXT},
    "RateLimit-Policy": {"description": "the key's limits; none without a key", **_TEXT},
    "RateLimit": {"description": "what is left of them, and when they are whole again", **_TEXT},
    "X-RateLimit-Limit": {"description": "tokens of a burst", **_TEXT},
    "X-RateLimit-Remaining": {"description": "tokens that are left", **_TEXT},
    "X-RateLimit-Reset": {"description": "seconds since 1970 when the burst is whole again", **_TEXT},
}
_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
    "query": {"type": "apiKey", "in": "query", "name": "key", "description": "only where no header can be set"},
}
