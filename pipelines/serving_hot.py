"""The addresses that nearly all requests go to, with no framework between the door and the batch.

FastAPI's reading of a request takes twice as long as all the rest of a prediction. So `/predict` and `/predict/image`
are plain ASGI applications here; what they take is written down for /openapi.json in `serving_described.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

import orjson
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from models.task import Task
from monitoring.traffic import Prediction
from pipelines import serving_wire as wire
from pipelines.serving_health import VERSION_HEADER
from pipelines.serving_wire import ImageQuery, PredictBody, Refusal, Row

App = Callable[[dict[str, Any], Any, Any], Awaitable[None]]
Predict = Callable[[dict[str, Any], Sequence[Row]], Awaitable[Sequence[Prediction]]]


def hot(task: Task, predict: Predict) -> Mapping[str, App]:
    """The applications by path, for POST. predict: takes the ASGI scope, which knows the caller, and the rows."""

    async def by_json(scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Predict on one image (`pixels`) or several (`instances`)."""
        body = json_body(await _body(receive))
        answers = await predict(scope, wire.rows_from_json(body, task.input))
        said = [answer(task, row) for row in answers]
        await _say(send, said[0] if body.instances is None else {"predictions": said}, answers[0].model_version)

    async def by_file(scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Predict on one image file, sent as the body."""
        query = wire.from_query(ImageQuery, dict(parse_qsl(scope["query_string"].decode("latin-1"), True)))
        data = await _body(receive)
        rows = wire.rows_from_files([data], task.input, query.site, query.at, [query.request_id])
        found = (await predict(scope, rows))[0]
        await _say(send, answer(task, found), found.model_version)

    return {"/predict": by_json, "/predict/image": by_file}


def answer(task: Task, row: Prediction) -> dict[str, Any]:
    """What a client is told of a logged prediction."""
    return {
        "prediction_id": row.prediction_id,
        "request_id": row.request_id,
        "prediction": None if row.abstained else row.prediction,
        "class": None if row.abstained else task.classes[row.prediction],
        "abstained": row.abstained,
        "confidence": row.confidence,
        "probabilities": row.probabilities,
        "model_version": row.model_version,
    }


def json_body(data: bytes) -> PredictBody:
    """The body of a JSON request.

    Raises:
        Refusal: it is no JSON, or not what `/predict` takes.
    """
    if not data:
        raise Refusal(422, "invalid", "the body is empty")
    try:
        # Pydantic's own reader takes three times as long over a picture's numbers. It says more of what is wrong.
        with suppress(orjson.JSONDecodeError, ValidationError):
            return PredictBody.model_validate(orjson.loads(data))
        return PredictBody.model_validate_json(data)
    except ValidationError as error:
        raise wire.not_understood(error.errors()) from error


async def _body(receive: Any) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message["type"] != "http.disconnect" and message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return body


async def _say(send: Any, what: Any, version: int) -> None:
    body = wire.to_json(what)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers.append((VERSION_HEADER.encode(), b"%d" % version))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
