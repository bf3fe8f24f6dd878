"""The bad-input table of the service: what it refuses, with which code and words, and that nothing of it is logged."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live_service import Serving, register_untrained, serving, settings_in
from PIL import Image

from models.images import encode_png
from monitoring.traffic import TrafficLog
from pipelines import release
from pipelines.settings import Settings

GOOD = encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))
PIXELS = (np.arange(64).reshape(8, 8) / 63.0).tolist()
PNG = {"content-type": "image/png"}


@dataclass
class House:
    """The service under test, its log, and the request ids of the good rows it was sent."""

    served: Serving
    log: TrafficLog
    good: list[str] = field(default_factory=list)

    def post(self, path: str, **what: Any) -> httpx.Response:
        return self.served.client.post(path, **what)

    def send_good(self) -> dict[str, Any]:
        name = f"good-{len(self.good)}"
        answer = self.post("/predict/image", params={"site": "s", "request_id": name}, content=GOOD, headers=PNG)
        assert answer.status_code == 200, answer.text
        self.good.append(name)
        said: dict[str, Any] = answer.json()
        return said


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[House]:
    settings = settings_in(tmp_path_factory.mktemp("bad"), empty_registry)
    release.promote(settings, register_untrained(settings).number, "test")
    with serving(settings) as served:
        served.ready()
        log = TrafficLog.open(settings.database_url, settings.images)
        yield House(served, log)
        log.close()


def image(data: bytes, **params: Any) -> Callable[[House], httpx.Response]:
    return lambda house: house.post("/predict/image", params={"site": "s"} | params, content=data, headers=PNG)


def body(what: Any, path: str = "/predict") -> Callable[[House], httpx.Response]:
    data = what if isinstance(what, str) else json.dumps(what)
    return lambda house: house.post(path, content=data, headers={"content-type": "application/json"})


def typed(path: str, content_type: str | None) -> Callable[[House], httpx.Response]:
    headers = {} if content_type is None else {"content-type": content_type}
    return lambda house: house.post(path, params={"site": "s"}, content=GOOD, headers=headers)


def feedback(*rows: dict[str, Any], as_list: bool = False) -> Callable[[House], httpx.Response]:
    """Feedback on a good prediction: the last row is the one whose answer counts."""

    def send(house: House) -> httpx.Response:
        given = {"prediction_id": house.send_good()["prediction_id"]}
        for row in rows:
            said = house.post("/feedback", json=[given | row, given | row] if as_list else given | row)
        return said

    return send


def png_bomb(side: int) -> bytes:
    """A valid PNG of side × side black pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(side + 1) * 64) for _ in range(min(side, 6400) // 64)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(kind: str, mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 7 if mode == "L" else None).save(buffer, kind)
    return buffer.getvalue()


def broken_inside() -> bytes:
    where = GOOD.index(b"IDAT") + 6
    return GOOD[:where] + bytes(each ^ 0xFF for each in GOOD[where : where + 12]) + GOOD[where + 12 :]


def ten_megabytes() -> Iterator[bytes]:
    for _ in range(160):
        yield bytes(65536)


ROW = {"pixels": PIXELS}
TABLE: dict[str, tuple[Callable[[House], httpx.Response], int, str, str]] = {
    "corrupt PNG": (image(broken_inside()), 422, "invalid", "not a readable image"),
    "truncated PNG": (image(GOOD[:-30]), 422, "invalid", "not a readable image"),
    "text for an image": (image(b"I am a picture"), 422, "invalid", "no PNG and no JPEG"),
    "a GIF": (image(saved("GIF")), 422, "invalid", "no PNG and no JPEG"),
    "no bytes": (image(b""), 422, "invalid", "empty (0 bytes)"),
    "wrong size": (image(saved("PNG", size=(9, 8))), 422, "invalid", "9×8 pixels; this task takes 8×8 greyscale"),
    "decompression bomb": (image(png_bomb(30_000)), 422, "invalid", "image"),
    "10 MB body": (image(bytes(10 * 2**20)), 413, "too_large", "larger than 8 MB"),
    "10 MB without a length": (
        lambda house: house.post("/predict/image", params={"site": "s"}, content=ten_megabytes(), headers=PNG),
        413,
        "too_large",
        "larger than 8 MB",
    ),
    "10 MB of JSON": (body("[" * (10 * 2**20)), 413, "too_large", "larger than 8 MB"),
    "an event far in the future": (image(GOOD, at=time.time() + 1e6), 422, "invalid", "s in the future"),
    "an event time that is none": (image(GOOD, at="yesterday"), 422, "invalid", "at: "),
    "an event time of NaN": (image(GOOD, at="nan"), 422, "invalid", "at: "),
    "a request id with a control character": (image(GOOD, request_id="a\nb"), 422, "invalid", "visible ASCII"),
    "a request id too long": (image(GOOD, request_id="x" * 65), 422, "invalid", "64 at most"),
    "an unknown query": (image(GOOD, colour="red"), 422, "invalid", "'colour' is no field"),
    "missing site": (body(ROW), 422, "invalid", "site is missing"),
    "missing site of an image": (
        lambda house: house.post("/predict/image", content=GOOD, headers=PNG),
        422,
        "invalid",
        "site is missing",
    ),
    "a path for a site": (body(ROW | {"site": "../../etc"}), 422, "invalid", "letters, digits"),
    "a site of 65 letters": (body(ROW | {"site": "s" * 65}), 422, "invalid", "64 at most"),
    "an empty site": (body(ROW | {"site": ""}), 422, "invalid", "letters, digits"),
    "a number for a site": (body(ROW | {"site": 7}), 422, "invalid", "site: "),
    "wrong shape": (
        body({"site": "s", "pixels": [[0.5]]}),
        422,
        "invalid",
        "shape [1, 1, 1]; this task takes [8, 8, 1]",
    ),
    "ragged pixels": (body({"site": "s", "pixels": [[0.5], [0.5, 1]]}), 422, "invalid", "no rectangular array"),
    "words for pixels": (body({"site": "s", "pixels": [["0.5"] * 8] * 8}), 422, "invalid", "no rectangular array"),
    "NaN as a literal": (
        body(json.dumps(ROW | {"site": "s"}).replace("0.0,", "NaN,", 1)),
        422,
        "invalid",
        "NaN or infinite",
    ),
    "infinity": (body(json.dumps(ROW | {"site": "s"}).replace("0.0,", "1e999,", 1)), 422, "invalid", "NaN or infinite"),
    "out of range": (body({"site": "s", "pixels": [[255] * 8] * 8}), 422, "invalid", "must be in [0, 1]"),
    "neither one nor many": (body({"site": "s"}), 422, "invalid", "`pixels` or several as `instances`"),
    "one and many": (body(ROW | {"site": "s", "instances": [ROW]}), 422, "invalid", "inside `instances`"),
    "an unknown field": (body(ROW | {"site": "s", "pixel": 1}), 422, "invalid", "'pixel' is no field"),
    "empty batch": (body({"site": "s", "instances": []}), 422, "invalid", "batch is empty"),
    "257 rows": (body({"site": "s", "instances": [ROW] * 257}), 422, "invalid", "more than 256 rows"),
    "one bad row among good ones": (
        body({"site": "s", "instances": [ROW, ROW, {"pixels": [[2.0] * 8] * 8}]}),
        422,
        "invalid",
        "row 2: pixel values",
    ),
    "an unknown field in a row": (
        body({"site": "s", "instances": [ROW, ROW | {"site": "t"}]}),
        422,
        "invalid",
        "row 1: 'site' is no field",
    ),
    "one bad file among good ones": (
        lambda house: house.post(
            "/predict/images", params={"site": "s"}, files=[("files", GOOD), ("files", GOOD[:-30])]
        ),
        422,
        "invalid",
        "row 1: the bytes are not a readable image",
    ),
    "multipart without a file": (
        lambda house: house.post("/predict/images", params={"site": "s"}, files=[("other", GOOD)]),
        422,
        "invalid",
        "files is missing",
    ),
    "fewer request ids than files": (
        lambda house: house.post(
            "/predict/images", params={"site": "s"}, files=[("files", GOOD)] * 2, data={"request_id": ["a"]}
        ),
        422,
        "invalid",
        "2 images and 1 request ids",
    ),
    "broken multipart": (typed("/predict/images", "multipart/form-data"), 400, "broken_request", "oundary"),
    "unknown content type": (typed("/predict/image", "image/webp"), 415, "unknown_content_type", "takes image/png or"),
    "no content type": (typed("/predict/image", None), 415, "unknown_content_type", "there is no content type"),
    "a form for JSON": (
        typed("/predict", "application/x-www-form-urlencoded"),
        415,
        "unknown_content_type",
        "takes application/json",
    ),
    "broken JSON": (body('{"site": "s", "pixels": [[0.1, '), 400, "broken_json", "not valid JSON"),
    "JSON nested too deep": (body("[" * 100_000), 400, "broken_json", "recursion limit"),
    "no JSON at all": (body(""), 422, "invalid", "body is empty"),
    "a list for an object": (body([]), 422, "invalid", "object"),
    "feedback for an unknown id": (
        body({"prediction_id": "nobody", "label": 1}, "/feedback"),
        404,
        "unknown_prediction",
        "no prediction 'nobody'",
    ),
    "feedback without an id": (body({"label": 1}, "/feedback"), 422, "invalid", "prediction_id is missing"),
    "an empty list of feedback": (body([], "/feedback"), 422, "invalid", "list is empty"),
    "the same feedback twice": (feedback({"label": 3}, {"label": "3"}), 200, "", "already"),
    "the same feedback twice in a list": (feedback({"label": 3}, as_list=True), 200, "", "already"),
    "conflicting feedback": (feedback({"label": 3}, {"label": 4}), 409, "conflict", "3 before, and 4 now"),
    "an unknown label": (feedback({"label": 10}), 422, "invalid", "10 is no class"),
    "an unknown class name": (feedback({"label": "cat"}), 422, "invalid", "'cat' is no class"),
    "a truth value for a label": (feedback({"label": True}), 422, "invalid", "label"),
    "an unknown address": (body(ROW, "/prediction"), 404, "not_found", "nothing at /prediction"),
    "an unknown method": (
        lambda house: house.served.client.get("/predict"),
        405,
        "method_not_allowed",
        "/predict does not take GET",
    ),
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_refused_with_a_sentence_and_not_logged(house: House, name: str) -> None:
    send, status, code, fragment = TABLE[name]
    answer = send(house)
    said = answer.json()
    assert answer.status_code == status, answer.text
    if status == 200:
        assert fragment in answer.text
    else:
        assert set(said) == {"error"}
        assert set(said["error"]) == {"code", "message", "request_id"}
        assert said["error"]["request_id"] == answer.headers["x-request-id"]
        assert code in said["error"]["code"]
        assert fragment in said["error"]["message"]
        assert "Traceback" not in answer.text
    house.send_good()
    # Exactly the good rows, whatever came before.
    logged = house.log.between(0, house.log.last_seq() + 1)
    assert logged["request_id"].tolist() == house.good


def empty_house(settings: Settings) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """What a service without a champion says to a good request, and on its readiness."""
    with serving(settings) as served:
        deadline = time.monotonic() + 20
        while "looked up" in (ready := served.client.get("/readyz")).text and time.monotonic() < deadline:
            time.sleep(0.05)
        answer = served.client.post("/predict/image?site=s", content=GOOD, headers=PNG)
        assert served.client.get("/healthz").status_code == 200
        assert served.client.get("/model").status_code == 503
        assert ready.status_code == 503
        assert answer.headers["retry-after"] == "2"
        return answer.status_code, answer.json()["error"], ready.json()["error"]


def test_without_a_champion_it_says_how_to_get_one(settings: Settings) -> None:
    status, said, ready = empty_house(settings)
    assert (status, said["code"]) == (503, "no_champion")
    assert "no version of 'digits' is champion yet" in said["message"]
    assert "`make run`" in said["message"]
    assert (ready["code"], ready["message"]) == (said["code"], said["message"])
    assert TrafficLog.open(settings.database_url, settings.images).count() == 0


def test_with_the_registry_down_at_start_it_says_where_it_looked(settings: Settings) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    status, said, _ = empty_house(settings.model_copy(update={"tracking_uri": f"http://127.0.0.1:{port}"}))
    assert (status, said["code"]) == (503, "no_champion")
    assert f"registry at http://127.0.0.1:{port} does not answer" in said["message"]
    assert "`make up`" in said["message"]
