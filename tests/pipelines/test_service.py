from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from live_service import Serving, free_port, overwrite, process, serving, settings_in

from models import artifact
from models.images import content_hash, decode_png, encode_png, to_tensor
from monitoring.traffic import TrafficLog
from pipelines import packing, registry, release, replay, service
from pipelines.partition import plan_sites
from pipelines.registry import CHAMPION, Version
from pipelines.settings import Settings
from pipelines.tracking import Run

Register = Callable[..., Version]
PNG = {"content-type": "image/png"}
TOLERANCE = 1e-5
"""Of a probability: the log has six digits, and the size of a batch may change the last bits of a sum."""


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, size=(8, 8, 1), dtype=np.uint8)


def ask(served: Serving, number: int = 0, **params: object) -> httpx.Response:
    what = {"site": "s"} | params
    return served.client.post("/predict/image", params=what, content=encode_png(picture(number)), headers=PNG)


def open_log(settings: Settings) -> TrafficLog:
    return TrafficLog.open(settings.database_url, settings.images)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Settings:
    """A house with a champion, for tests that change nothing in it but the log."""
    from live_service import register_untrained

    settings = settings_in(tmp_path_factory.mktemp("service"), empty_registry)
    release.promote(settings, register_untrained(settings, 5).number, "test")
    return settings


@pytest.fixture(scope="module")
def served(shared: Settings) -> Iterator[Serving]:
    with serving(shared) as running:
        running.ready()
        yield running


def recompute(settings: Settings, png: bytes) -> np.ndarray:
    model = artifact.load(registry.fetch(settings, 1), settings.task)
    with torch.inference_mode():
        return model(to_tensor(np.stack([decode_png(png, settings.task.input)]))).softmax(dim=1).numpy()[0]


@given(images=st.lists(arrays(np.uint8, (8, 8, 1)), min_size=1, max_size=5))
@examples(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_picture_predicts_the_same_by_json_by_png_and_in_a_batch_and_the_log_reproduces_it(
    shared: Settings, served: Serving, images: list[np.ndarray]
) -> None:
    client = served.client
    floats = [(image[:, :, 0] / 255.0).tolist() for image in images]
    batch = client.post("/predict", json={"site": "s", "instances": [{"pixels": each} for each in floats]}).json()
    files = [("files", encode_png(image)) for image in images]
    upload = client.post("/predict/images", params={"site": "s"}, files=files).json()
    ways = [
        batch["predictions"],
        upload["predictions"],
        [client.post("/predict", json={"site": "s", "pixels": each}).json() for each in floats],
        [client.post("/predict/image", params={"site": "s"}, content=data, headers=PNG).json() for _, data in files],
    ]
    log = open_log(shared)
    rows = log.between(0, log.last_seq() + 1).set_index("prediction_id")
    for answers in ways:
        for image, answer in zip(images, answers, strict=True):
            row = rows.loc[answer["prediction_id"]]
            assert row["image_hash"] == content_hash(encode_png(image))
            assert (decode_png(log.image(row["image_hash"]), shared.task.input) == image).all()
            assert answer["probabilities"] == row["probabilities"]
            assert answer["class"] == shared.task.classes[answer["prediction"]]
            assert answer["confidence"] == max(answer["probabilities"]) == row["confidence"]
            again = recompute(shared, log.image(row["image_hash"]))
            assert np.allclose(answer["probabilities"], again, atol=TOLERANCE)
            assert again[answer["prediction"]] >= again.max() - TOLERANCE
    log.close()


def test_rows_that_share_a_batch_keep_their_own_answers(shared: Settings, served: Serving) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(
            pool.map(
                lambda number: ask(served, number, site=f"site-{number % 3}", request_id=f"r-{number}").json(),
                range(64),
            )
        )
    log = open_log(shared)
    rows = log.between(0, log.last_seq() + 1).set_index("prediction_id")
    for number, answer in enumerate(answers):
        row = rows.loc[answer["prediction_id"]]
        assert answer["request_id"] == row["request_id"] == f"r-{number}"
        assert row["site"] == f"site-{number % 3}"
        assert row["image_hash"] == content_hash(encode_png(picture(number)))
        assert np.allclose(answer["probabilities"], recompute(shared, encode_png(picture(number))), atol=TOLERANCE)
    assert len({answer["prediction_id"] for answer in answers}) == 64
    log.close()


def test_a_request_sent_again_under_its_id_is_told_what_the_log_holds_and_another_picture_is_refused(
    shared: Settings, served: Serving
) -> None:
    first = ask(served, 5, request_id="once", at=5.0)
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(lambda _: ask(served, 5, request_id="once"), range(8)))
    assert {each.content for each in again} == {first.content}
    other = ask(served, 6, request_id="once")
    assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
    assert "has used the request id 'once' for another picture" in other.json()["error"]["message"]
    assert ask(served, 6, request_id="once", site="elsewhere").status_code == 200
    log = open_log(shared)
    rows = log.between(0, log.last_seq() + 1)
    assert rows[rows["request_id"] == "once"]["site"].tolist() == ["s", "elsewhere"]
    log.close()


