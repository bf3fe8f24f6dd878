"""What the service's clients may say, and how they are told that it was not understood.

In go requests as they arrive; out come rows that fit the task, or a Refusal: one status, one code and one sentence
that names the row. A request is taken whole or refused whole.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    WithJsonSchema,
)

from models.errors import BadInput
from models.images import PNG_SIGNATURE, ImageInput, decode_png, from_unit_floats
from pipelines.serving_logs import REQUEST

MAX_ROWS = 256
MAX_AHEAD_S = 300.0
"""How far an event time may lie in the future: windows wait for it to pass."""

IMAGE_TYPES = ("image/png", "image/jpeg")
_NAMES = uuid.UUID("2f0d4c1e-6f0e-5c0a-9d6c-8f3a0b7e51d2")
_MAGIC = (PNG_SIGNATURE, b"\xff\xd8\xff")


class Refusal(Exception):
    """An answer that is no success: the HTTP status, a word for programs, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}

    def body(self) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": self.message, "request_id": REQUEST.get()}}


@dataclass(frozen=True)
class Row:
    """One image to predict on, uint8 [height, width, channels], and where and when it was taken."""

    image: NDArray[np.uint8]
    site: str
    at: float
    request_id: str | None = None


Name = Annotated[
    str,
    StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"),
    Field(description="letters, digits, dots, _ and -; 64 at most"),
]
RequestId = Annotated[
    str,
    StringConstraints(pattern=r"^[!-~]{1,64}$"),
    Field(description="the client's own name of the row: visible ASCII, 64 at most"),
]
EventTime = Annotated[
    float, Field(gt=0, allow_inf_nan=False, description="event time, seconds since 1970; now if absent")
]
Pixels = Annotated[
    Any,
    WithJsonSchema({"type": "array", "description": "[height][width] or [height][width][channels], floats in [0, 1]"}),
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Instance(Strict):
    pixels: Pixels
    request_id: RequestId | None = None
    at: EventTime | None = None


class PredictBody(Strict):
    """One image as `pixels`, or several as `instances`."""

    site: Name
    pixels: Pixels = None
    request_id: RequestId | None = None
    at: EventTime | None = None
    instances: Annotated[list[Instance], Field(max_length=MAX_ROWS)] | None = None


class ImageQuery(Strict):
    """What the address of an image request says."""

    site: Name
    request_id: RequestId | None = None
    at: EventTime | None = None


class ImagesQuery(Strict):
    """What the address of a request with several images says."""

    site: Name
    at: EventTime | None = None


class FeedbackItem(Strict):
    """Delayed ground truth: the class of a prediction, by index or by name."""

    prediction_id: Annotated[str, StringConstraints(min_length=1, max_length=36)]
    label: int | str
    source: Name = "clinic"
    at: EventTime | None = None


class UploadedRow(Strict):
    """A prediction that a site made by itself, with an exported graph of a version."""

    model: Annotated[str, Field(max_length=200, description="whose version it was, as GET /model names it")]
    model_version: Annotated[int, Field(ge=1, lt=2**31)]
    site: Name
    request_id: RequestId
    at: EventTime
    probabilities: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(description="one per class")]
    png: Annotated[str, Field(description="the picture as a PNG, in base64")]


class UploadBody(Strict):
    """Rows as they came: each is judged by itself, as an UploadedRow."""

    predictions: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_ROWS)]


def prediction_id(site: str, request_id: str) -> str:
    """The same for the same request id of a site, so that the log takes it once."""
    return str(uuid.uuid5(_NAMES, f"{site}\n{request_id}"))


def _one_or_list(value: Any) -> Literal["one", "list"]:
    return "list" if isinstance(value, list) else "one"


FeedbackBody = Annotated[
    Annotated[FeedbackItem, Tag("one")]
    | Annotated[list[FeedbackItem], Field(min_length=1, max_length=MAX_ROWS), Tag("list")],
    Discriminator(_one_or_list),
]


Query = TypeVar("Query", bound=BaseModel)


def from_query(model: type[Query], values: Mapping[str, str]) -> Query:
    """The query of an address. FastAPI's own reading of it takes as long as all the rest of a request."""
    try:
        return model.model_validate_strings(dict(values))
    except ValidationError as error:
        raise Refusal(422, "invalid", sentence(error.errors())) from error


