"""What `/openapi.json` says, where FastAPI by itself would say less than is true, or more."""

from __future__ import annotations

from typing import Any, cast

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from jobs.api.wire import ErrorAnswer

_UNUSED = ("HTTPValidationError", "ValidationError")
_RETRY_AFTER = {
    "Retry-After": {"description": "Ask again in so many seconds.", "schema": {"type": "integer"}}
}
_TOLD_WHEN = (429, 503)


def document_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what OpenAPI says of a route's errors."""
    documented: dict[int | str, dict[str, Any]] = {}
    for status in (*statuses, 500, 503):
        documented[status] = {"model": ErrorAnswer}
        if status in _TOLD_WHEN:
            documented[status]["headers"] = _RETRY_AFTER
    return documented


def document_body(body: type[BaseModel], file: str | None = None) -> dict[str, Any]:
    """Return what OpenAPI says of a body; in a form, the property `file` may be one."""
    schema = _inline(body)
    form: Any = {**schema, "properties": {**schema["properties"]}}
    if file:
        form["properties"][file] = {"type": "string", "format": "binary"}
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def describe_app(app: FastAPI) -> dict[str, Any]:
    """Return an application's schema, made once; FastAPI's own 422 is left out: none is given."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        for path in schema["paths"].values():
            for operation in path.values():
                if _UNUSED[0] in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
        for name in _UNUSED:
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema


def _inline(body: type[BaseModel]) -> dict[str, Any]:
    """Return a model's schema with the models that it names in their places."""
    schema = body.model_json_schema(ref_template="{model}")
    parts = schema.pop("$defs", {})

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            found = cast(dict[str, Any], value)
            return (
                parts[found["$ref"]] if "$ref" in found else {k: fill(v) for k, v in found.items()}
            )
        return [fill(each) for each in cast(list[Any], value)] if isinstance(value, list) else value

    return fill(schema)