def test_labels_come_later_by_index_or_name_and_are_joined(shared: Settings, served: Serving) -> None:
    ids = [ask(served, number).json()["prediction_id"] for number in range(3)]
    one = served.client.post("/feedback", json={"prediction_id": ids[0], "label": "7", "at": 5.0})
    assert one.json() == {"prediction_id": ids[0], "status": "stored"}
    several = [{"prediction_id": each, "label": 3, "source": "annotator"} for each in ids[1:]]
    assert [row["status"] for row in served.client.post("/feedback", json=several).json()["feedback"]] == [
        "stored",
        "stored",
    ]
    mixed = [several[0], {"prediction_id": "nobody", "label": 3}]
    said = served.client.post("/feedback", json=mixed)
    assert said.status_code == 404
    assert "row 1" in said.json()["error"]["message"]
    log = open_log(shared)
    labels = log.between(0, log.last_seq() + 1).set_index("prediction_id")["label"]
    assert labels[ids].tolist() == [7, 3, 3]
    log.close()


def test_event_time_is_the_clients_or_now(shared: Settings, served: Serving) -> None:
    ids = [ask(served, at=1234.5).json()["prediction_id"], ask(served).json()["prediction_id"]]
    log = open_log(shared)
    at = log.between(0, log.last_seq() + 1).set_index("prediction_id")["at"]
    assert at[ids[0]] == 1234.5
    assert abs(at[ids[1]] - time.time()) < 60
    log.close()


def test_it_counts_what_it_does(served: Serving) -> None:
    for site in range(120):
        assert ask(served, site=f"new-{site}").status_code == 200
    served.client.get("/nowhere")
    text = served.client.get("/metrics").text
    assert 'fedloop_requests_total{code="200",endpoint="/predict/image"}' in text
    assert 'fedloop_requests_total{code="404",endpoint="other"}' in text
    assert 'fedloop_predictions_total{site="new-0",version="1"} 1.0' in text
    assert 'site="other"' in text  # names come from clients, so there is a bound
    assert 'site="new-119"' not in text
    assert "fedloop_model_version 1.0" in text
    assert 'fedloop_request_seconds_bucket{endpoint="/predict/image",le="+Inf"}' in text


def test_five_swaps_under_load_fail_no_request_and_every_version_answers(
    settings: Settings, register: Register
) -> None:
    versions = [register(seed).number for seed in range(6)]
    release.promote(settings, versions[0], "first")
    task = settings.task
    plan = plan_sites(task, settings.sites, 0)
    tallies: list[replay.Tally] = []
    captures: list[replay.Capture] = []
    with serving(settings) as running:
        running.ready(versions[0])
        done = threading.Event()

        def clients() -> None:
            live, number = task.load().live, 0
            while not done.is_set():
                number += 1
                some = replay.captures(
                    task, live, plan.cameras, plan.label_mix, count=40, seed=number, start_at=time.time(), tag="swap"
                )
                captures.extend(some)
                tallies.append(replay.replay(running.url, some, concurrency=8, feedback_share=0.1))

        traffic = threading.Thread(target=clients)
        traffic.start()
        try:
            for version in versions[1:]:
                release.promote(settings, version, "swap")
                running.ready(version)
        finally:
            done.set()
            traffic.join()
        assert ask(running).json()["model_version"] == versions[-1]
        text = running.client.get("/metrics").text
    assert "fedloop_swaps_total 6.0" in text
    answers = {name: answer for tally in tallies for name, answer in tally.answered.items()}
    assert [tally.failed for tally in tallies if tally.failed] == []
    assert [tally.feedback_failed for tally in tallies if tally.feedback_failed] == []
    assert set(answers) == {capture.request_id for capture in captures}
    assert {answer.version for answer in answers.values()} >= set(versions[:-1])
    log = open_log(settings)
    rows = log.between(0, log.last_seq() + 1).set_index("request_id")
    assert len(rows) == len(answers) + 1
    models = {n: artifact.load(registry.fetch(settings, n), task) for n in versions}
    for name, answer in answers.items():
        row = rows.loc[name]
        assert row["model_version"] == answer.version
        # Pinned: the version that the answer names is the one that made it.
        pixels = to_tensor(np.stack([decode_png(log.image(row["image_hash"]), task.input)]))
        again = models[answer.version](pixels).softmax(dim=1).detach().numpy()[0]
        assert np.allclose(again, row["probabilities"], atol=TOLERANCE)
    log.close()


