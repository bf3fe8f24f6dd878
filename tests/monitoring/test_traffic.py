from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from fresh_logs import Databases, fresh_log
from hypothesis import given, settings
from hypothesis import strategies as st
from logged_rows import NOW, prediction
from sqlalchemy.exc import OperationalError

from models.errors import BadInput, Missing
from monitoring.traffic import Conflict, Label, Prediction, TrafficLog, UnknownPrediction


@pytest.fixture
def log(databases: Databases) -> Iterator[TrafficLog]:
    with databases.log() as opened:
        yield opened


def test_a_row_comes_back_as_it_went_in_and_its_picture_too(log: TrafficLog) -> None:
    row = prediction(7)
    log.record([row])
    frame = log.between(0, 10)
    assert frame.loc[0, ["prediction_id", "request_id", "site", "at", "model_version"]].tolist() == [
        row.prediction_id,
        "r-7",
        "site-1",
        NOW,
        1,
    ]
    assert frame.loc[0, "probabilities"] == [0.5, 0.5]
    assert frame.loc[0, ["brightness", "contrast", "sharpness", "saturation", "noise"]].tolist() == list(row.quality)
    assert log.image(row.image_hash) == row.png
    assert log.count() == 1
    assert log.last_seq() == 1


@given(
    batches=st.lists(st.integers(0, 7), max_size=6),
    rows=st.integers(1, 9),
    ages=st.lists(st.floats(0, 100), min_size=42, max_size=42),
    late=st.floats(0, 50),
)
@settings(max_examples=15, deadline=None)
def test_half_open_windows_partition_the_log_whatever_the_batches_and_the_clock(
    databases: Databases, batches: list[int], rows: int, ages: list[float], late: float
) -> None:
    with databases.log() as log:
        recorded: list[Prediction] = []
        for size in batches:
            batch = [prediction(len(recorded) + i, at=NOW - ages[len(recorded) + i]) for i in range(size)]
            log.record(batch)
            recorded += batch
        seen: list[str] = []
        cursor, now = 0, NOW
        for _ in range(2 * len(recorded) + 2):
            window = log.window(cursor, rows, late, now)
            assert len(window) <= rows
            assert (window["logged_at"] <= now - late).all()
            assert (window["seq"] >= cursor).all()
            seen += window["prediction_id"].tolist()
            if len(window):
                assert log.between(cursor, int(window["seq"].iloc[-1]) + 1).equals(window)
                cursor = int(window["seq"].iloc[-1]) + 1
            else:
                now += late  # nothing was ripe: time passes, and what was young is now old
        assert seen == [row.prediction_id for row in recorded]


@given(times=st.lists(st.integers(1, 3), min_size=1, max_size=8))
@settings(max_examples=12, deadline=None)
def test_recording_again_after_an_unclear_commit_adds_nothing(databases: Databases, times: list[int]) -> None:
    with databases.log() as log:
        rows = [prediction(i) for i in range(len(times))]
        for row, often in zip(rows, times, strict=True):
            for _ in range(often):
                log.record([row])
        log.record(rows)
        assert log.count() == len(rows)
        assert log.between(0, 10_000)["prediction_id"].tolist() == [row.prediction_id for row in rows]
        assert log.missing_requests(f"r-{i}" for i in range(len(times) + 3)) == {
            f"r-{len(times) + i}" for i in range(3)
        }


def test_a_batch_is_written_whole_or_not_at_all(log: TrafficLog) -> None:
    broken = prediction(1)
    object.__setattr__(broken, "confidence", None)
    with pytest.raises(Exception, match=r"(?i)not[- ]null"):
        log.record([prediction(0), broken, prediction(2)])
    assert log.count() == 0


@given(
    given_labels=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from(["clinic", "annotator"])), max_size=25
    )
)
@settings(max_examples=15, deadline=None)
def test_labels_are_idempotent_and_the_first_word_of_a_source_stands(
    databases: Databases, given_labels: list[tuple[int, int, str]]
) -> None:
    with databases.log() as log:
        rows = [prediction(i) for i in range(3)]
        log.record(rows)
        truth: dict[tuple[int, str], int] = {}
        last: dict[int, int] = {}
        for at, (which, label, source) in enumerate(given_labels):
            before = truth.setdefault((which, source), label)
            if before != label:
                with pytest.raises(Conflict, match=f"{before} before, and {label} now"):
                    log.label(rows[which].prediction_id, label, source, at)
            else:
                said = log.label(rows[which].prediction_id, label, source, at)
                first = (which, source) not in {(w, s) for w, _, s in given_labels[:at]}
                assert said == ("stored" if first else "already")
                if first:
                    last[which] = label
        frame = log.between(0, 100)
        assert len(frame) == 3  # two sources for one prediction do not make two rows of it
        labels = {i: int(value) for i, value in enumerate(frame["label"]) if not pd.isna(value)}
        assert labels == last


