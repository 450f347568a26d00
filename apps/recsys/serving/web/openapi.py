"""The server's own description in the form of OpenAPI 3.1, made from its table of routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from apps.recsys.serving.web.routes import ROUTES, Route
from common import __version__

REF = "#/components/schemas/{name}"


class Named(Struct):
    """An item and what it added to a score."""

    id: str | int
    title: str
    score: float


class Item(Named):
    """An item of a list; with ``explain`` what the history's items added to its score."""

    because: list[Named] | msgspec.UnsetType = msgspec.UNSET
    others: float | msgspec.UnsetType = msgspec.UNSET


class List(Struct):
    """A list, the best item first."""

    items: list[Item]
    fallback: str | msgspec.UnsetType = msgspec.UNSET
    """``popular`` where nothing is known of the user: the scores are then numbers of users."""


class OneOfLists(List):
    """A list of several."""

    user: str | msgspec.UnsetType = msgspec.UNSET


class Lists(Struct):
    """Lists of the users and then of the histories, in the order of the question."""

    lists: list[OneOfLists]


class Health(Struct):
    """The model in short."""

    status: str
    kind: str
    users: int
    items: int
    factors: int


class Status(Struct):
    """A word."""

    status: str


class Problem(Struct):
    """Why there is no answer."""

    detail: str


class Part(Struct):
    """A term of the plan."""

    name: str
    bytes: int


class Memory(Struct):
    """The ceiling, what was predicted, what is held now, and the terms of the prediction."""

    ceiling_bytes: int
    predicted_bytes: int
    resident_bytes: int
    terms: list[Part]


class Field(Struct):
    """An attribute of the items."""

    name: str
    kind: str


class Counted(Struct):
    """Events of feedback: how many count, how many may, and how many are of items that the model does not have."""

    events: int
    most: int
    skipped: int


class Taken(Struct):
    """Events that are new, those that were there before, and all since the model was made."""

    accepted: int
    duplicates: int
    events: int


class Model(Health):
    """The model that is served."""

    version: str
    changes: int
    refused: str
    interactions: int
    hyper: dict[str, Any]
    made_by: str
    attributes: list[Field]
    feedback: Counted | None
    memory: Memory


SHAPES: Mapping[str, type[Struct]] = {one.__name__: one for one in (List, Lists, Health, Status, Problem, Model, Taken)}


_ALWAYS = (
    (400, "not HTTP, an address that is too long, or a body that did not arrive"),
    (431, "the header is too large"),
    (503, "too many connections"),
    (422, "the question is not of its form"),
    (401, "the token is missing or wrong"),
    (403, "a page of another host asks"),
    (421, "the server does not have the name that was asked for"),
)
"""Statuses of every route."""


def document() -> dict[str, Any]:
    """Make the document."""
    bodies = [route.body for route in ROUTES if route.body is not None]
    queries = [route.query for route in ROUTES]
    types = list(dict.fromkeys([*SHAPES.values(), *bodies, *queries]))
    _, components = msgspec.json.schema_components(types, ref_template=REF)
    paths: dict[str, Any] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, components)
    asked = {query.__name__ for query in queries}
    return {
        "openapi": "3.1.0",
        "info": {"title": "peakline recsys", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {name: schema for name, schema in components.items() if name not in asked},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route, components: Mapping[str, Any]) -> dict[str, Any]:
    parameters = [] if "{id}" not in route.path else [_parameter("id", "path", {"type": "string"}, required=True)]
    described = components[route.query.__name__]
    for name, schema in described["properties"].items():
        parameters.append(
            _parameter(name, "query", _without_null(schema), required=name in described.get("required", ()))
        )
    answer = {"schema": {"$ref": REF.format(name=route.shape)}} if route.shape in SHAPES else {}
    problem = {"application/json": {"schema": {"$ref": REF.format(name="Problem")}}}
    errors = [*_ALWAYS, *route.statuses]
    if route.body is not None:
        errors.append((413, "the body is too large"))
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()} {route.path}",
        "parameters": parameters,
        "responses": {
            "200": {"description": "the answer", "content": {route.kind.decode().partition(";")[0]: answer}},
            **{str(status): {"description": why, "content": problem} for status, why in sorted(errors)},
        },
    }
    if route.body is not None:
        schema = {"$ref": REF.format(name=route.body.__name__)}
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _parameter(name: str, place: str, schema: Mapping[str, Any], *, required: bool) -> dict[str, Any]:
    parameter: dict[str, Any] = {"name": name, "in": place, "required": required, "schema": schema}
    if schema.get("type") == "array":  # ids separated by commas, or the parameter again
        parameter |= {"style": "form", "explode": True}
    return parameter


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter that may be left out has no null, which JSON would have."""
    kept = {key: value for key, value in schema.items() if not (key == "default" and value is None)}
    if "anyOf" in kept:
        (one,) = [option for option in kept.pop("anyOf") if option != {"type": "null"}]
        kept |= one
    return kept
