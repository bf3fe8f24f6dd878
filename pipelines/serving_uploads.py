"""POST /predictions of the service: what sites predicted by themselves while they had no network.

In go rows as `fedloop edge upload` sends them; they go into the traffic log the way that served rows go, with the
event time and the version that they name, and are answered once they are there. Unlike a request for predictions this
one is taken row by row: a row that cannot be taken must not hold up the others of its site.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from models.errors import BadInput, Missing
from models.images import content_hash, encode_png
from models.quality import measure
from models.task import Task
from monitoring.safety_net import SafetyNet
from monitoring.traffic import Prediction
from pipelines import registry
from pipelines import serving_described as described
from pipelines import serving_wire as wire
from pipelines.serving_access import Access, Caller
from pipelines.serving_beside import DIGITS
from pipelines.serving_model import ServedModel
from pipelines.serving_wire import MAX_AHEAD_S, Refusal, Row, UploadBody, UploadedRow
from pipelines.settings import Settings

SUM_TOLERANCE = 1e-3
"""Of a row's probabilities, each of which is rounded to DIGITS digits."""


def router(
    settings: Settings,
    net: SafetyNet,
    served: Callable[[], ServedModel | None],
    access: Access,
    on_logged: Callable[[Sequence[Prediction]], None],
) -> APIRouter:
    """The address /predictions. served: the model to use now, or None. on_logged: called with every logged batch."""
    made = APIRouter()

    def take(rows: Sequence[dict[str, Any]], caller: Caller) -> list[dict[str, Any]]:
        said: list[dict[str, Any]] = [{"prediction_id": None, "status": "refused"} for _ in rows]
        good: dict[int, tuple[UploadedRow, Row]] = {}
        born = _births(settings, served())
        for i, given in enumerate(rows):
            try:
                found = UploadedRow.model_validate(given)
                said[i]["prediction_id"] = wire.prediction_id(found.site, found.request_id)
                caller.speaks_for(found.site)
                good[i] = found, _checked(found, settings, born)
            except ValidationError as error:
                said[i]["reason"] = wire.sentence(error.errors())
            except (Refusal, BadInput) as error:
                said[i]["reason"] = str(error)
        if not good:
            return said
        made = [_prediction(*each) for each in good.values()]
        logged = net.record(made)
        on_logged(logged)
        for i, mine, there in zip(good, made, logged, strict=True):
            said[i]["status"] = "logged"
            if (mine.image_hash, mine.model_version) != (there.image_hash, there.model_version):
                used = f"site {mine.site!r} has used the request id {mine.request_id!r} for another prediction"
                said[i] |= {"status": "refused", "reason": used}
        return said

    @made.post("/predictions", openapi_extra=_body(settings.task), responses=_ANSWERS)
    async def upload(request: Request) -> JSONResponse:
        """Take predictions that a site made without the service: each is logged once, or refused with the reason.

        The same row again changes nothing. The answer has an entry for each row, in their order.
        """
        try:
            rows = UploadBody.model_validate_json(await request.body()).predictions
        except ValidationError as error:
            raise wire.not_understood(error.errors()) from error
        await access.charge(request.scope["caller"], len(rows))
        try:
            return JSONResponse({"predictions": await asyncio.to_thread(take, rows, request.scope["caller"])})
        except Missing as error:
            raise Refusal(503, "registry_unavailable", str(error), retry_after_s=2) from error
        except (sa.exc.SQLAlchemyError, OSError) as error:
            first = str(error).partition("\n")[0]
            logging.getLogger("fedloop.service").error("uploaded rows cannot be written: %s", first)
            raise Refusal(503, "log_unavailable", "the rows could not be logged; try again", retry_after_s=2) from error

    return made


def _births(settings: Settings, served: ServedModel | None) -> Callable[[int], float | None]:
    """When a version was made; None: there is none. The registry is asked once at most, and not for who serves."""

    @cache
    def registered() -> dict[int, float]:
        return {each.number: each.created_at for each in registry.versions(settings)}

    def born(number: int) -> float | None:
        if served is not None and served.version.number == number:
            return served.version.created_at
        return registered().get(number)

    return born


def _checked(row: UploadedRow, settings: Settings, born: Callable[[int], float | None]) -> Row:
    """The row's picture, when all the rest has been found plausible.

    Raises:
        BadInput, Refusal: with what is not.
        Missing: the registry does not answer.
    """
    task = settings.task
    if row.model != settings.model_name:
        raise BadInput(f"it was predicted by {row.model!r}, and this is the service of {settings.model_name!r}")
    if (made_at := born(row.model_version)) is None:
        raise BadInput(f"the registry has no version {row.model_version} of {settings.model_name!r}")
    if row.at < made_at - MAX_AHEAD_S:
        early = f"{made_at - row.at:.0f} s before version {row.model_version} was made"
        raise BadInput(f"the event time {row.at:.0f} is {early}; is the sender's clock right?")
    if len(row.probabilities) != len(task.classes) or abs(sum(row.probabilities) - 1) > SUM_TOLERANCE:
        raise BadInput(f"probabilities are to be {len(task.classes)} numbers with the sum 1")
    try:
        png = base64.b64decode(row.png, validate=True)
    except ValueError as error:
        raise BadInput("png is no base64") from error
    return wire.rows_from_files([png], task.input, row.site, row.at, [row.request_id])[0]


def _prediction(row: UploadedRow, picture: Row) -> Prediction:
    shares = [round(each, DIGITS) for each in row.probabilities]
    png, quality = encode_png(picture.image), measure(picture.image[None])[0].tolist()
    return Prediction(
        wire.prediction_id(row.site, row.request_id), row.request_id, row.site, row.at, row.model_version,
        png, content_hash(png), shares.index(max(shares)), max(shares), shares, quality,
    )  # fmt: skip


_LOGGED = {"prediction_id": "b0f3…", "status": "logged"}
_REFUSED = {"prediction_id": "77aa…", "status": "refused", "reason": "the registry has no version 9 of 'digits'"}
_ANSWERS = described.ok({"predictions": [_LOGGED, _REFUSED]})


def _body(task: Task) -> dict[str, Any]:
    """The body for /openapi.json."""
    shares = [1.0] + [0.0] * (len(task.classes) - 1)
    png = base64.b64encode(encode_png(np.full(task.input.shape, 128, dtype=np.uint8))).decode()
    about = {"model": task.name, "model_version": 3, "site": "clinic-1", "request_id": "edge-17", "at": 1.8e9}
    schema = UploadBody.model_json_schema()
    schema["properties"]["predictions"]["items"] = UploadedRow.model_json_schema()
    example = {"predictions": [about | {"probabilities": shares, "png": png}]}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}
