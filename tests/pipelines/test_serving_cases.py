"""`/cases` of the real service: what customers submit, what they are told, and what they may see."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from live_service import Serving, register_untrained, serving, settings_in
from test_case_intake import manifest_of, zip_of

from models.images import content_hash, encode_png
from monitoring.cases import Finding, history, keep_findings, live
from monitoring.traffic import TrafficLog
from pipelines import release
from pipelines.settings import Settings

PNG = {"content-type": "image/png"}
ZIP = {"content-type": "application/zip"}
JSON = {"content-type": "application/json"}


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size=(8, 8, 1), dtype=np.uint8)


@dataclass
class House:
    settings: Settings
    served: Serving
    log: TrafficLog

    def ask(self, method: str, path: str, **what: Any) -> httpx.Response:
        return self.served.client.request(method, path, **what)

    def submit(self, number: int, expected: str, **words: str) -> dict[str, Any]:
        params = {"expected": expected} | words
        said = self.ask("POST", "/cases", params=params, content=encode_png(picture(number)), headers=PNG)
        assert said.status_code == 200, said.text
        answer: dict[str, Any] = said.json()
        return answer

    def predicted(self, number: int) -> str:
        data = encode_png(picture(number))
        said = self.ask("POST", "/predict/image", params={"site": "s"}, content=data, headers=PNG)
        return str(said.json()["class"])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[House]:
    settings = settings_in(tmp_path_factory.mktemp("cases"), empty_registry)
    release.promote(settings, register_untrained(settings).number, "test")
    with serving(settings) as served:
        served.ready()
        log = TrafficLog.open(settings.database_url, settings.images)
        yield House(settings, served, log)
        log.close()


def test_a_picture_is_one_case_by_json_by_png_and_in_a_zip(house: House) -> None:
    image = picture(1)
    first = house.submit(1, "7", site="clinic-1", by="Dr. Ruiz", note="seen twice")
    assert (first["status"], first["version"], first["expected"]) == ("new", 1, "7")
    assert first["case_id"] == content_hash(encode_png(image))
    body = {"pixels": (image[:, :, 0] / 255.0).tolist(), "expected": 7}
    by_json = house.ask("POST", "/cases", json=body).json()
    packed = zip_of({"manifest.csv": manifest_of([["a.png", "7", "", "", ""]]), "a.png": encode_png(image)})
    by_zip = house.ask("POST", "/cases/file", content=packed, headers=ZIP).json()["cases"][0]
    for again in (by_json, by_zip):
        assert (again["case_id"], again["status"], again["version"]) == (first["case_id"], "already", 1)
    kept = history(house.log.engine, first["case_id"])
    assert [(case.site, case.submitter, case.note) for case in kept] == [("clinic-1", "Dr. Ruiz", "seen twice")]


def test_another_expectation_is_a_new_version_and_the_answer_says_so(house: House) -> None:
    first = house.submit(2, "3", by="Ana")
    said = house.submit(2, "4")
    assert (said["status"], said["version"], said["case_id"]) == ("corrected", 2, first["case_id"])
    assert "until now '3' was expected of this picture (version 1, by Ana); from now on '4'" in said["message"]
    shown = house.ask("GET", f"/cases/{first['case_id'][:12]}").json()
    assert [(each["version"], each["expected"]) for each in shown["versions"]] == [(1, "3"), (2, "4")]


def test_of_a_file_good_lines_are_taken_and_bad_ones_listed_with_line_and_reason(house: House) -> None:
    lines = [["a.png", "7", "", "", ""], ["b.png", "cat", "", "", ""], ["gone.png", "1", "", "", ""]]
    files = {"a.png": encode_png(picture(31)), "b.png": encode_png(picture(32)), "manifest.csv": manifest_of(lines)}
    said = house.ask("POST", "/cases/file", content=zip_of(files), headers=ZIP)
    assert said.status_code == 200
    assert [(each["line"], each["file"], each["status"]) for each in said.json()["cases"]] == [(2, "a.png", "new")]
    assert [(each["line"], each["file"]) for each in said.json()["refused"]] == [(3, "b.png"), (4, "gone.png")]
    assert "'cat' is no class of this task" in said.json()["refused"][0]["reason"]
    assert "no file 'gone.png'" in said.json()["refused"][1]["reason"]


def test_the_list_says_what_the_champion_answers_and_pages_hold_every_case_once(house: House) -> None:
    right = house.submit(41, house.predicted(41))["case_id"]
    wrong = house.submit(42, str((int(house.predicted(42)) + 1) % 10))["case_id"]
    gone, taken_back = house.submit(43, "0")["case_id"], house.submit(44, "0")["case_id"]
    assert house.log.pictures.remove_unless_young(gone, young_s=0) > 0
    house.ask("DELETE", f"/cases/{taken_back}", params={"reason": "unsharp"})
    found: list[dict[str, Any]] = []
    before = None
    while True:
        params = {"limit": 2} | ({"before": before} if before else {})
        page = house.ask("GET", "/cases", params=params).json()
        assert page["model_version"] == 1
        found += page["cases"]
        if (before := page["next"]) is None:
            break
    states = {each["case_id"]: each for each in found}
    assert len(states) == len(found) >= len(live(house.log.engine)) + 1
    assert states[right]["state"] == "passed"
    assert (states[wrong]["state"], states[wrong]["answer"]) == ("failed", house.predicted(42))
    assert (states[gone]["state"], "image store" in states[gone]["why"]) == ("unasked", True)
    assert (states[taken_back]["state"], states[taken_back]["answer"]) == ("withdrawn", None)
    failed = house.ask("GET", "/cases", params={"state": "failed", "limit": 200}).json()["cases"]
    assert {each["case_id"] for each in failed} == {name for name in states if states[name]["state"] == "failed"}


def test_a_withdrawal_is_a_version_with_a_reason_and_nothing_is_deleted(house: House) -> None:
    name = house.submit(5, "7")["case_id"]
    said = house.ask("DELETE", f"/cases/{name[:12]}", params={"reason": "the label was wrong", "by": "Ana"}).json()
    assert (said["status"], said["version"]) == ("withdrawn", 2)
    again = house.ask("DELETE", f"/cases/{name}", params={"reason": "again"}).json()
    assert (again["status"], again["version"]) == ("already", 2)
    versions = house.ask("GET", f"/cases/{name}").json()["versions"]
    assert [(each["withdrawn"], each["note"], each["by"]) for each in versions] == [
        (False, "", "customer"),
        (True, "the label was wrong", "Ana"),
    ]
    assert house.submit(5, "7")["status"] == "reopened"


def test_what_was_found_of_a_case_is_shown_with_it(house: House) -> None:
    name = house.submit(6, "7")["case_id"]
    keep_findings(house.log.engine, [Finding(name, 1, 9, False)])
    keep_findings(house.log.engine, [Finding(name, 1, 9, False, "unseen")])
    shown = house.ask("GET", f"/cases/{name}").json()["findings"]
    assert [(each["model_version"], each["passed"], each["cause"]) for each in shown] == [
        (9, False, None),
        (9, False, "unseen"),
    ]


def test_a_failing_case_says_why_the_version_that_serves_errs(house: House) -> None:
    wrong = next(name for name in house.settings.task.classes if name != house.predicted(16))
    case_id = house.submit(16, wrong)["case_id"]
    keep_findings(house.log.engine, [Finding(case_id, 1, number, False, cause) for number, cause in
        ((1, "mislearned"), (9, "unseen"))])  # fmt: skip

    def shown() -> tuple[str, str | None]:
        found = {each["case_id"]: each for each in house.ask("GET", "/cases", params={"limit": 200}).json()["cases"]}
        return found[case_id]["state"], found[case_id]["cause"]

    assert shown() == ("failed", "mislearned")
    house.submit(16, next(name for name in house.settings.task.classes if name not in (wrong, house.predicted(16))))
    assert shown() == ("failed", None), "that cause was another expectation's"


def test_without_a_champion_cases_are_taken_and_nothing_is_said_of_them(settings: Settings) -> None:
    with serving(settings) as served:
        good = encode_png(picture(1))
        assert served.client.post("/cases", params={"expected": "7"}, content=good, headers=PNG).status_code == 200
        said = served.client.get("/cases").json()
    assert said["model_version"] is None
    assert [(each["state"], each["why"]) for each in said["cases"]] == [("unasked", "no model serves")]


Send = Callable[[House], httpx.Response]
GOOD = encode_png(picture(1))
PIXELS = (picture(1)[:, :, 0] / 255.0).tolist()


def image(data: bytes = GOOD, **params: str) -> Send:
    return lambda house: house.ask("POST", "/cases", params=params, content=data, headers=PNG)


def body(what: Any) -> Send:
    data = what if isinstance(what, str) else json.dumps(what)
    return lambda house: house.ask("POST", "/cases", content=data, headers=JSON)


def packed(data: bytes, content_type: str = "application/zip") -> Send:
    return lambda house: house.ask("POST", "/cases/file", content=data, headers={"content-type": content_type})


def gone(path: str, **params: str) -> Send:
    return lambda house: house.ask("DELETE", path, params=params)


TABLE: dict[str, tuple[Send, int, str, str]] = {
    "no expectation": (image(), 422, "invalid", "expected is missing"),
    "an unknown class": (image(expected="cat"), 422, "invalid", "'cat' is no class of this task"),
    "an index beyond the classes": (image(expected="10"), 422, "invalid", "10 is no class"),
    "a number of a thousand digits": (image(expected="9" * 1000), 422, "invalid", "expected"),
    "an unknown word": (image(expected="7", colour="red"), 422, "invalid", "'colour' is no field"),
    "a site with blanks": (image(expected="7", site="a b"), 422, "invalid", "site may hold letters"),
    "a name with a bell": (image(expected="7", by="a\x07"), 422, "invalid", "by is empty or holds characters"),
    "a note too long": (image(expected="7", note="x" * 401), 422, "invalid", "note: "),
    "text for an image": (image(b"I am a picture", expected="7"), 422, "invalid", "no PNG and no JPEG"),
    "no bytes": (image(b"", expected="7"), 422, "invalid", "empty (0 bytes)"),
    "wrong size": (image(encode_png(np.zeros((9, 8, 1), np.uint8)), expected="7"), 422, "invalid", "takes 8×8"),
    "10 MB": (image(bytes(10 * 2**20), expected="7"), 413, "too_large", "larger than 8 MB"),
    "JSON without pixels": (body({"expected": "7"}), 422, "invalid", "pixels is missing"),
    "JSON without an expectation": (body({"pixels": PIXELS}), 422, "invalid", "expected"),
    "a truth value for a class": (body({"pixels": PIXELS, "expected": True}), 422, "invalid", "expected"),
    "pixels of another size": (body({"pixels": [[0.5]], "expected": 7}), 422, "invalid", "this task takes [8, 8, 1]"),
    "broken JSON": (body('{"expected": '), 400, "broken_json", "not valid JSON"),
    "JSON nested too deep": (body("[" * 100_000), 400, "broken_json", "not valid JSON"),
    "another content type": (packed(GOOD, "text/csv"), 415, "unknown_content_type", "takes application/zip"),
    "no ZIP": (packed(b"file,expected"), 422, "invalid", "no readable ZIP"),
    "a ZIP without cases": (packed(zip_of({"a.png": GOOD})), 422, "invalid", "there is no case in it"),
    "a ZIP bomb": (packed(zip_of({"3/a.png": bytes(70 * 2**20)})), 422, "invalid", "unpacks to more than 64 MB"),
    "an unknown case": (gone("/cases/nobody", reason="x"), 404, "unknown_case", "no case 'nobody'"),
    "no reason": (gone("/cases/nobody"), 422, "invalid", "reason is missing"),
    "a page of nothing": (lambda h: h.ask("GET", "/cases", params={"limit": 0}), 422, "invalid", "limit: "),
    "a history of nobody": (lambda h: h.ask("GET", "/cases/nobody"), 404, "unknown_case", "no case 'nobody'"),
}


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_refused_with_a_sentence_and_makes_no_case(house: House, name: str) -> None:
    send, status, code, fragment = TABLE[name]
    before = live(house.log.engine)
    answer = send(house)
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "request_id"}
    assert answer.json()["error"]["code"] == code
    assert fragment in answer.json()["error"]["message"]
    assert "Traceback" not in answer.text
    assert live(house.log.engine) == before


def test_the_description_shows_a_request_and_an_answer_that_the_service_takes(house: House) -> None:
    described = house.ask("GET", "/openapi.json").json()["paths"]
    content = described["/cases"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "image/png", "image/jpeg"}
    said = house.ask("POST", "/cases", json=content["application/json"]["example"])
    assert said.status_code == 200, said.text
    shown = described["/cases"]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert set(shown) == set(said.json())
    listed = described["/cases"]["get"]["responses"]["200"]["content"]["application/json"]["example"]
    page = house.ask("GET", "/cases").json()
    assert set(listed) == set(page)
    assert set(listed["cases"][0]) | {"why"} == set(page["cases"][0])  # FastAPI leaves out what is null
    assert {each["name"] for each in described["/cases"]["post"]["parameters"]} == {"expected", "site", "by", "note"}
