"""Tokens of the real service: who may ask what, for which site, how fast and how much a day."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from fresh_logs import fresh_log
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from live_service import Serving, register_untrained, serving, settings_in

from models.errors import BadInput
from models.images import encode_png
from monitoring.traffic import TrafficLog
from pipelines import release, serving_tokens
from pipelines.serving_access import Access, is_local
from pipelines.serving_wire import Refusal
from pipelines.settings import Settings

PNG = encode_png(np.arange(64, dtype=np.uint8).reshape(8, 8, 1))


@dataclass
class House:
    settings: Settings
    served: Serving
    log: TrafficLog
    tokens: dict[str, str]

    def ask(self, token: str | None, method: str, path: str, **what: Any) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {self.tokens.get(token, token)}"}
        headers |= what.pop("headers", {})
        return self.served.client.request(method, path, headers=headers, **what)

    def predict(self, token: str | None, site: str = "a") -> httpx.Response:
        headers = {"content-type": "image/png"}
        return self.ask(token, "POST", "/predict/image", params={"site": site}, content=PNG, headers=headers)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[House]:
    settings = settings_in(tmp_path_factory.mktemp("tokens"), empty_registry)
    release.promote(settings, register_untrained(settings).number, "test")
    log = TrafficLog.open(settings.database_url, settings.images)
    add = serving_tokens.add
    tokens = {
        "a": add(log.engine, "a", "a", ["predict", "feedback", "cases", "desk"]),
        "b": add(log.engine, "b", "b", ["predict", "feedback", "cases"]),
        "scraper": add(log.engine, "scraper", None, ["metrics"]),
        "boss": add(log.engine, "boss", None, ["admin"]),
    }
    with serving(settings) as served:
        served.ready()
        yield House(settings, served, log, tokens)
    log.close()


def refused(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_without_a_token_or_with_a_wrong_one_nothing_is_answered_but_whether_it_lives(house: House) -> None:
    for token in (None, "nonsense"):
        said = house.predict(token)
        assert refused(said) == (401, "no_token")
        assert said.headers["www-authenticate"] == "Bearer"
        assert "fedloop tokens add" in said.json()["error"]["message"]
    for path in ("/model", "/metrics", "/cases", "/cases/abc", "/nowhere"):
        assert refused(house.ask(None, "GET", path)) == (401, "no_token"), path
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
        assert house.ask(None, "GET", path).status_code == 200, path
    kept = (house.settings.folder / "log.db").read_bytes()
    assert not any(token.encode() in kept for token in house.tokens.values())


def test_a_token_is_for_its_scopes_alone(house: House) -> None:
    assert house.predict("a").status_code == 200
    assert house.ask("scraper", "GET", "/metrics").status_code == 200
    said = house.predict("scraper")
    assert refused(said) == (403, "wrong_scope")
    assert "token 'scraper' is for metrics, not for predict" in said.json()["error"]["message"]
    assert refused(house.ask("a", "GET", "/metrics")) == (403, "wrong_scope")
    assert house.predict("boss", "anywhere").status_code == 200
    assert house.ask("boss", "GET", "/metrics").status_code == 200


def test_a_site_s_token_speaks_for_that_site_alone(house: House) -> None:
    said = house.predict("a", "b")
    assert refused(said) == (403, "other_site")
    json = {"site": "b", "pixels": np.zeros((8, 8)).tolist()}
    assert refused(house.ask("a", "POST", "/predict", json=json)) == (403, "other_site")
    files = [("files", PNG)]
    assert refused(house.ask("a", "POST", "/predict/images", params={"site": "b"}, files=files)) == (403, "other_site")
    mine = house.predict("a").json()["prediction_id"]
    label = {"prediction_id": mine, "label": 3}
    assert refused(house.ask("b", "POST", "/feedback", json=label)) == (403, "other_site")
    assert house.ask("a", "POST", "/feedback", json=label).status_code == 200


def test_a_site_sees_corrects_and_withdraws_its_own_cases_alone(house: House) -> None:
    def submit(token: str, expected: str, **words: str) -> httpx.Response:
        params = {"expected": expected} | words
        return house.ask(token, "POST", "/cases", params=params, content=PNG, headers={"content-type": "image/png"})

    assert refused(submit("a", "3", site="b")) == (422, "invalid")
    first = submit("a", "3")
    assert first.status_code == 200
    name = first.json()["case_id"]
    assert [case["site"] for case in house.ask("a", "GET", "/cases").json()["cases"]] == ["a"]
    assert house.ask("b", "GET", "/cases").json()["cases"] == []
    assert "somebody else's case" in submit("b", "4").json()["error"]["message"]
    assert refused(house.ask("b", "GET", f"/cases/{name}")) == (404, "unknown_case")
    gone = {"params": {"reason": "no"}}
    assert refused(house.ask("b", "DELETE", f"/cases/{name}", **gone)) == (404, "unknown_case")
    assert house.ask("a", "DELETE", f"/cases/{name}", **gone).status_code == 200
    assert len(house.ask("boss", "GET", "/cases").json()["cases"]) == 1


def test_a_token_with_the_scope_desk_opens_its_site_s_desk(house: House) -> None:
    for site in ("a", "b"):
        (house.settings.folder / "sites" / site).mkdir(parents=True, exist_ok=True)
    said = house.ask("a", "GET", "/desk/api/desk", params={"site": "a"})
    assert said.json()["annotator"] == "a"
    assert house.ask("a", "GET", "/desk/api/desk", params={"site": "b"}).status_code == 401
    assert house.ask("b", "GET", "/desk/api/desk", params={"site": "b"}).status_code == 401


def test_a_token_comes_and_goes_while_the_service_runs(house: House) -> None:
    house.tokens["late"] = serving_tokens.add(house.log.engine, "late", "a", ["predict"])
    wait_for(lambda: house.predict("late").status_code == 200)
    serving_tokens.revoke(house.log.engine, "late")
    wait_for(lambda: house.predict("late").status_code == 401)
    with pytest.raises(BadInput, match="no token named 'late'"):
        serving_tokens.revoke(house.log.engine, "late")


def wait_for(condition: Callable[[], bool]) -> None:
    waited = threading.Event()
    for _ in range(100):
        if condition():
            return
        waited.wait(0.1)
    raise AssertionError("it did not come to pass within 10 s")


def test_every_answer_names_its_request_and_the_client_may_name_it(house: House) -> None:
    said = house.ask("a", "GET", "/healthz", headers={"x-request-id": "mine-1"})
    assert said.headers["x-request-id"] == "mine-1"
    said = house.ask(None, "GET", "/model", headers={"x-request-id": "mine-2"})
    assert said.json()["error"]["request_id"] == "mine-2"
    assert (
        house.ask("a", "GET", "/healthz").headers["x-request-id"]
        != house.ask("a", "GET", "/healthz").headers["x-request-id"]
    )


# ---- the rules by themselves -----------------------------------------------------------------------------------


def bearer(token: str) -> str:
    return f"Bearer {token}"


def test_an_open_service_is_open_to_this_machine_alone() -> None:
    with fresh_log() as log:
        assert Access(log.engine, "127.0.0.1").admit("/predict", "").token is None
        for host in ("0.0.0.0", "::", "10.0.0.1"):
            with pytest.raises(Refusal) as error:
                Access(log.engine, host).admit("/predict", "")
            assert error.value.status == 401
        serving_tokens.add(log.engine, "first", None, ["predict"])
        with pytest.raises(Refusal):
            Access(log.engine, "127.0.0.1").admit("/predict", "")
    assert is_local("localhost") and is_local("::1") and not is_local("example.org")


def test_without_its_database_a_service_knows_the_tokens_it_knew_and_else_lets_nobody_in(tmp_path: Path) -> None:
    away, copy = sa.create_engine(f"sqlite:///{tmp_path / 'nowhere' / 'log.db'}"), tmp_path / "tokens.json"
    with pytest.raises(Refusal) as error:
        Access(away, "127.0.0.1", copy=copy).admit("/predict", "")
    assert (error.value.status, error.value.code) == (503, "log_unavailable")
    with fresh_log() as log:
        token = serving_tokens.add(log.engine, "first", "a", ["predict"])
        Access(log.engine, "127.0.0.1", copy=copy)
    assert token not in copy.read_text()
    access = Access(away, "127.0.0.1", copy=copy)
    assert access.admit("/predict", bearer(token)).site == "a"
    for wrong in ("", bearer("x")):
        with pytest.raises(Refusal) as error:
            access.admit("/predict", wrong)
        assert error.value.status == 401


@pytest.mark.parametrize(
    ("wrong", "fragment"),
    [
        ({"scopes": ["fly"]}, "there is no scope 'fly'; there are predict"),
        ({"scopes": []}, "a token needs a scope"),
        ({"name": "a b"}, "the name 'a b' may hold letters"),
        ({"site": "../x"}, "the site '../x' may hold letters"),
        ({"rows_per_s": 0.0}, "above 0"),
        ({"rows_per_s": float("nan")}, "above 0"),
        ({"rows_per_day": 0}, "above 0"),
        ({"name": "taken"}, "a token named 'taken' already"),
    ],
)
def test_a_token_that_cannot_be_is_refused_with_a_sentence(wrong: dict[str, Any], fragment: str) -> None:
    with fresh_log() as log:
        serving_tokens.add(log.engine, "taken", None, ["predict"])
        good: dict[str, Any] = {"name": "n", "site": None, "scopes": ["predict"]}
        with pytest.raises(BadInput, match=fragment):
            serving_tokens.add(log.engine, **(good | wrong))


@given(
    rate=st.floats(0.1, 50),
    steps=st.lists(st.tuples(st.floats(-5, 5), st.integers(1, 40)), min_size=1, max_size=60),
)
@examples(max_examples=15)
def test_in_no_span_does_more_pass_than_the_rate_the_burst_and_one_batch(
    rate: float, steps: list[tuple[float, int]]
) -> None:
    now = [1000.0]
    with fresh_log() as log:
        token = serving_tokens.add(log.engine, "t", None, ["predict"], rows_per_s=rate)
        access = Access(log.engine, "127.0.0.1", clock=lambda: now[0])
        passed, forward = 0, 0.0
        for step, rows in steps:
            now[0] += step  # the clock may be set back
            forward += max(0.0, step)
            try:
                caller = access.admit("/predict", bearer(token))
            except Refusal as refusal:
                assert refusal.status == 429
                assert int(refusal.headers["Retry-After"]) >= 1
                continue
            asyncio.run(access.charge(caller, rows))
            passed += rows
        assert passed <= max(1.0, 2 * rate) + rate * forward + 40 + 1e-6


def test_retry_after_is_enough() -> None:
    now = [1000.0]
    with fresh_log() as log:
        token = serving_tokens.add(log.engine, "t", None, ["predict"], rows_per_s=0.5)
        access = Access(log.engine, "127.0.0.1", clock=lambda: now[0])
        for _ in range(5):
            caller = access.admit("/predict", bearer(token))
            asyncio.run(access.charge(caller, 3))
            with pytest.raises(Refusal) as error:
                access.admit("/predict", bearer(token))
            now[0] += int(error.value.headers["Retry-After"])


def test_a_day_s_budget_holds_for_all_replicas_together_and_after_a_restart_and_ends_at_midnight() -> None:
    now = [86400.0 * 20000 + 100]
    with fresh_log() as log:
        token = serving_tokens.add(log.engine, "t", None, ["predict"], rows_per_day=1000)

        def ask_until_refused(_: int) -> int:
            access = Access(log.engine, "127.0.0.1", clock=lambda: now[0])

            async def ask() -> int:
                passed = 0
                while True:
                    try:
                        await access.charge(access.admit("/predict", bearer(token)), 7)
                    except Refusal as refusal:
                        assert refusal.code == "budget_spent"
                        assert refusal.headers["Retry-After"] == str(86400 - 100)
                        return passed
                    passed += 7

            return asyncio.run(ask())

        with ThreadPoolExecutor(3) as pool:
            passed = sum(pool.map(ask_until_refused, range(3)))
        assert 1000 - 3 * 7 <= passed <= 1000
        assert ask_until_refused(0) == 0
        assert list(serving_tokens.used(log.engine, "2024-10-04").values()) == [1000]
        now[0] += 86400
        assert ask_until_refused(0) == 994