def test_a_champion_that_does_not_fit_is_refused_and_the_old_one_serves_on(
    settings: Settings, register: Register
) -> None:
    good = register(1).number
    release.promote(settings, good, "first")
    with serving(settings) as running:
        running.ready(good)
        broken = {
            name: torch.full_like(v, float("nan")) for name, v in settings.task.build_model().state_dict().items()
        }
        example = np.zeros((1, 8, 8, 1), dtype=np.uint8)
        bad = registry.register(
            settings, parameters=broken, key="nan", tags={}, figures={}, summary=None, example=example,
            run_id=Run.start(settings, "training", "nan").run_id,
        )  # fmt: skip
        release.promote(settings, bad.number, "broken")
        said = wait_for(running, lambda body: body.get("refused"))
        assert said["model_version"] == good
        assert "version 2: a probe batch gives NaN" in said["refused"]
        assert ask(running).json()["model_version"] == good
        # Other classes under the same shapes: only what the version says of itself tells.
        folder = registry.fetch(settings, register(3).number)
        tensors, words = artifact.read(folder)
        origin = json.loads((folder / "origin.json").read_text())["origin"]
        artifact.save(folder, "digits", tensors, words | {"classes": '["a", "b"]'})
        packing.seal(folder, origin)
        release.promote(settings, 3, "other classes")
        said = wait_for(running, lambda body: "version 3" in (body.get("refused") or ""))
        assert "its classes is" in said["refused"]
        release.rollback(settings, "back")
        release.promote(settings, good, "back")
        said = wait_for(running, lambda body: body.get("refused") is None)
        assert said["model_version"] == good
        release.retire(settings, "over")
        wait_for(running, lambda body: "error" in body)
        assert ask(running).status_code == 503


def wait_for(running: Serving, condition: Callable[[dict[str, object]], object]) -> dict[str, object]:
    deadline = time.monotonic() + 20
    while True:
        body: dict[str, object] = running.client.get("/readyz").json()
        if condition(body):
            return body
        assert time.monotonic() < deadline, body
        time.sleep(0.05)


def test_it_serves_on_while_the_registry_is_down_and_says_so(settings: Settings, register: Register) -> None:
    release.promote(settings, register(1).number, "first")
    database = settings.home / "mlflow" / "mlflow.db"
    with serving(settings) as running:
        running.ready(1)
        whole = database.read_bytes()
        overwrite(database, b"this is no database" * 1000)
        wait_for(running, lambda body: "the model registry at" in str(body["registry"]))
        assert ask(running).json()["model_version"] == 1
        overwrite(database, whole)
        wait_for(running, lambda body: body["registry"] == "reachable")


# ---- the real process ------------------------------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence_and_exit_code_2(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        handler = signal.getsignal(signal.SIGTERM)
        try:
            os.environ.update(settings.environment() | {"FEDLOOP_PORTS__SERVICE": str(port)})
            assert service.main() == 2
        finally:
            signal.signal(signal.SIGTERM, handler)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}" in error
    assert "FEDLOOP_PORTS__SERVICE" in error


@pytest.mark.house
def test_killed_under_load_everything_answered_is_logged_and_sigterm_finishes_what_was_asked(
    settings: Settings, register: Register
) -> None:
    release.promote(settings, register(1).number, "first")
    task, port = settings.task, free_port()
    url = f"http://127.0.0.1:{port}"
    plan = plan_sites(task, settings.sites, 0)

    def captures(tag: str, count: int) -> list[replay.Capture]:
        return replay.captures(
            task, task.load().live, plan.cameras, plan.label_mix, count=count, seed=1, start_at=time.time(), tag=tag
        )

    def under_load(tag: str, stop: Callable[[], None]) -> replay.Tally:
        with ThreadPoolExecutor(1) as pool:
            before = log.count()
            sent = pool.submit(replay.replay, url, captures(tag, 2000), concurrency=16, feedback_share=0.2)
            deadline = time.monotonic() + 30
            while log.count() < before + 200 and time.monotonic() < deadline:
                time.sleep(0.02)
            stop()
            return sent.result(timeout=120)

    log = open_log(settings)
    answered: dict[str, replay.Answer] = {}
    for tag in ("killed", "terminated"):
        with process(settings, port) as running:
            # Sent before anybody listens: a client with patience meets the service as it starts.
            early = replay.replay(url, captures(f"early-{tag}", 1), patience_s=60)
            assert all("no_champion" in reason for reason in early.failed.values())
            deadline = time.monotonic() + 60
            while replay.serving_version(url) != 1:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            tally = under_load(tag, running.kill if tag == "killed" else running.terminate)
            assert running.wait(timeout=30) == (-9 if tag == "killed" else 0)
        assert len(tally.answered) >= 100
        assert len(tally.failed) > 0  # it did die in the middle
        answered |= early.answered | tally.answered
        if tag == "terminated":
            # What had reached it was answered: the rest found a closed port.
            assert not [reason for reason in tally.failed.values() if "500" in reason]
    assert log.missing_requests(answered) == set()
    rows = log.between(0, log.last_seq() + 1)
    by_id = rows.set_index("prediction_id")
    for name, answer in answered.items():
        assert by_id.loc[answer.prediction_id, "request_id"] == name
    for image_hash in rows["image_hash"].unique():
        assert content_hash(log.image(image_hash)) == image_hash
    assert registry.by_alias(settings, CHAMPION) is not None
    log.close()
