"""The OpenAPI document: valid, and true."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from lengths import FULL
from serving.support import Server

from kserve.serving.problems import KINDS
from kserve.serving.routes import table

DOCS = Path(__file__).parents[2] / "docs" / "http-api.md"


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    return dict(server.get("/openapi.json").json())


def test_is_valid(document: dict[str, Any]) -> None:
    pytest.importorskip("openapi_spec_validator").validate(document)


def test_has_every_route_and_no_other(server: Server, document: dict[str, Any]) -> None:
    served = {
        (resource.canonical, route.method)
        for resource in server.runner.app.router.resources()
        for route in resource
        if route.method != "*"
    }
    described = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    api = {(path, method) for path, method in served if not path.startswith(("/status", "/console", "/metrics"))}
    assert api - described == {("/openapi.json", "GET"), ("/openapi.json", "HEAD")}
    assert described <= served


def test_limits_are_those_of_the_server(server: Server, document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    assert schemas["BatchRequest"]["properties"]["ids"]["maxItems"] == server.settings.batch_limit
    assert schemas["Rule"]["additionalProperties"] is False


def test_docs_name_every_route_and_every_problem() -> None:
    text = DOCS.read_text()
    for route in table():
        assert f"{route.method} {route.path}" in text
    assert set(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == set(KINDS)


@pytest.mark.heavy
@pytest.mark.drill
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_schemathesis(server: Server, document: dict[str, Any], mode: str) -> None:
    """Everything that the document allows, and much that it does not, is answered as it says."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.specs.openapi import checks

    # JSON Schema cannot say that an id is below 2^64, or that a rule makes sense; and an id that is none is an item of
    # a batch all the same.
    beyond_schemas = [checks.positive_data_acceptance, checks.negative_data_rejection]
    url = f"http://127.0.0.1:{server.port}"

    def check(case: Any) -> None:
        case.call_and_validate(base_url=url, excluded_checks=beyond_schemas)

    for operation in schemathesis.openapi.from_dict(document).get_all_operations():
        cases = operation.ok().as_strategy(generation_mode=schemathesis.GenerationMode(mode))
        run = settings(max_examples=100 if FULL else 30, suppress_health_check=list(HealthCheck))(
            given(case=cases)(check)
        )
        with contextlib.suppress(Unsatisfiable):  # nothing in a request without parameters can be wrong
            run()