def described(model: type[BaseModel]) -> dict[str, Any]:
    """The query for /openapi.json."""
    schema = model.model_json_schema()
    return {
        "parameters": [
            {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": its}
            for name, its in schema["properties"].items()
        ]
    }


def rows_from_json(body: PredictBody, schema: ImageInput) -> list[Row]:
    """The rows of a JSON request."""
    if body.instances is None:
        if body.pixels is None:
            raise Refusal(422, "invalid", "give one image as `pixels` or several as `instances`")
        return [_row(None, image_from_pixels(None, body.pixels, schema), body.site, body.at, body.request_id)]
    if body.pixels is not None or body.request_id is not None:
        raise Refusal(422, "invalid", "`pixels` and `request_id` belong inside `instances` when there are any")
    _count(len(body.instances))
    return [
        _row(i, image_from_pixels(i, each.pixels, schema), body.site, each.at or body.at, each.request_id)
        for i, each in enumerate(body.instances)
    ]


def rows_from_files(
    files: Sequence[bytes], schema: ImageInput, site: str, at: float | None, request_ids: Sequence[str | None]
) -> list[Row]:
    """The rows of a request that carries image files."""
    _count(len(files))
    if len(request_ids) != len(files):
        raise Refusal(422, "invalid", f"there are {len(files)} images and {len(request_ids)} request ids")
    alone = len(files) == 1
    rows = []
    for i, (data, request_id) in enumerate(zip(files, request_ids, strict=True)):
        where = None if alone else i
        rows.append(_row(where, image_from_file(where, data, schema), site, at, request_id))
    return rows


def image_from_file(row: int | None, data: bytes, schema: ImageInput) -> NDArray[np.uint8]:
    """uint8 [height, width, channels] of an image file's bytes."""
    if data and not data.startswith(_MAGIC):
        raise _refuse(row, "the bytes are no PNG and no JPEG image")
    try:
        return decode_png(data, schema)
    except BadInput as error:
        raise _refuse(row, str(error)) from error


def class_index(label: int | str, classes: Sequence[str], row: int | None) -> int:
    """The index of a class given by index or name."""
    if isinstance(label, str) and label in classes:
        return classes.index(label)
    if isinstance(label, int) and 0 <= label < len(classes):
        return label
    known = ", ".join(repr(name) for name in classes[:20])
    raise _refuse(row, f"{label!r} is no class of this task; give an index below {len(classes)} or one of {known}")


def to_json(what: Any) -> bytes:
    """JSON bytes."""
    return orjson.dumps(what)


def not_understood(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """The refusal for what pydantic found wrong with a body."""
    said = sentence(errors)
    return Refusal(400, "broken_json", said) if errors[0]["type"] == "json_invalid" else Refusal(422, "invalid", said)


def sentence(errors: Sequence[Mapping[str, Any]]) -> str:
    """One sentence for what pydantic found wrong with a request."""
    first = errors[0]
    parts = [part for part in first["loc"] if part not in ("body", "query", "one", "list", "instances")]
    row = [f"row {part}" for part in parts if isinstance(part, int)]
    name = ".".join(part for part in parts if isinstance(part, str))
    match first["type"]:
        case "json_invalid":
            return f"the body is not valid JSON ({first.get('ctx', {}).get('error', first['msg'])})"
        case "missing" if not parts:
            said = "the body is empty"
        case "missing":
            said = f"{name or 'it'} is missing"
        case "extra_forbidden":
            said = f"{name!r} is no field of this request"
        case "string_pattern_mismatch" if name == "request_id":
            said = "request_id may hold visible ASCII characters only, 64 at most"
        case "string_pattern_mismatch" if name in ("by", "note", "reason"):
            said = f"{name} is empty or holds characters that cannot be printed"
        case "string_pattern_mismatch":
            said = f"{name} may hold letters, digits, dots, _ and - only, 64 at most, and not begin with a sign"
        case "too_long":
            said = f"there are more than {MAX_ROWS} rows; send several requests"
        case "too_short":
            said = "the list is empty: it needs one row at least"
        case _:
            said = f"{name}: {first['msg']}" if name else str(first["msg"])
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return ": ".join([*row, said]) + more


def _count(rows: int) -> None:
    if rows == 0:
        raise Refusal(422, "invalid", "the batch is empty: it needs one row at least")
    if rows > MAX_ROWS:
        raise Refusal(422, "invalid", f"there are more than {MAX_ROWS} rows; send several requests")


def _refuse(row: int | None, message: str) -> Refusal:
    return Refusal(422, "invalid", message if row is None else f"row {row}: {message}")


def image_from_pixels(row: int | None, pixels: Any, schema: ImageInput) -> NDArray[np.uint8]:
    """uint8 [height, width, channels] of nested lists of floats in [0, 1]."""
    try:
        values = np.asarray(pixels)
    except ValueError:
        values = np.asarray(None)  # ragged
    if values.dtype.kind not in "fiu":
        raise _refuse(row, "pixels are no rectangular array of numbers")
    try:
        return from_unit_floats(values, schema)
    except BadInput as error:
        raise _refuse(row, str(error)) from error


def _row(row: int | None, image: NDArray[np.uint8], site: str, at: float | None, request_id: str | None) -> Row:
    now = time.time()
    if at is not None and at > now + MAX_AHEAD_S:
        raise _refuse(row, f"the event time {at:.0f} is {at - now:.0f} s in the future; is the sender's clock right?")
    return Row(image, site, now if at is None else at, request_id)
