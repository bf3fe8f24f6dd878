"""A local log on its way to the real service: whatever the network does and whoever dies, every row comes once."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
from click.testing import Result
from edge_house import EdgeHouse, edge_house, row, waiting
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from listening import listener
from live_service import free_port, process, register_untrained, settings_in
from typer.testing import CliRunner

from flows.cli import app
from models.errors import Missing
from monitoring import spool
from monitoring.spool import Record, Spool
from monitoring.traffic import TrafficLog
from pipelines import edge_upload, release, serving_tokens
from pipelines.edge_upload import Uploaded
from pipelines.replay import serving_version
from pipelines.serving_wire import prediction_id


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Iterator[EdgeHouse]:
    with edge_house(tmp_path_factory.mktemp("upload"), empty_registry) as made:
        yield made


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge_upload, "BACKOFF_S", (0.0, 0.0, 0.0))


def keep(log: Path, rows: Sequence[Record]) -> Path:
    """A local log with these rows, in segments of three."""
    local = Spool(log)
    for start in range(0, len(rows), 3):
        local.append(rows[start : start + 3])
        local.seal()
    return log


def key(given: Record) -> str:
    return prediction_id(given["site"], given["request_id"])


class Killed(BaseException):
    """The sender dies here; nothing of its Python may notice."""


class Weather(httpx.HTTPTransport):
    """The real way to the real service, where requests and answers are lost, come twice, or come late."""

    def __init__(self, events: Sequence[str]) -> None:
        super().__init__()
        self.events, self.late = deque(events), deque[httpx.Request]()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        event = self.events.popleft() if self.events else "fine"
        if event == "no way":
            raise httpx.ConnectError("no network")
        if event == "killed before":
            raise Killed
        if event == "late":
            self.late.append(request)
            raise httpx.ReadTimeout("nothing came back")
        said = super().handle_request(request)
        said.read()
        if event == "twice":
            super().handle_request(request).read()
        if event == "killed after":
            raise Killed
        if event == "answer lost":
            raise httpx.ReadTimeout("nothing came back")
        while self.late:
            super().handle_request(self.late.popleft()).read()
        return said


EVENTS = ("fine", "no way", "answer lost", "twice", "late", "killed before", "killed after")
KINDS = ("good", "of an older version", "of no version", "broken")
OTHERS = {"of an older version": {"model_version": 1}, "of no version": {"model_version": 9}, "broken": {"png": "AAAA"}}


@given(
    kinds=st.lists(st.sampled_from(KINDS), max_size=14),
    events=st.lists(st.sampled_from(EVENTS), max_size=14),
    batch=st.integers(1, 6),
)
@examples(max_examples=15)
def test_whatever_happens_on_the_way_each_row_is_logged_once_or_refused_and_kept(
    house: EdgeHouse, kinds: list[str], events: list[str], batch: int
) -> None:
    rows = [row(number, **OTHERS.get(kind, {})) for number, kind in enumerate(kinds)]
    good = {key(each) for each, kind in zip(rows, kinds, strict=True) if kind in KINDS[:2]}
    bad = {key(each) for each in rows} - good
    start = house.log.last_seq() + 1
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "BATCH", batch)
        log, weather = keep(Path(folder), rows), Weather(events)
        done = None
        for _ in range(len(events) + 2):
            with httpx.Client(base_url=house.served.url, transport=weather) as client:
                try:
                    done = edge_upload.upload(log, client, lambda _: None)
                except (Killed, Missing):
                    done = None
                    there = set(house.logged(start))
                    assert there <= good
                    assert there | {key(each) for each in waiting(log)} >= good | bad  # at every moment
            weather = Weather(list(weather.events))  # what was late and not yet there is lost
            if done is not None and not weather.events:
                break
        assert done is not None and set(done.refused) == bad
        assert set(house.logged(start)) == good  # and `logged` asserts that none is there twice
        assert {key(each) for each in waiting(log)} == bad
        with httpx.Client(base_url=house.served.url) as client:
            again = edge_upload.upload(log, client, lambda _: None)
        assert (again.rows, set(again.refused)) == (0, bad)
        assert len(waiting(log)) == len(bad)


@pytest.mark.house
def test_killed_in_the_middle_again_and_again_the_same_command_ends_with_every_row_once(
    tmp_path: Path, empty_registry: Path
) -> None:
    settings = settings_in(tmp_path, empty_registry)
    for seed in (4, 5):
        release.promote(settings, register_untrained(settings, seed).number, "test")
    rows = [row(number) for number in range(3000)]
    local = Spool(tmp_path / "log")
    for start in range(0, len(rows), 32):
        local.append(rows[start : start + 32])
        local.seal()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "flows.cli", "edge", "upload", "--log", str(tmp_path / "log"), "--to", url]
    log = TrafficLog.open(settings.database_url, settings.images)
    with process(settings, port):
        deadline = time.monotonic() + 60
        while serving_version(url) != 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for goal in (1, 750):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
                while log.count() < goal:
                    assert time.monotonic() < deadline
                    time.sleep(0.002)
                running.kill()
            assert running.returncode == -9
        left = waiting(tmp_path / "log")
        assert 0 < len(left) < len(rows)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("0 kB wait\n")
        assert fedloop(*command[5:]).stdout == "nothing to upload\n"
    found = log.between(0, 10**9)
    assert sorted(found["prediction_id"]) == sorted(map(key, rows))
    log.close()


def fedloop(*words: object) -> Result:
    return CliRunner().invoke(app, ["edge", "upload", *map(str, words)], env=dict(os.environ))


def test_rows_that_the_service_refuses_are_named_and_kept_and_the_others_go_on_as_fast_as_the_token_may(
    house: EdgeHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "BATCH", 120)
    rows = [row(number, site="ward" if number == 2 else "clinic") for number in range(360)]
    log = keep(tmp_path / "log", rows)
    token = serving_tokens.add(house.log.engine, "clinic", "clinic", ["predict"], rows_per_s=100)
    try:
        deadline = time.monotonic() + 10
        while house.served.client.get("/model").status_code != 401:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        done = fedloop("--log", log, "--to", house.served.url, "--token", "wrong")
        assert done.exit_code == 2 and "this token is not valid (any more)" in done.stderr
        assert len(waiting(log)) == 360
        done = fedloop("--log", log, "--to", house.served.url, "--token", token)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith(f"scan-2.png ({key(rows[2])}) is refused and kept: this token speaks for")
        assert [each["file"] for each in waiting(log)] == ["scan-2.png"]
        assert {key(each) for each in rows} - set(house.logged()) == {key(rows[2])}
    finally:
        serving_tokens.revoke(house.log.engine, "clinic")


def test_a_file_s_name_never_leaves_the_site(tmp_path: Path) -> None:
    log = keep(tmp_path / "log", [row(1, file="Ms Smith.png")])
    with listener() as other:
        done = fedloop("--log", log, "--to", f"http://{other.address}")
    assert done.exit_code == 2 and "is no fedloop service; nothing is taken for uploaded" in done.stderr
    (heard,) = other.heard
    assert set(heard["predictions"][0]) == set(row()) - {"file"}
    assert len(waiting(log)) == 1


def test_a_service_that_is_away_or_busy_is_tried_again_and_then_left_with_a_sentence(
    house: EdgeHouse, tmp_path: Path
) -> None:
    log = keep(tmp_path / "log", [row(1)])
    done = fedloop("--log", log, "--to", f"http://127.0.0.1:{free_port()}")
    assert done.exit_code == 2 and "Traceback" not in done.stderr
    assert "takes nothing now (ConnectError" in done.stderr and "the same command goes on" in done.stderr
    with listener([502, 503, 429]) as other:
        done = fedloop("--log", log, "--to", f"http://{other.address}")
        assert done.exit_code == 2 and "(429 Too Many Requests)" in done.stderr
        assert (other.answers, other.heard) == ([], [])
    assert len(waiting(log)) == 1
    weather = Weather(["no way", "no way"])
    told: list[int] = []
    with httpx.Client(base_url=house.served.url, transport=weather) as client:
        edge_upload.upload(log, client, lambda now: told.append(now.rows))
    assert told == [0] and waiting(log) == []


def test_what_somebody_holds_is_left_to_the_next_call_and_what_cannot_be_is_a_sentence(
    house: EdgeHouse, tmp_path: Path
) -> None:
    writing = Spool(tmp_path / "log")
    writing.append([row(1)])
    done = fedloop("--log", tmp_path / "log", "--to", house.served.url)
    assert done.exit_code == 0 and "another command is writing or sending the rest" in done.stdout
    writing.seal()
    assert fedloop("--log", tmp_path / "log", "--to", house.served.url).stdout.endswith(
        "1 rows are logged, 0 kB wait\n"
    )
    for words, said in (
        (("--log", tmp_path / "no", "--to", house.served.url), "there is no local log at"),
        (("--log", tmp_path / "log", "--to", "clinic.example"), "the address 'clinic.example' is none"),
        (("--log", tmp_path / "log", "--to", "http://clinic:x"), "is none (Invalid"),
    ):
        done = fedloop(*words)
        assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_batch_that_is_too_large_is_sent_in_halves_and_only_the_row_that_is_so_alone_is_refused(
    house: EdgeHouse, tmp_path: Path
) -> None:
    rows = [row(1), row(2, png="A" * 9 * 2**20), row(3)]
    log = keep(tmp_path / "log", rows)
    with httpx.Client(base_url=house.served.url) as client:
        done: Uploaded = edge_upload.upload(log, client, lambda _: None)
    assert done.rows == 2
    ((file, why),) = done.refused.values()
    assert file == "scan-2.png" and "larger than 8 MB" in why
    assert [each["file"] for each in waiting(log)] == ["scan-2.png"]