@given(order=st.permutations(range(6)), again=st.lists(st.integers(0, 5), max_size=6))
@settings(max_examples=10, deadline=None)
def test_labels_may_come_in_any_order_and_again_and_the_latest_by_their_own_time_counts(
    databases: Databases, order: list[int], again: list[int]
) -> None:
    with databases.log() as log:
        rows = [prediction(0), prediction(1)]
        log.record(rows)
        said = [Label(rows[i % 2].prediction_id, i, f"source-{i}", NOW + 100 - i // 2) for i in range(6)]
        for i in order + again:
            log.label_all([said[i]])
        assert log.between(0, 10)["label"].tolist() == [0, 1]


def test_a_list_of_labels_with_one_bad_row_stores_nothing(log: TrafficLog) -> None:
    row = prediction(0)
    log.record([row])
    with pytest.raises(UnknownPrediction, match="row 1: there is no prediction 'nobody'"):
        log.label_all([Label(row.prediction_id, 3, "clinic", NOW), Label("nobody", 3, "clinic", NOW)])
    assert log.between(0, 10)["label"].isna().all()
    assert log.label_all([]) == []


def test_windows_of_an_empty_log_have_all_columns_and_types(log: TrafficLog) -> None:
    empty = log.window(0, 10, 0.0, NOW)
    log.record([prediction(0)])
    full = log.between(0, 10)
    assert len(empty) == 0
    assert list(empty.columns) == list(full.columns)
    numbers = full.select_dtypes("number").columns
    assert len(numbers) == 13
    assert (empty.dtypes[numbers] == full.dtypes[numbers]).all()


def test_the_same_picture_is_stored_once(log: TrafficLog) -> None:
    log.record([prediction(5), prediction(5), prediction(6)])
    with sqlite3.connect(log.images / "pictures.db") as store:
        names = [name.hex() for (name,) in store.execute("SELECT name FROM pictures ORDER BY name")]
    assert names == sorted({prediction(5).image_hash, prediction(6).image_hash})


def test_a_picture_that_was_just_named_is_not_taken_away_and_an_old_release_s_file_is_found(log: TrafficLog) -> None:
    name, png = prediction(5).image_hash, prediction(5).png
    log.pictures.keep({name: png})
    assert log.pictures.remove_unless_young(name) == 0
    assert log.image(name) == png
    assert log.pictures.remove_unless_young(name, young_s=0) == len(png)
    with pytest.raises(Missing):
        log.image(name)
    (log.images / name[:2]).mkdir()
    (log.images / name[:2] / f"{name}.png").write_bytes(png)
    assert log.image(name) == png


def test_a_store_that_is_moved_away_takes_no_pictures_that_nobody_finds(log: TrafficLog) -> None:
    log.record([prediction(5)])
    log.images.rename(log.images.with_name("moved"))
    log.record([prediction(6)])
    assert log.image(prediction(6).image_hash) == prediction(6).png


def test_pictures_that_are_not_there_or_no_names_at_all_say_so(log: TrafficLog) -> None:
    with pytest.raises(Missing, match="is not in the image store"):
        log.image("0" * 32)
    for name in ("../../../etc/passwd", "", "0" * 31, "G" * 32, "0" * 32 + "\n"):
        with pytest.raises(BadInput, match="no image name"):
            log.image(name)


def test_a_log_that_cannot_be_written_raises_and_keeps_nothing() -> None:
    with fresh_log() as log:
        with log.engine.connect() as full:
            pages = full.exec_driver_sql("PRAGMA page_count").scalar_one()
            full.exec_driver_sql(f"PRAGMA max_page_count={pages}")  # what a full disk answers: SQLITE_FULL
        with pytest.raises(OperationalError, match="full"):
            log.record([prediction(i) for i in range(2000)])
        assert log.count() == 0


def _write(url: str, images: Path, worker: int) -> None:
    log = TrafficLog.open(url, images)
    for i in range(20):
        log.record([prediction(worker * 1000 + i * 3 + j) for j in range(3)])


def test_several_processes_write_one_log_and_nothing_is_lost(log: TrafficLog) -> None:
    context = multiprocessing.get_context("spawn")
    log.close()
    url = str(log.engine.url)
    workers = [context.Process(target=_write, args=(url, log.images, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert log.count() == 180
    assert log.missing_requests(f"r-{w * 1000 + i}" for w in range(3) for i in range(60)) == set()
