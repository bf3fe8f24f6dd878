from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from camera_traffic import CameraTraffic
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from live_service import Serving, register_weights, serving, settings_in

from models.digits import TASK
from models.images import Images, encode_png
from models.quality import QUALITY_COLUMNS, quality
from monitoring.database import PREDICTIONS
from monitoring.traffic import TrafficLog
from pipelines import abstentions, release
from pipelines.abstain import COLUMNS, MINIMUM_ROWS, Limits, calibrate, limits_of, reasons
from pipelines.federated.site_tables import ITEMS, open_database
from pipelines.federated.store import SiteStore
from pipelines.federated.votes import settle
from pipelines.settings import Settings

DARK = np.zeros((8, 8, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def traffic() -> CameraTraffic:
    return CameraTraffic()


def pooled(traffic: CameraTraffic) -> pd.DataFrame:
    return pd.concat(traffic.reference.values(), ignore_index=True)


def share(limits: Limits | None, traffic: CameraTraffic, images: Images) -> float:
    assert limits is not None
    said = traffic.columns(images)
    measured = said[list(QUALITY_COLUMNS)].to_numpy()
    why = reasons(limits, TASK, images, measured, said["confidence"].to_numpy())
    return float(np.mean([each is not None for each in why]))


@given(rate=st.sampled_from([0.005, 0.02, 0.1]), seed=st.integers(0, 1000), heavy=st.booleans())
@examples(max_examples=30)
def test_of_rows_like_the_reference_about_the_stated_share_is_left_to_people(
    rate: float, seed: int, heavy: bool
) -> None:
    draw = np.random.default_rng(seed)
    rows = draw.standard_t(3, size=(8000, len(COLUMNS))) if heavy else draw.normal(size=(8000, len(COLUMNS)))
    limits = calibrate(pd.DataFrame(rows[:4000], columns=list(COLUMNS)), np.zeros((1, 2)), rate)
    assert limits is not None
    fresh = float((limits.oddness(rows[4000:]).max(axis=1) > limits.factor).mean())
    assert abs(fresh - rate) < 5 * (2 * rate / 4000) ** 0.5 + 0.001


def test_rate_nought_or_too_few_rows_mean_that_everything_is_answered(traffic: CameraTraffic) -> None:
    assert calibrate(pooled(traffic), traffic.centroids, 0.0) is None
    assert calibrate(pooled(traffic).head(MINIMUM_ROWS - 1), traffic.centroids, 0.05) is None


def test_normal_pictures_are_answered_and_dark_ones_and_noise_are_not(traffic: CameraTraffic) -> None:
    limits = calibrate(pooled(traffic), traffic.centroids, 0.005)
    assert share(limits, traffic, traffic.pictures(1500)[0]) < 0.02
    assert share(limits, traffic, traffic.pictures(300, dark=0.6)[0]) > 0.95
    assert limits is not None
    noise = np.random.default_rng(0).integers(0, 256, size=(100, 8, 8, 1), dtype=np.uint8)
    why = reasons(limits, TASK, noise, quality(noise).to_numpy(), np.ones(100))
    assert sum(each == "unseen" for each in why) > 95
    assert reasons(limits, TASK, DARK[None], quality(DARK[None]).to_numpy(), np.ones(1)) == ["unreadable: brightness"]
    sure = traffic.pictures(1)[0]
    assert reasons(limits, TASK, sure, limits.middle[None, :5], np.zeros(1)) == ["unsure"]


def test_what_a_parent_has_learned_is_not_odd_to_its_child(
    traffic: CameraTraffic, settings: Settings, tmp_path: Path
) -> None:
    """After a dark month the reference is dark, and a lamp that is mended is no reason to abstain."""
    for site in traffic.sites:
        store = SiteStore(settings.folder / "sites" / site)
        store.write_reference("1", traffic.reference[site])
        store.write_reference("2", traffic.columns(traffic.pictures(150, dark=0.6)[0]))
    np.savez(tmp_path / "summary.npz", centroids=traffic.centroids)
    bright, dark = traffic.pictures(400)[0], traffic.pictures(400, dark=0.6)[0]
    alone = limits_of(settings, 2, {}, tmp_path / "summary.npz")
    child = limits_of(settings, 2, {"fedloop.line": "[1]"}, tmp_path / "summary.npz")
    assert share(alone, traffic, bright) > 0.5
    assert share(child, traffic, bright) < 0.03
    assert share(child, traffic, dark) < 0.03
    assert limits_of(settings, 3, {}, tmp_path / "summary.npz") is None
    assert limits_of(settings, 2, {}, tmp_path / "nowhere.npz") is None


@pytest.fixture(scope="module")
def house(traffic: CameraTraffic, tmp_path_factory: pytest.TempPathFactory, empty_registry: Path) -> Settings:
    """A champion with references at its sites, and desks there."""
    folder = tmp_path_factory.mktemp("abstain")
    made = settings_in(folder, empty_registry)
    made.labels.annotator = "desk"
    np.savez(folder / "summary.npz", centroids=traffic.centroids)
    made.service.abstain_queue = 3
    task = made.task
    register_weights(made, task.build_model().state_dict(), "one", {}, folder / "summary.npz")
    for site in traffic.sites:
        # An untrained model is sure of nothing, here as in its reference.
        table = traffic.reference[site].assign(confidence=0.12)
        SiteStore(made.folder / "sites" / site).write_reference("1", table)
    release.promote(made, 1, "first")
    return made


@pytest.fixture(scope="module")
def served(house: Settings) -> Iterator[Serving]:
    with serving(house) as running:
        running.ready()
        yield running


def ask(served: Serving, image: np.ndarray, site: str = "site-1") -> dict[str, object]:
    kind = {"content-type": "image/png"}
    said = served.client.post("/predict/image", params={"site": site}, content=encode_png(image), headers=kind)
    assert said.status_code == 200, said.text
    return dict(said.json())


def test_an_abstained_row_has_no_class_but_a_reason_and_the_log_has_both(
    house: Settings, served: Serving, traffic: CameraTraffic
) -> None:
    seen, dark = ask(served, traffic.pictures(1)[0][0]), ask(served, DARK)
    assert seen["abstained"] is None
    assert seen["class"] == TASK.classes[int(str(seen["prediction"]))]
    assert (dark["prediction"], dark["class"], dark["abstained"]) == (None, None, "unreadable: brightness")
    batch = [(DARK[:, :, 0] / 255).tolist(), (traffic.pictures(1)[0][0][:, :, 0] / 255).tolist()]
    body = {"site": "site-2", "instances": [{"pixels": each} for each in batch]}
    both = served.client.post("/predict", json=body).json()["predictions"]
    assert [each["abstained"] for each in both] == ["unreadable: brightness", None]
    log = TrafficLog.open(house.database_url, house.images)
    rows = log.between(0, log.last_seq() + 1).set_index("prediction_id")
    assert rows.loc[str(dark["prediction_id"]), "abstained"] == "unreadable: brightness"
    best = np.argmax(np.array(dark["probabilities"]))
    assert rows.loc[str(dark["prediction_id"]), "prediction"] == best
    assert pd.isna(rows.loc[str(seen["prediction_id"]), "abstained"])
    log.close()
    text = served.client.get("/metrics").text
    assert 'fedloop_abstained_total{reason="unreadable: brightness",version="1"} 2.0' in text


def test_people_at_the_desk_decide_and_their_word_comes_back_as_a_label(house: Settings, served: Serving) -> None:
    images = [np.full((8, 8, 1), value, dtype=np.uint8) for value in range(1, 6)]
    ids = [str(ask(served, image, "site-3")["prediction_id"]) for image in images]
    assert abstentions.to_desks(house)["site-3"] == 3  # no more wait at once, the newest ones
    assert abstentions.to_desks(house) == {}
    database = open_database(house.folder / "sites" / "site-3")
    with database.connect() as connection:
        items = list(connection.execute(sa.select(ITEMS)))
    log = TrafficLog.open(house.database_url, house.images)
    with log.engine.connect() as connection:
        rows = connection.execute(sa.select(PREDICTIONS.c.prediction_id, PREDICTIONS.c.image_hash))
        hashes = {row.prediction_id: row.image_hash for row in rows}
    assert {item.row_id for item in items} == {hashes[key] for key in ids[2:]}
    assert {item.reason for item in items} == {"the model abstained (unreadable: brightness)"}
    settle(database, {hashes[ids[4]]: 7}, "anna")
    assert abstentions.to_desks(house) == {"site-3": 1}  # a place is free
    labels = log.between(0, log.last_seq() + 1).set_index("prediction_id")["label"]
    assert labels[ids[4]] == 7
    assert labels[ids[:4]].isna().all()
    assert abstentions.to_desks(house) == {}
    log.close()


def test_without_a_desk_nothing_is_put_anywhere(house: Settings) -> None:
    oracle = house.model_copy(update={"labels": house.labels.model_copy(update={"annotator": "oracle"})})
    assert abstentions.to_desks(oracle) == {}
