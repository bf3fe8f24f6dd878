"""POST /predictions of the real service: a row is logged once as it was predicted, or refused for what it is."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from edge_house import EdgeHouse, edge_house, picture, row
from live_service import overwrite
from logged_rows import held

from models.images import content_hash, decode_png, encode_png
from models.quality import QUALITY_COLUMNS, measure
from monitoring import safety_net
from pipelines import service, serving_tokens
from pipelines.serving_wire import MAX_ROWS, prediction_id


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[EdgeHouse]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service, "LOG_BUSY_MS", 100)
        patch.setattr(safety_net, "PATIENCE_S", 1.0)
        patch.setattr(safety_net, "RETRY_S", 0.1)
        with edge_house(tmp_path_factory.mktemp("uploads"), empty_registry) as made:
            yield made


def post(house: EdgeHouse, *rows: dict[str, Any], token: str = "") -> httpx.Response:
    headers = {"authorization": f"Bearer {token}"} if token else {}
    sent = [{name: value for name, value in each.items() if name != "file"} for each in rows]
    return house.served.client.post("/predictions", json={"predictions": sent}, headers=headers)


def key(given: dict[str, Any]) -> str:
    return prediction_id(given["site"], given["request_id"])


def test_a_row_is_logged_as_it_was_predicted_with_what_the_service_measures_of_its_picture(house: EdgeHouse) -> None:
    given = [row(1, at=time.time() - 1.0), row(2, model_version=1)]
    for _ in range(2):  # the same again changes nothing
        said = post(house, *given)
        assert said.status_code == 200, said.text
        assert said.json() == {"predictions": [{"prediction_id": key(each), "status": "logged"} for each in given]}
    logged = house.logged()
    for number, each in enumerate(given, 1):
        there = logged[key(each)]
        for name in ("site", "request_id", "at", "model_version", "probabilities"):
            assert there[name] == each[name], name
        assert there["prediction"] == int(np.argmax(each["probabilities"]))
        assert there["confidence"] == max(each["probabilities"])
        assert there["abstained"] is None
        quality = [there[name] for name in QUALITY_COLUMNS]
        assert quality == measure(picture(number)[None])[0].tolist()
        assert (decode_png(house.log.image(there["image_hash"]), house.settings.task.input) == picture(number)).all()
    label = {"prediction_id": key(given[0]), "label": "7"}
    assert house.served.client.post("/feedback", json=label).json()["status"] == "stored"


TABLE: dict[str, tuple[dict[str, Any], str]] = {
    "of another model": ({"model": "retina"}, "predicted by 'retina', and this is the service of 'digits'"),
    "of a version that is not": ({"model_version": 9}, "the registry has no version 9 of 'digits'"),
    "from the future": ({"at": 4e9}, "s in the future; is the sender's clock right?"),
    "before its version was made": ({"at": 86_400.0}, "before version 2 was made; is the sender's clock right?"),
    "with another number of classes": ({"probabilities": [0.5, 0.5]}, "10 numbers with the sum 1"),
    "with shares of more than all": ({"probabilities": [0.5] * 10}, "10 numbers with the sum 1"),
    "with a negative share": ({"probabilities": [-0.5, 1.5] + [0.0] * 8}, "greater than or equal to 0"),
    "without base64": ({"png": "…"}, "png is no base64"),
    "with a broken picture": ({"png": base64.b64encode(encode_png(picture(3))[:50]).decode()}, "not a readable image"),
    "with a picture of another size": (
        {"png": base64.b64encode(encode_png(np.zeros((9, 8, 1), dtype=np.uint8))).decode()},
        "8×9 pixels; this task takes 8×8",
    ),
    "of a site that cannot be": ({"site": "-"}, "site may hold letters"),
    "with more than it takes": ({"name": "Ms. Smith"}, "'name' is no field"),
}


def test_each_bad_row_is_refused_with_its_own_reason_and_the_good_ones_are_logged(house: EdgeHouse) -> None:
    before = len(house.logged())
    bad = [row(10, **other) for other, _ in TABLE.values()]
    good = [row(11), row(12)]
    said = post(house, good[0], *bad, good[1]).json()["predictions"]
    assert [each["status"] for each in said] == ["logged", *["refused"] * len(bad), "logged"]
    for (name, (_, fragment)), each in zip(TABLE.items(), said[1:-1], strict=True):
        assert fragment in each["reason"], (name, each)
    assert len(house.logged()) == before + 2


def test_another_prediction_under_the_same_name_is_refused_and_the_first_one_stays(house: EdgeHouse) -> None:
    first = row(20)
    other = row(21, request_id=first["request_id"])
    assert [each["status"] for each in post(house, first).json()["predictions"]] == ["logged"]
    (said,) = post(house, other).json()["predictions"]
    assert said["status"] == "refused" and "for another prediction" in said["reason"]
    assert house.logged()[key(first)]["image_hash"] == content_hash(encode_png(picture(20)))


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        (lambda client: client.post("/predictions", json={"predictions": []}), 422, "invalid"),
        (lambda client: client.post("/predictions", json={"predictions": [{}] * (MAX_ROWS + 1)}), 422, "invalid"),
        (lambda client: client.post("/predictions", json=[1]), 422, "invalid"),
        (lambda client: client.post("/predictions", json={}, headers={"content-type": "text/x"}), 415, "unknown"),
        (
            lambda client: client.post("/predictions", content="{", headers={"content-type": "application/json"}),
            400,
            "broken_json",
        ),
        (lambda client: client.post("/predictions", json={"predictions": ["x" * 9 * 2**20]}), 413, "too_large"),
        (lambda client: client.get("/predictions"), 405, "method_not_allowed"),
    ],
)
def test_what_is_no_upload_is_refused_as_a_whole(
    house: EdgeHouse, send: Callable[[httpx.Client], httpx.Response], status: int, code: str
) -> None:
    said = send(house.served.client)
    assert said.status_code == status and code in said.json()["error"]["code"], said.text


def test_while_the_registry_is_away_rows_of_who_serves_are_taken_and_others_are_to_come_later(house: EdgeHouse) -> None:
    database = house.settings.home / "mlflow" / "mlflow.db"
    whole = database.read_bytes()
    overwrite(database, b"this is no database" * 1000)
    try:
        assert post(house, row(30)).status_code == 200
        said = post(house, row(31, model_version=1))
        assert (said.status_code, said.json()["error"]["code"]) == (503, "registry_unavailable")
        assert said.headers["retry-after"] == "2"
    finally:
        overwrite(database, whole)


def test_while_the_database_is_away_rows_go_to_the_spool_and_come_once(house: EdgeHouse) -> None:
    given = [row(40), row(41)]
    with held(house.settings.database_url):
        for _ in range(2):
            assert {each["status"] for each in post(house, *given).json()["predictions"]} == {"logged"}
        assert "away" in house.served.client.get("/healthz").text
    deadline = time.monotonic() + 20
    while house.served.client.get("/healthz").json()["spool_bytes"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert {key(each) for each in given} <= set(house.logged())


def test_a_site_s_token_speaks_for_its_own_rows_and_pays_for_each(house: EdgeHouse) -> None:
    add = serving_tokens.add
    clinic = add(house.log.engine, "clinic", "clinic", ["predict"], rows_per_day=3)
    scraper = add(house.log.engine, "scraper", None, ["metrics"])
    try:
        deadline = time.monotonic() + 10
        while post(house, row(50)).status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert post(house, row(50), token=scraper).json()["error"]["code"] == "wrong_scope"
        mine, other = post(house, row(51), row(52, site="ward"), token=clinic).json()["predictions"]
        assert mine["status"] == "logged"
        assert other["reason"] == "this token speaks for site 'clinic', not for 'ward'"
        said = post(house, row(53), row(54), token=clinic)
        assert (said.status_code, said.json()["error"]["code"]) == (429, "budget_spent")
    finally:
        for name in ("clinic", "scraper"):
            serving_tokens.revoke(house.log.engine, name)
