"""`/cases` of the prediction service: customers submit pictures with the answers that they expect.

A case is central by nature: its customer sent the picture to this service, which keeps it where the traffic's pictures
lie. So no row of a site crosses the boundary here, and the gate may ask the case without asking a site.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import numpy as np
import sqlalchemy as sa
from fastapi import APIRouter, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError

from models.errors import BadInput
from models.task import Task
from monitoring import cases as book
from monitoring.cases import Case, Taken, UnknownCase
from monitoring.traffic import TrafficLog
from pipelines import serving_wire as wire
from pipelines.case_intake import (
    CaseBody,
    CaseQuery,
    Note,
    Person,
    lines_of_zip,
    of_site,
    own_case,
    submission,
    take_file,
)
from pipelines.cases import CaseState, State, states
from pipelines.serving_model import ServedModel
from pipelines.serving_wire import IMAGE_TYPES, Refusal

TYPES = {
    "/cases": ("application/json", *IMAGE_TYPES),
    "/cases/file": ("application/zip", "application/x-zip-compressed"),
}
MAX_PAGE = 200

Result = TypeVar("Result")
CaseId = Annotated[str, Path(description="a case id, or the first digits of one", examples=["1f0c3a5e9b72"])]


def router(task: Task, log: TrafficLog, served: Callable[[], ServedModel | None]) -> APIRouter:
    """The addresses under /cases. served: the model to use now, or None."""
    made = APIRouter()

    @made.post("/cases", openapi_extra=_one_case(task), responses=_answers(_EXAMPLE))
    async def submit(request: Request) -> JSONResponse:
        """Submit one case: JSON with `pixels`, or an image file as the body and the words in the query.

        The same again changes nothing; another expectation for the same picture is a new version, and the answer
        says so. From then on a challenger that fails the case is not promoted where the champion passes it.
        """
        data = await request.body()
        if request.headers.get("content-type", "").startswith("application/json"):
            body = _case_body(data)
            given = submission(task, wire.image_from_pixels(None, body.pixels, task.input), body)
        else:
            query = wire.from_query(CaseQuery, request.query_params)
            given = submission(task, wire.image_from_file(None, data, task.input), query)
        site = request.scope["caller"].site

        def keep() -> Taken:
            return book.submit(log, [of_site(log, given, site)])[0]

        return JSONResponse(_said(await _with_log(keep)))

    @made.post("/cases/file", openapi_extra=_ZIP, responses=_answers(_FILE_EXAMPLE))
    async def submit_file(request: Request) -> JSONResponse:
        """Submit many cases as a ZIP, line by line: good lines are taken, the others listed with the reason.

        It holds `manifest.csv` (columns file, expected and, if wanted, site, by, note) and the pictures; or, without
        a manifest, a folder for each class with its pictures.
        """
        data = await request.body()

        def take() -> dict[str, Any]:
            done = take_file(task, log, lines_of_zip(data), request.scope["caller"].site)
            return {
                "cases": [{"line": line.number, "file": line.file} | _said(each) for line, each in done.taken],
                "refused": [{"line": line.number, "file": line.file, "reason": why} for line, why in done.refused],
            }

        return JSONResponse(await _with_log(take))

    @made.get("/cases", responses=_answers({"cases": [_SHOWN], "next": 41, "model_version": 3}))
    async def listed(
        request: Request,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="cases looked at for a page")] = 50,
        before: Annotated[int | None, Query(ge=1, description="`next` of the page before")] = None,
        state: Annotated[State | None, Query(description="show only these; a page may be short then")] = None,
    ) -> JSONResponse:
        """Every case, newest first, with what the champion of now answers to it."""

        def look() -> dict[str, Any]:
            model = served()
            page = book.page(log.engine, before, limit)
            mine = request.scope["caller"].site
            own = [each for each in page if mine in (None, each.site)]
            found = states(task, log, own, model.predict if model else None, model.version.number if model else None)
            return {
                "cases": [_shown(each) for each in found if state in (None, each.state)],
                "next": page[-1].seq if len(page) == limit else None,
                "model_version": model and model.version.number,
            }

        return JSONResponse(await _with_log(look))

    @made.get("/cases/{case_id}", responses=_answers(_HISTORY))
    async def one(request: Request, case_id: CaseId) -> JSONResponse:
        """All versions of a case, and what versions of the model did with it."""

        def look() -> dict[str, Any]:
            found = own_case(log, case_id, request.scope["caller"].site).case_id
            keep = ("case_version", "model_version", "passed", "cause", "at")
            return {
                "case_id": found,
                "versions": [_version(each) for each in book.history(log.engine, found)],
                "findings": [
                    {name: getattr(each, name) for name in keep} for each in book.findings(log.engine, case_id=found)
                ],
            }

        return JSONResponse(await _with_log(look))

    @made.delete("/cases/{case_id}", responses=_answers(_EXAMPLE | {"version": 2, "status": "withdrawn"}))
    async def withdraw(
        request: Request,
        case_id: CaseId,
        reason: Annotated[Note, Query(min_length=1, examples=["the label was wrong"])],
        by: Annotated[Person, Query()] = "customer",
    ) -> JSONResponse:
        """Withdraw a case: a new version of it that counts no more. Nothing is deleted."""

        def end() -> Taken:
            found = own_case(log, case_id, request.scope["caller"].site)
            return book.withdraw(log.engine, found.case_id, reason, by)

        return JSONResponse(_said(await _with_log(end)))

    return made


def _case_body(data: bytes) -> CaseBody:
    try:
        return CaseBody.model_validate_json(data)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from error


async def _with_log(work: Callable[..., Result], *given: Any) -> Result:
    """Work on the log in a thread, its errors as refusals."""
    try:
        return await asyncio.to_thread(work, *given)
    except UnknownCase as error:
        raise Refusal(404, "unknown_case", str(error)) from error
    except BadInput as error:
        raise Refusal(422, "invalid", str(error)) from error
    except (sa.exc.SQLAlchemyError, OSError) as error:
        logging.getLogger("fedloop.service").error("the cases cannot be reached: %s", str(error).partition("\n")[0])
        raise Refusal(503, "log_unavailable", "the cases could not be reached; try again", retry_after_s=2) from error


def _said(taken: Taken) -> dict[str, Any]:
    case = taken.case
    return {
        "case_id": case.case_id,
        "version": case.version,
        "status": taken.status,
        "expected": case.expected,
        "message": taken.sentence,
    }


def _version(case: Case) -> dict[str, Any]:
    names = ("version", "expected", "withdrawn", "site", "note", "at")
    return {name: getattr(case, name) for name in names} | {"by": case.submitter}


def _shown(found: CaseState) -> dict[str, Any]:
    about = {"state": found.state, "answer": found.answer, "confidence": found.confidence, "why": found.why}
    about["cause"] = found.cause
    return {"case_id": found.case.case_id} | _version(found.case) | about


# -- for /openapi.json ------------------------------------------------------------------------------------------

_ID = "1f0c3a5e9b7248d6a1f0c3a5e9b7248d"
_EXAMPLE = {"case_id": _ID, "version": 1, "status": "new", "expected": "7", "message": f"case {_ID[:12]} is new"}
_FILE_EXAMPLE = {
    "cases": [{"line": 2, "file": "a.png"} | _EXAMPLE],
    "refused": [{"line": 3, "file": "b.png", "reason": "the image is 9×8 pixels; this task takes 8×8 greyscale"}],
}
_SHOWN = {
    "case_id": _ID, "version": 1, "expected": "7", "withdrawn": False, "site": "clinic-1", "note": "", "at": 1.8e9,
    "by": "customer", "state": "failed", "answer": "1", "confidence": 0.61, "why": None, "cause": "unseen",
}  # fmt: skip
_HISTORY = {
    "case_id": _ID,
    "versions": [
        {
            "version": 1,
            "expected": "7",
            "withdrawn": False,
            "site": "clinic-1",
            "note": "",
            "at": 1.8e9,
            "by": "customer",
        }
    ],
    "findings": [{"case_version": 1, "model_version": 3, "passed": False, "cause": "unseen", "at": 1.8e9}],
}
_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
_ZIP: dict[str, Any] = {"requestBody": {"required": True, "content": {TYPES["/cases/file"][0]: _FILE}}}


def _answers(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"example": example}}}}


def _one_case(task: Task) -> dict[str, Any]:
    words = {"expected": task.classes[0], "site": "clinic-1", "by": "Dr. Ruiz", "note": "seen twice"}
    picture = np.full(task.input.shape, 0.5).squeeze().tolist()
    described = wire.described(CaseQuery)
    for each in described["parameters"]:  # of an image request; a JSON body says all of it itself
        each["required"] = False
    body = {"schema": CaseBody.model_json_schema(), "example": words | {"pixels": picture}}
    content = {"application/json": body} | dict.fromkeys(IMAGE_TYPES, _FILE)
    return described | {"requestBody": {"required": True, "content": content}}
