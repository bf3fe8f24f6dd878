"""What the service takes and answers, for /openapi.json and as the page /docs, which needs nothing from elsewhere.

No package of the environment brings the scripts of Swagger UI along, and a hospital's network brings none either; so
the page is a plain listing made of the same JSON, with an example for every operation.
"""

from __future__ import annotations

import html
import json
import re
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from models.task import Task
from pipelines import serving_wire as wire
from pipelines.serving_wire import IMAGE_TYPES, ImageQuery, PredictBody

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'"

LOG = {"log": "reachable", "spool_bytes": 0}
ALIVE = {"status": "alive"} | LOG
READY = {"status": "ready", "model_version": 3, "registry": "reachable", "refused": None} | LOG
METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"example": "# TYPE fedloop_requests_total counter\n"}}}
}
STORED = {"prediction_id": "b0f3…", "status": "stored"}
FEEDBACK = {
    "requestBody": {
        "content": {"application/json": {"example": {"prediction_id": "b0f3…", "label": "7", "source": "clinic"}}}
    }
}
_REFUSED = {"error": {"code": "too_fast", "message": "token 'a' may ask 5 rows a second; …", "request_id": "5f1c…"}}
_ERRORS = {
    "400": "the body cannot be read", "401": "no valid token", "403": "not this token's scope or site",
    "404": "there is no such thing", "405": "another method", "409": "it contradicts what was said before",
    "413": "too large", "415": "another content type", "422": "not understood, with the reason",
    "429": "too fast, or the day's budget is spent: Retry-After says when", "503": "not now: Retry-After says when",
}  # fmt: skip


def ok(example: Any) -> dict[int | str, dict[str, Any]]:
    """The answer 200 with an example, for FastAPI's `responses`."""
    return {200: {"content": {"application/json": {"example": example}}}}


def model(task: Task) -> dict[str, Any]:
    """An example of /model."""
    shape = {"height": task.input.height, "width": task.input.width, "channels": task.input.channels}
    about = {"name": task.name, "version": 3, "since": 1.8e9, "tags": {}, "classes": task.classes, "input": shape}
    return about | {"registry": "reachable", "refused": None}


def answers(task: Task, many: bool = False) -> dict[int | str, dict[str, Any]]:
    """An example of a prediction's answer."""
    share = round(0.3 / max(1, len(task.classes) - 1), 6)
    one = {
        "prediction_id": "b0f3…", "request_id": "scan-17", "prediction": 0, "class": task.classes[0],
        "abstained": None, "confidence": 0.7,
        "probabilities": [0.7] + [share] * (len(task.classes) - 1), "model_version": 3,
    }  # fmt: skip
    return ok({"predictions": [one]} if many else one)


def add_hot_paths(app: FastAPI, task: Task) -> None:
    """Let app.openapi() also describe what `serving_hot.py` answers, tokens, and every refusal."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, description=_ABOUT, routes=app.routes)
            schema = PredictBody.model_json_schema(ref_template="#/components/schemas/{model}")
            made["components"]["schemas"] |= schema.pop("$defs")
            made["paths"] = _hot_paths(task, schema) | made["paths"]
            _finish(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


_ABOUT = (
    "Predictions that stand in the log before they are answered. A request id names one prediction of its site: sent "
    "again, it gets the same answer. With tokens defined, send one as `Authorization: Bearer …`."
)


def _hot_paths(task: Task, schema: dict[str, Any]) -> dict[str, Any]:
    picture = np.full(task.input.shape, 0.5).squeeze().tolist()
    example = {"site": "clinic-1", "request_id": "scan-17", "pixels": picture}
    said = {"200": {"description": "The prediction", "content": answers(task)[200]["content"]}}
    file = {"schema": {"type": "string", "format": "binary"}}
    return {
        "/predict": {
            "post": {
                "summary": "Predict",
                "description": "One image (`pixels`) or several (`instances`), taken whole or refused whole.",
                "operationId": "predict",
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": schema, "example": example}},
                },
                "responses": said,
            }
        },
        "/predict/image": {
            "post": {
                "summary": "Predict an image file",
                "description": "One image file, sent as the body.",
                "operationId": "predict_image",
                "requestBody": {"required": True, "content": dict.fromkeys(IMAGE_TYPES, file)},
                "responses": said,
            }
            | wire.described(ImageQuery)
        },
    }


def _finish(made: dict[str, Any]) -> None:
    """Every operation names its refusals, and all but the open ones their token."""
    made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    schema = {"type": "object", "properties": {"error": {"type": "object"}}, "required": ["error"]}
    for path, operations in made["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in ("/healthz", "/readyz") else [{"token": []}, {}]
            for status, words in _ERRORS.items():
                content = {"application/json": {"schema": schema, "example": _REFUSED}}
                operation["responses"][status] = {"description": words, "content": content}


def page(made: dict[str, Any]) -> str:
    """The listing, HTML."""
    parts = [f"<h1>{html.escape(made['info']['title'])}</h1><p>{_words(made['info'].get('description', ''))}</p>"]
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts.append(f"<p>{_words(operation.get('description') or operation.get('summary', ''))}</p>")
            rows = [_parameter(each) for each in operation.get("parameters", [])]
            parts.append(f"<table>{''.join(rows)}</table>" if rows else "")
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                parts.append(f"<p>takes <code>{html.escape(kind)}</code></p>{_example(content)}")
            for kind, content in operation["responses"].get("200", {}).get("content", {}).items():
                parts.append(f"<p>answers <code>{html.escape(kind)}</code></p>{_example(content)}")
    refusals = "".join(f"<tr><td>{status}</td><td>{html.escape(words)}</td></tr>" for status, words in _ERRORS.items())
    parts.append(f"<h2>Refusals</h2><table>{refusals}</table>{_example({'example': _REFUSED})}")
    parts.append('<p>The same for programs: <a href="/openapi.json">/openapi.json</a></p>')
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>fedloop</title><style>{_STYLE}</style>"
    return head + "".join(parts)


def _parameter(each: dict[str, Any]) -> str:
    words = each.get("description") or each.get("schema", {}).get("description", "")
    need = "" if each.get("required") else "optional"
    return f"<tr><td><code>{html.escape(each['name'])}</code></td><td>{need}</td><td>{_words(words)}</td></tr>"


def _words(text: str) -> str:
    """A sentence; what stands between backticks is code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _example(content: dict[str, Any]) -> str:
    if "example" not in content:
        return ""
    text = (
        content["example"]
        if isinstance(content["example"], str)
        else json.dumps(content["example"], ensure_ascii=False)
    )
    return f"<pre>{html.escape(text if len(text) < 600 else text[:600] + ' …')}</pre>"


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{background:#f4f4f4;padding:.6rem;white-space:pre-wrap;overflow-wrap:anywhere}h2{margin-top:2rem;font-size:1rem}"
    "td{padding:.1rem .8rem .1rem 0;vertical-align:top}"
)
